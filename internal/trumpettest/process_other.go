//go:build !linux

package trumpettest

import "os/exec"

func endWithUs(*exec.Cmd) {}
