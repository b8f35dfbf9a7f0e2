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

// writeOnce is one write system call on a socket that never blocks.
func writeOnce(fd int, buf []byte) (int, error) {
	for {
		n, err := syscall.Write(fd, buf)
		switch err {
		case nil:
			return n, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, nil
		default:
			return 0, err
		}
	}
}
