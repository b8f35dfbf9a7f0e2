//go:build !linux

package socket

import "errors"

// Poller does not exist here: each connection has a goroutine that reads.
type Poller struct{}

// NewPoller returns nil.
func NewPoller() (*Poller, error) { return nil, nil }

// Run returns at once.
func (*Poller) Run() error { return nil }

// Close does nothing.
func (*Poller) Close() error { return nil }

func (*Poller) arm(*Conn) error { return errors.ErrUnsupported }

func (*Poller) forget(*Conn) {}

func readOnce(int, []byte) (int, error) { return 0, errors.ErrUnsupported }
