package pgbus

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// setPacketTimeout sets TCP_USER_TIMEOUT (tcp(7)).
func setPacketTimeout(raw syscall.RawConn, timeout time.Duration) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return failed
}
