package server

import (
	"container/list"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// gate bounds the TCP connections that are no clients: those that have not said yet what they
// want, requests, and what is kept open after one. Clients have a bound of their own, and must not lose
// their descriptors, nor Postgres its own, to whoever opens connections and says nothing. While the
// gate is full, newcomers wait in the kernel's queue; connections that are only kept open make room, and
// those that do not send a request are ended by the HTTP server's time-outs.
type gate struct {
	net.Listener
	logger *slog.Logger
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
	waits  atomic.Uint64 // how often newcomers had to wait
	warn   sync.Once

	mu   sync.Mutex
	idle *list.List // kept open after a request, the longest first
	seat map[net.Conn]*list.Element
}

func newGate(listener net.Listener, most int, logger *slog.Logger) *gate {
	return &gate{
		Listener: listener, logger: logger,
		slots: make(chan struct{}, most), closed: make(chan struct{}),
		idle: list.New(), seat: make(map[net.Conn]*list.Element),
	}
}

// Accept waits for room, then for a newcomer. The room is free again when the connection is closed
// or hijacked, which note hears of.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case g.slots <- struct{}{}:
	default:
		g.waits.Add(1)
		g.warn.Do(func() {
			g.logger.Warn("too many connections that are no clients: newcomers wait until some have ended; further times are only counted", "most", cap(g.slots))
		})
		g.evict()
		select {
		case g.slots <- struct{}{}:
		case <-g.closed:
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

// note is the HTTP server's ConnState.
func (g *gate) note(conn net.Conn, state http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if seat, ok := g.seat[conn]; ok {
		g.idle.Remove(seat)
		delete(g.seat, conn)
	}
	switch state {
	case http.StateIdle:
		g.seat[conn] = g.idle.PushBack(conn)
		if len(g.slots) == cap(g.slots) {
			g.evictLocked()
		}
	case http.StateHijacked, http.StateClosed:
		<-g.slots
	}
}

// evict closes the connection that has been kept open for longest without a request.
func (g *gate) evict() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.evictLocked()
}

func (g *gate) evictLocked() {
	if oldest := g.idle.Front(); oldest != nil {
		conn := g.idle.Remove(oldest).(net.Conn)
		delete(g.seat, conn)
		_ = conn.Close()
	}
}

// Close ends a wait for room too.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Listener.Close()
}
