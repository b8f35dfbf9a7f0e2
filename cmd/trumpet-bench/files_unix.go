//go:build unix

package main

import (
	"fmt"
	"syscall"
)

// allowFiles raises how many files this process may have open.
func allowFiles(n int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read limit of open files: %w", err)
	}
	if uint64(limit.Max) < uint64(n) {
		return fmt.Errorf("%d files must be open at once and the limit is %d: raise it, as with ulimit -n", n, limit.Max)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise limit of open files: %w", err)
	}
	return nil
}
