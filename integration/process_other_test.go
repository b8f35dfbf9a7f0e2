//go:build !linux

package integration

import "syscall"

func endsWithUs() *syscall.SysProcAttr { return nil }
