//go:build !linux

package pgbus

import (
	"syscall"
	"time"
)

// setPacketTimeout does nothing: only Linux has it. The heartbeat notices a silent session all
// the same.
func setPacketTimeout(syscall.RawConn, time.Duration) error { return nil }
