package integration

import "syscall"

// endsWithUs has a process end when this one ends, even by a panic or SIGKILL.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
