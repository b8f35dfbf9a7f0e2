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

// writeOnce is one write system call on a socket that never blocks. Returning true keeps
// the runtime from waiting for the socket.
func (c *Conn) writeOnce(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), c.buf)
		switch err {
		case nil:
			c.n = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			c.err = err
		}
		return true
	}
}
