//go:build unix

package main

import (
	"math"
	"syscall"
)

// openFilesLimit is how many files this process may have open; without a limit, or if it is not known,
// more than it can need. The Go runtime has raised the soft limit to the hard one (package os).
func openFilesLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxUint32
	}
	return min(uint64(limit.Cur), math.MaxUint32)
}
