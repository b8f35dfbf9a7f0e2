//go:build unix

package postgres

import (
	"errors"
	"syscall"
)

// attributes put a process into a group of its own, so that Ctrl-C in a terminal does
// not reach it before us, and make it the owner's.
func (o *owner) attributes() *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{Setpgid: true}
	if o != nil {
		attributes.Credential = &syscall.Credential{Uid: o.uid, Gid: o.gid}
	}
	return attributes
}

// interrupt asks the server for a fast shutdown.
func (p *process) interrupt() error { return p.signal(syscall.SIGINT) }

// kill ends the server and all its sessions at once. The server is held still first,
// so that it starts no session while they are counted.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for _, child := range children(p.pid) {
		_ = syscall.Kill(child, syscall.SIGKILL) // it may have ended by itself
	}
	return p.signal(syscall.SIGKILL)
}

func (p *process) signal(signal syscall.Signal) error {
	select {
	case <-p.done:
		return nil // the number may be somebody else's by now
	default:
	}
	if err := syscall.Kill(p.pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}
