// Package socket writes to a client's socket: at once as far as the kernel takes it, or
// with a deadline; and it never puts anything into the middle of a frame.
//
// Two write to a WebSocket: the hub, whose frames are prepared and may be cut where the
// kernel's buffer is full, and the WebSocket library, which answers pings and closes.
// While the hub holds a socket because a frame is cut, the library's frames wait here,
// the newest pong and one close: that is all there ever is to wait.
//
// Who reads does so in a goroutine only while there is something to read: see [Conn.Park].
//
// The package starts no goroutine. Whoever makes a [Poller] runs it.
package socket

import (
	"cmp"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// userTimeout is how long sent bytes may stay unacknowledged before the kernel gives
	// the connection up: this frees the places of peers that vanished.
	userTimeout = 15 * time.Second
	// lingerTimeout is how long a peer may take to hang up after it was told to.
	lingerTimeout = time.Second
	opClose       = 0x8
)

// Conn is a hijacked connection. For the WebSocket library it is a net.Conn whose Write
// takes whole control frames and never waits; the hub uses the other methods.
type Conn struct {
	net.Conn
	raw       syscall.RawConn // nil if the connection cannot be written without waiting
	fd        int             // raw's, for writing while it is not shut
	early     []byte          // read ahead by the HTTP server
	halfClose bool            // Finish ends the stream, because nothing in it says so
	patience  time.Duration
	linger    time.Duration
	patient   bool

	// The reader's.
	poller *Poller // nil if reading waits
	idle   bool    // the next Read may find nothing

	mu       sync.Mutex
	parked   func() // resumes the reader; nil while it reads
	shut     bool   // Close was called
	held     bool   // the hub writes with WriteUntil; control frames wait
	finished bool   // nothing more is written
	closed   bool   // a close frame came by Write
	rest     []byte // of a control frame that was cut
	pong     []byte // waits
	closing  []byte // waits
	blocked  func() // told that control frames wait though the hub does not hold

	cut bool // the hub's: its last frame is not complete
}

// Config says what kind of connection it is.
type Config struct {
	// Early is what the HTTP server has read already.
	Early []byte
	// HalfClose: Finish ends the stream of bytes, as SSE needs.
	HalfClose bool
	// Linger is how long the peer may take to hang up after Finish; default 1 s.
	Linger time.Duration
	// Patience is how long a held socket may go without progress before the kernel gives
	// up; zero leaves the usual 15 s.
	Patience time.Duration
	// Poller, if there is one, lets the reader park.
	Poller *Poller
}

// ErrIdle says that nothing has come.
var ErrIdle = errors.New("nothing to read")

// New wraps a connection. A tls.Conn and others without a file descriptor work too, but
// TryWrite takes nothing from them.
func New(conn net.Conn, config Config) *Conn {
	c := &Conn{Conn: conn, early: config.Early, halfClose: config.HalfClose, patience: config.Patience, linger: cmp.Or(config.Linger, lingerTimeout), raw: rawConn(conn)}
	if c.raw != nil {
		// Kept, because asking for it at each write costs a tenth of the write. So all that close it must do
		// so by Close.
		if err := c.raw.Control(func(fd uintptr) { c.fd = int(fd) }); err != nil { //nolint:gosec // a file descriptor
			c.shut = true // it is closed already
		}
	}
	if c.raw != nil {
		c.poller = config.Poller
	}
	setUserTimeout(c.raw, userTimeout)
	return c
}

// OnBlocked sets what is called when control frames wait and somebody must write them
// by Hold and Release. Call it before the first Write.
func (c *Conn) OnBlocked(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blocked = f
}

// Idle says that whoever reads has all that it needs: if nothing has come, the next Read returns ErrIdle
// instead of waiting, and then the reader may park. Without a poller nothing changes.
func (c *Conn) Idle() { c.idle = c.poller != nil }

// Park has resume called once, when something has come, or the connection is finished or closed. It
// returns false if the reader must go on at once, and then Read waits.
func (c *Conn) Park(resume func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.poller == nil || c.shut || c.finished {
		return false
	}
	if c.poller.arm(c) != nil {
		c.poller = nil
		return false
	}
	c.parked = resume
	return true
}

// resume wakes a reader that has parked.
func (c *Conn) resume() {
	c.mu.Lock()
	resume := c.parked
	c.parked = nil
	c.mu.Unlock()
	if resume != nil {
		resume()
	}
}

// Read gives first what the HTTP server had read ahead.
func (c *Conn) Read(p []byte) (int, error) {
	idle := c.idle
	c.idle = false
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		if len(c.early) == 0 {
			c.early = nil
		}
		return n, nil
	}
	if idle && c.poller != nil {
		if n, ok, err := c.tryRead(p); ok {
			return n, err
		}
	}
	return c.Conn.Read(p)
}

// tryRead reads without waiting; not ok: after Finish reading waits for the end.
func (c *Conn) tryRead(p []byte) (n int, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.shut:
		return 0, true, net.ErrClosed
	case c.finished:
		return 0, false, nil
	}
	n, err = readOnce(c.fd, p)
	return n, true, err
}

// SetWriteDeadline does nothing: control writes never wait.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline sets the read deadline only.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// Write takes one whole control frame from the WebSocket library. It never waits: what
// cannot be written now is written at the next boundary of frames. What comes after a close
// frame is dropped: the first one counts.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	if c.finished || c.closed || len(p) == 0 {
		c.mu.Unlock()
		return len(p), nil
	}
	c.closed = p[0]&0xf == opClose
	if c.held {
		c.wait(p)
		c.mu.Unlock()
		return len(p), nil
	}
	n, err := c.try(p)
	if err != nil || n == len(p) {
		c.mu.Unlock()
		return n, err
	}
	c.held = true
	if n == 0 {
		c.wait(p)
	} else {
		c.rest = append([]byte(nil), p[n:]...)
	}
	blocked := c.blocked
	c.mu.Unlock()
	if blocked != nil {
		blocked()
	}
	return len(p), nil
}

// wait keeps a control frame; of pongs only the newest counts (RFC 6455, section 5.5.3).
func (c *Conn) wait(p []byte) {
	if p[0]&0xf == opClose {
		c.closing = append(c.closing[:0], p...)
		return
	}
	c.pong = append(c.pong[:0], p...)
}

// TryWrite writes what the kernel takes at once. If that is not all, the caller holds
// the socket from then on: it continues with WriteUntil, then calls Release.
func (c *Conn) TryWrite(buf []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.finished:
		return 0, net.ErrClosed
	case c.held: // by a control frame that is cut
		return 0, nil
	}
	n, err := c.try(buf)
	if err == nil && n < len(buf) {
		c.held = true
		c.cut = n > 0
	}
	return n, err
}

// try writes once without waiting; with mu held.
func (c *Conn) try(buf []byte) (int, error) {
	switch {
	case c.shut:
		return 0, net.ErrClosed
	case c.raw == nil:
		return 0, nil
	}
	return writeOnce(c.fd, buf)
}

// Close closes the connection. No write without waiting is under way then, nor begins later: the
// descriptor may be another connection's by then.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.shut = true
	if c.poller != nil {
		c.poller.forget(c)
	}
	c.mu.Unlock()
	err := c.Conn.Close()
	c.resume()
	return err
}

// Hold makes control frames wait until Release.
func (c *Conn) Hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = true
}

// WriteUntil writes buf, which goes on where the last frame was cut and ends where a frame
// ends, and waits for the peer to take it until the deadline. Only who holds the socket
// calls it.
func (c *Conn) WriteUntil(buf []byte, deadline time.Time) (int, error) {
	if !c.cut {
		if err := c.flush(deadline); err != nil {
			return 0, err
		}
	}
	n, err := c.write(buf, deadline)
	c.cut = n < len(buf)
	return n, err
}

// Release ends a hold at a boundary of frames, after the control frames that waited. An
// error that is os.ErrDeadlineExceeded may be tried again.
func (c *Conn) Release(deadline time.Time) error {
	for {
		if err := c.flush(deadline); err != nil {
			return err
		}
		c.mu.Lock()
		if len(c.rest)+len(c.pong)+len(c.closing) == 0 {
			c.held, c.cut = false, false
			// A deadline that has passed would make every further try fail.
			err := c.Conn.SetWriteDeadline(time.Time{})
			c.mu.Unlock()
			if c.patient {
				c.patient = false
				setUserTimeout(c.raw, userTimeout)
			}
			return err
		}
		c.mu.Unlock()
	}
}

// flush writes the control frames that wait.
func (c *Conn) flush(deadline time.Time) error {
	for {
		c.mu.Lock()
		var p []byte
		switch {
		case len(c.rest) > 0:
			p, c.rest = c.rest, nil
		case len(c.pong) > 0:
			p, c.pong = c.pong, nil
		case len(c.closing) > 0:
			p, c.closing = c.closing, nil
		}
		c.mu.Unlock()
		if p == nil {
			return nil
		}
		if n, err := c.write(p, deadline); err != nil {
			c.mu.Lock()
			c.rest = p[n:]
			c.mu.Unlock()
			return err
		}
	}
}

func (c *Conn) write(buf []byte, deadline time.Time) (int, error) {
	if c.raw == nil {
		return c.writeOnceOnly(buf)
	}
	if err := c.Conn.SetWriteDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) && !c.patient && c.patience > 0 {
		// A peer whose window is closed would otherwise be given up before the hub's own
		// bound, without a word.
		c.patient = true
		setUserTimeout(c.raw, c.patience)
	}
	return n, err
}

// writeOnceOnly writes to what cannot go on after a deadline, such as a tls.Conn.
func (c *Conn) writeOnceOnly(buf []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(max(c.patience, userTimeout))); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = net.ErrClosed // no other try
	}
	return n, err
}

// Finish says that all is written. Whoever reads from the connection sees its end as
// soon as the peer hangs up, within a second at the latest.
func (c *Conn) Finish() {
	c.mu.Lock()
	c.finished = true
	c.mu.Unlock()
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && c.halfClose {
		_ = half.CloseWrite()
	}
	_ = c.SetReadDeadline(time.Now().Add(c.linger))
	c.resume()
}
