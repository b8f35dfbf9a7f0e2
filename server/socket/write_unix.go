//go:build unix && !linux

package socket

import "syscall"

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
