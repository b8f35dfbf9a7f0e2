//go:build unix

package socket

import (
	"net"
	"syscall"
)

// rawConn gives access to the file descriptor of a plain socket.
func rawConn(conn net.Conn) syscall.RawConn {
	switch c := conn.(type) {
	case *net.TCPConn:
		raw, _ := c.SyscallConn()
		return raw
	case *net.UnixConn:
		raw, _ := c.SyscallConn()
		return raw
	}
	return nil
}
