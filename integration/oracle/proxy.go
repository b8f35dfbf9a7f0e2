package oracle

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// weather is what the network between a worker and Postgres does.
type weather struct {
	holdUp   bool          // what the worker sends vanishes, as far as both can tell
	holdDown bool          // what Postgres sends does
	lose     bool          // when it clears up, connections that were held stay dead
	refuse   bool          // connections are reset, old and new
	delay    time.Duration // of each piece
}

// proxy stands between a worker and Postgres. Two goroutines pass on what goes over a connection, one
// accepts; close waits for all.
type proxy struct {
	listener net.Listener
	target   string
	group    sync.WaitGroup

	mu      sync.Mutex
	weather weather
	changed chan struct{} // closed when the weather changes
	links   map[*link]struct{}
	closed  bool
}

// link is one connection through the proxy.
type link struct {
	worker net.Conn
	gone   chan struct{}
	dead   bool // guarded by the proxy's mu

	mu     sync.Mutex
	server net.Conn // nil until it was dialled
	closed bool
}

// deadLinkStays is how long a connection that was lost stays open, at the longest, after the network is
// well again.
const deadLinkStays = 20 * time.Second

func newProxy(ctx context.Context, target string) (*proxy, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open proxy: %w", err)
	}
	p := &proxy{listener: listener, target: target, changed: make(chan struct{}), links: map[*link]struct{}{}}
	p.group.Go(p.accept)
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		l := &link{worker: conn, gone: make(chan struct{})}
		p.mu.Lock()
		if p.closed || p.weather.refuse {
			p.mu.Unlock()
			reset(conn)
			continue
		}
		p.links[l] = struct{}{}
		p.mu.Unlock()
		p.group.Go(func() { p.open(l) })
	}
}

// open dials on, when the network lets it, and passes on until one side ends.
func (p *proxy) open(l *link) {
	defer func() {
		p.mu.Lock()
		delete(p.links, l)
		p.mu.Unlock()
		l.close()
	}()
	if !p.passes(l, true) {
		return
	}
	server, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		reset(l.worker)
		return
	}
	l.mu.Lock()
	l.server = server
	closed := l.closed
	l.mu.Unlock()
	if closed {
		server.Close()
		return
	}
	var down sync.WaitGroup
	down.Go(func() { p.pass(l, server, l.worker, false) })
	p.pass(l, l.worker, server, true)
	down.Wait()
}

// pass copies one direction. When that has ended, in fair weather, so does the link.
func (p *proxy) pass(l *link, from, to net.Conn, up bool) {
	defer l.close()
	buffer := make([]byte, 256<<10)
	for {
		n, readErr := from.Read(buffer)
		if !p.passes(l, up) { // an end vanishes like everything else
			return
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if readErr != nil {
			return
		}
	}
}

// passes waits until something may pass on a link, and reports false if it ended first.
func (p *proxy) passes(l *link, up bool) bool {
	for {
		p.mu.Lock()
		w, changed, dead := p.weather, p.changed, l.dead
		p.mu.Unlock()
		if dead {
			select {
			case <-l.gone:
			case <-time.After(deadLinkStays):
			}
			return false
		}
		if up && w.holdUp || !up && w.holdDown {
			select {
			case <-changed:
				continue
			case <-l.gone:
				return false
			}
		}
		if w.delay > 0 {
			select {
			case <-time.After(w.delay):
			case <-l.gone:
				return false
			}
		}
		return true
	}
}

// set changes the weather.
func (p *proxy) set(w weather) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if held := p.weather; (held.holdUp || held.holdDown) && held.lose && !w.holdUp && !w.holdDown {
		for l := range p.links {
			l.dead = true
		}
	}
	p.weather = w
	close(p.changed)
	p.changed = make(chan struct{})
	if w.refuse {
		for l := range p.links {
			l.end(reset)
		}
	}
}

func (l *link) close() { l.end(func(conn net.Conn) { conn.Close() }) }

// end ends both connections, once.
func (l *link) end(how func(net.Conn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.gone)
	how(l.worker)
	if l.server != nil {
		how(l.server)
	}
}

// reset ends a connection with RST.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

func (p *proxy) close() {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for l := range p.links {
		l.close()
	}
	p.mu.Unlock()
	p.group.Wait()
}
