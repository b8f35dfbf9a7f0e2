package server

import (
	"container/list"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// gateGrace is how long a newcomer may keep others waiting before it has said what it wants.
const gateGrace = 500 * time.Millisecond

// gate bounds the TCP connections that are no clients: those that have not said yet what they
// want, requests, and what is kept open after one. Clients have a bound of their own, and must not lose
// their descriptors, nor Postgres its own, to whoever opens connections and says nothing. While the
// gate is full, newcomers wait in the kernel's queue; room is made by whoever is only kept open, and by who
// has been here for longest, beyond gateGrace, without a whole request.
type gate struct {
	net.Listener
	logger *slog.Logger
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
	waits  atomic.Uint64 // how often newcomers had to wait
	warn   sync.Once

	mu      sync.Mutex
	waiting bool       // somebody waits for a slot
	idle    *list.List // of quiet; kept open after a request, the longest first
	fresh   *list.List // of quiet; no whole request yet, the oldest first
	seats   map[net.Conn]seat
}

// quiet is a connection that wants nothing.
type quiet struct {
	conn  net.Conn
	since time.Time
}

// seat is where a connection stands in one of the lists.
type seat struct {
	in *list.List
	at *list.Element
}

func newGate(listener net.Listener, most int, logger *slog.Logger) *gate {
	return &gate{
		Listener: listener, logger: logger,
		slots: make(chan struct{}, most), closed: make(chan struct{}),
		idle: list.New(), fresh: list.New(), seats: make(map[net.Conn]seat),
	}
}

// Accept waits for room, then for a newcomer. The room is free again when the connection is closed
// or hijacked, which note hears of.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case g.slots <- struct{}{}:
	default:
		if !g.waitForSlot() {
			return nil, net.ErrClosed
		}
	}
	conn, err := g.Listener.Accept()
	if err != nil {
		<-g.slots
		return nil, err
	}
	return conn, nil
}

// waitForSlot makes room until a slot is taken; false if the gate was closed.
func (g *gate) waitForSlot() bool {
	g.waits.Add(1)
	g.warn.Do(func() {
		g.logger.Warn("too many connections that are no clients: newcomers wait until some have ended; further times are only counted", "most", cap(g.slots))
	})
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.waiting = false
	}()
	for {
		timer := time.NewTimer(g.makeRoom())
		select {
		case g.slots <- struct{}{}:
			timer.Stop()
			return true
		case <-g.closed:
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// makeRoom ends a connection that may be ended, and returns when to try again if that does not help.
func (g *gate) makeRoom() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = true
	if oldest := g.idle.Front(); oldest != nil {
		g.end(oldest)
		return gateGrace
	}
	oldest := g.fresh.Front()
	if oldest == nil {
		return gateGrace
	}
	if left := gateGrace - time.Since(oldest.Value.(quiet).since); left > 0 {
		return left
	}
	g.end(oldest)
	return gateGrace
}

// end closes a connection, of which the HTTP server then tells note.
func (g *gate) end(at *list.Element) {
	conn := at.Value.(quiet).conn
	g.leave(conn)
	_ = conn.Close()
}

func (g *gate) leave(conn net.Conn) {
	if seat, ok := g.seats[conn]; ok {
		seat.in.Remove(seat.at)
		delete(g.seats, conn)
	}
}

// note is the HTTP server's ConnState.
func (g *gate) note(conn net.Conn, state http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leave(conn)
	switch state {
	case http.StateNew:
		g.seats[conn] = seat{g.fresh, g.fresh.PushBack(quiet{conn, time.Now()})}
	case http.StateIdle:
		at := g.idle.PushBack(quiet{conn, time.Now()})
		g.seats[conn] = seat{g.idle, at}
		if g.waiting {
			g.end(at)
		}
	case http.StateHijacked, http.StateClosed:
		<-g.slots
	}
}

// Close ends a wait for room too.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Listener.Close()
}
