//go:build !unix

package postgres

import (
	"errors"
	"syscall"
)

// Start refuses before any of these is called.

func (o *owner) attributes() *syscall.SysProcAttr { return nil }

func (p *process) interrupt() error { return errors.ErrUnsupported }

func (p *process) kill() error { return errors.ErrUnsupported }
