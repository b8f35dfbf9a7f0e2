package socket

import (
	"syscall"
	"unsafe"
)

// writeOnce is one write system call on a socket that never blocks. It takes some microseconds, so the
// scheduler need not be told, which costs some percent of it.
func writeOnce(fd int, buf []byte) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	for {
		n, _, err := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf))) //nolint:gosec // as package syscall does
		switch err {
		case 0:
			return int(n), nil //nolint:gosec // at most len(buf)
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, nil
		default:
			return 0, err
		}
	}
}
