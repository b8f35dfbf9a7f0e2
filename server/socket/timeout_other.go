//go:build !linux

package socket

import (
	"syscall"
	"time"
)

// setUserTimeout does nothing: only Linux lets a socket say this.
func setUserTimeout(syscall.RawConn, time.Duration) {}
