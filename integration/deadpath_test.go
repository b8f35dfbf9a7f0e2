package integration

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// deadPath stands between a worker and Postgres as a NAT or a pooler does. While it is dead it keeps
// every connection open, takes and acknowledges whatever comes, and passes nothing on. What was, or
// was being, connected then stays dead for ever, as where the state of connections was lost.
type deadPath struct {
	address string // host:port
	target  string

	mu      sync.Mutex
	dead    bool
	trigger []byte        // what a worker sends, on which the path dies
	died    chan struct{} // closed when it has
	paths   map[*pathConn]struct{}
	closed  bool
	group   sync.WaitGroup
}

// pathConn is one connection over the path.
type pathConn struct {
	near, far net.Conn // far is nil if it came while the path was dead
	dead      bool     // guarded by the path's mutex
}

// startDeadPath starts a path to the server of a database's URL, and returns the URL over it. It ends
// with the test.
func startDeadPath(t *testing.T, database string) (*deadPath, string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &deadPath{address: listener.Addr().String(), target: u.Host, paths: make(map[*pathConn]struct{}), died: make(chan struct{})}
	p.group.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			p.group.Go(func() { p.serve(near) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.mu.Lock()
		p.closed = true
		for c := range p.paths {
			c.close()
		}
		p.mu.Unlock()
		p.group.Wait()
	})
	u.Host = p.address
	return p, u.String()
}

func (c *pathConn) close() {
	_ = c.near.Close()
	if c.far != nil {
		_ = c.far.Close()
	}
}

// die makes the path dead.
func (p *deadPath) die() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dieLocked()
}

func (p *deadPath) dieLocked() {
	if p.dead {
		return
	}
	p.dead, p.trigger = true, nil
	for c := range p.paths {
		c.dead = true
	}
	close(p.died)
}

// dieOn makes the path dead as soon as a worker sends this, which is not passed on.
func (p *deadPath) dieOn(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trigger = []byte(text)
}

// heal lets new connections through.
func (p *deadPath) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead, p.died = false, make(chan struct{})
}

func (p *deadPath) serve(near net.Conn) {
	c := &pathConn{near: near}
	p.mu.Lock()
	dead := p.dead
	c.dead = dead
	if p.closed {
		_ = near.Close()
	}
	p.paths[c] = struct{}{}
	p.mu.Unlock()
	if !dead {
		far, err := net.Dial("tcp", p.target)
		if err != nil {
			c.close()
			return
		}
		p.mu.Lock()
		c.far = far
		if p.closed {
			c.close()
		}
		p.mu.Unlock()
		p.group.Go(func() { p.pass(c, near, far, false) })
	}
	p.pass(c, c.far, near, true)
}

// pass passes on what comes; upstream is what a worker sends.
func (p *deadPath) pass(c *pathConn, to, from net.Conn, upstream bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		if upstream && p.trigger != nil && bytes.Contains(buf[:n], p.trigger) {
			p.dieLocked()
		}
		dead := c.dead
		p.mu.Unlock()
		switch {
		case dead && err == nil:
			continue
		case dead:
			return // the other side does not hear of it
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				c.close()
				return
			}
		}
		if err != nil {
			c.close()
			return
		}
	}
}

// A path to Postgres that died though its connections stand: at rest, in the middle of a read of the
// log, in the middle of a broadcast.
func TestPathToPostgresDies(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	large := fmt.Sprintf(`{"large": %q}`, bytes.Repeat([]byte("x"), 100<<10)) // told of by a stub
	for name, dies := range map[string]struct {
		on    string                                    // what a worker sends
		cause func(t *testing.T, url string, w *worker) // nil: a broadcast over the path
	}{
		"under load":                   {},
		"in the middle of a read":      {"trumpet.read_log(", func(t *testing.T, url string, w *worker) { broadcast(t, pgtest.Connect(t, url), large) }},
		"in the middle of a broadcast": {on: "trumpet.broadcast("},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database, conn := newDatabase(t)
			path, over := startDeadPath(t, database)
			w := startWorker(t, over, "w1")
			clients, begin := dialSixEach(t, []*worker{w}, topics)
			warm(t, w)
			broadcast(t, conn, `"first"`)
			for _, c := range clients {
				c.waitData(t, `"first"`)
			}
			stop := func() {}
			switch {
			case dies.on == "":
				stop = scribble(t, database)
				for _, c := range clients {
					c.waitEvents(t, 50)
				}
				path.die()
			case dies.cause != nil:
				path.dieOn(dies.on)
				dies.cause(t, database, w)
				<-path.died
			default:
				path.dieOn(dies.on)
			}
			answers := postMany(t, w, `"lost on the way"`)
			<-path.died
			began := time.Now()
			for _, c := range clients {
				c.control(t, "stale")
			}
			keep(t, "clients were told that the path is dead", began, noticedWithin)
			notReady(t, w)
			for _, answer := range answers {
				refused(t, "dead", answer)
			}

			path.heal()
			healed := time.Now()
			for _, c := range clients {
				c.control(t, "live")
			}
			keep(t, "live again after the path was", healed, liveWithin)
			w.waitReady(t)
			stop()
			truth := finish(t, conn, clients[0])
			for _, c := range clients {
				c.waitEnd(t)
				c.check(t)
				c.unbroken(t)
				checkEvents(t, c.name, topics, truth, begin, c.events())
			}
		})
	}
}

// The state of all connections is lost in one moment, and new ones work: the worker sees that they do
// before the heartbeat's answer is overdue, for which alone it would wait 8 s.
func TestConnectionsAreForgotten(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	database, conn := newDatabase(t)
	path, over := startDeadPath(t, database)
	w := startWorker(t, over, "w1")
	clients, begin := dialSixEach(t, []*worker{w}, topics)
	warm(t, w)
	path.die()
	path.heal()
	forgotten := time.Now()
	broadcast(t, conn, `"afterwards"`)
	for _, c := range clients {
		c.control(t, "stale")
		c.waitData(t, `"afterwards"`)
	}
	keep(t, "live again after all connections were forgotten", forgotten, answerTimeout-time.Second)
	truth := finish(t, conn, clients[0])
	for _, c := range clients {
		c.waitEnd(t)
		c.check(t)
		c.unbroken(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
	}
}
