package socket

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Poller wakes those who wait for what comes on many connections, without a goroutine for each:
// that costs a stack of 4 to 8 KiB, most of what a silent connection takes. It is an epoll(7) instance
// of its own, which the Go runtime's poller waits for.
type Poller struct {
	file *os.File
	raw  syscall.RawConn

	mu     sync.Mutex
	conns  []*Conn // by file descriptor
	closed bool
}

// NewPoller returns a poller; Run runs it.
func NewPoller() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that the runtime's poller takes it
		return nil, errors.Join(fmt.Errorf("set epoll non-blocking: %w", err), unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), "epoll") //nolint:gosec // a file descriptor
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &Poller{file: file, raw: raw}, nil
}

// Run resumes connections until Close.
func (p *Poller) Run() error {
	events := make([]unix.EpollEvent, 256)
	for {
		var n int
		var failed error
		err := p.raw.Read(func(fd uintptr) bool {
			n, failed = unix.EpollWait(int(fd), events, 0) //nolint:gosec // a file descriptor
			if errors.Is(failed, unix.EINTR) {
				failed = nil
			}
			return n > 0 || failed != nil
		})
		switch {
		case err != nil && p.isClosed():
			return nil
		case err != nil:
			return fmt.Errorf("wait for epoll: %w", err)
		case failed != nil:
			return fmt.Errorf("epoll_wait: %w", failed)
		}
		for _, e := range events[:n] {
			if c := p.conn(int(e.Fd)); c != nil {
				c.resume()
			}
		}
	}
}

// Close ends Run. Connections that wait are resumed when they are closed.
func (p *Poller) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	return p.file.Close()
}

func (p *Poller) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

func (p *Poller) conn(fd int) *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fd >= len(p.conns) {
		return nil
	}
	return p.conns[fd]
}

// arm asks for one wake-up, at once if something has come; with the connection's mu held.
func (p *Poller) arm(c *Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c.fd >= len(p.conns) {
		p.conns = append(p.conns, nil)
	}
	op := unix.EPOLL_CTL_MOD
	if p.conns[c.fd] != c {
		op = unix.EPOLL_CTL_ADD
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(c.fd)} //nolint:gosec // a file descriptor
	var err error
	if controlled := p.raw.Control(func(fd uintptr) { err = unix.EpollCtl(int(fd), op, c.fd, &event) }); controlled != nil { //nolint:gosec // a file descriptor
		return controlled
	}
	if err == nil {
		p.conns[c.fd] = c
	}
	return err
}

// forget drops a connection that is about to be closed: its descriptor may be another's next.
func (p *Poller) forget(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.fd < len(p.conns) && p.conns[c.fd] == c {
		p.conns[c.fd] = nil
	}
}

// readOnce is one read system call on a socket that never blocks.
func readOnce(fd int, buf []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, buf)
		switch {
		case err == nil && n == 0 && len(buf) > 0:
			return 0, io.EOF
		case err == nil:
			return n, nil
		case err == syscall.EAGAIN:
			return 0, ErrIdle
		case err != syscall.EINTR:
			return 0, os.NewSyscallError("read", err)
		}
	}
}
