package hub

import (
	"sync"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// kind is what a shard is asked to do.
type kind uint8

const (
	attach kind = iota
	detach
	change
	end
	blocked  // the socket wants to be written by a drainer
	returned // the drainer gives the connection back
	drainAll
	cutAll
)

type command struct {
	kind   kind
	conn   *Conn
	change *Change
	ending trumpet.Ending
	over   time.Duration
}

// shard is one loop and its connections.
type shard struct {
	hub  *Hub
	wake chan struct{}

	// A connection has at most one command of each kind here, which is its bound.
	mu    sync.Mutex
	inbox []command

	// The loop's own.
	commands []command // taken from inbox
	later    []*Conn   // that are ahead of at, or found it void
	batch    []*node   // given at once
	conns    map[*Conn]struct{}
	waiting  map[*Conn]struct{}
	groups   map[string]*group
	index    index
	retained map[string]*entry // by topic: the newest result of a live query
	at       *node             // given to all that are live; nil before the first Reset
	wheel    wheel
	away     *departure    // not nil once all are sent away
	cut      bool          // Close was called
	hold     time.Duration // how long the next events wait for others
	out      output
}

func newShard(h *Hub) *shard {
	return &shard{
		hub:      h,
		wake:     make(chan struct{}, 1),
		conns:    make(map[*Conn]struct{}),
		waiting:  make(map[*Conn]struct{}),
		groups:   make(map[string]*group),
		index:    newIndex(),
		retained: make(map[string]*entry),
		wheel:    newWheel(h.config.Ping),
	}
}

// poke wakes the loop; a wake too many is harmless.
func (s *shard) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *shard) post(c command) {
	s.mu.Lock()
	s.inbox = append(s.inbox, c)
	s.mu.Unlock()
	s.poke()
}

func (s *shard) run() {
	ticker := time.NewTicker(s.wheel.tick)
	defer ticker.Stop()
	held := time.NewTimer(0)
	defer held.Stop()
	var departures <-chan time.Time
	for {
		select {
		case <-s.wake:
		case <-held.C:
		case now := <-ticker.C:
			s.tick(now)
		case now := <-departures:
			s.depart(now)
		}
		if s.step() {
			s.poke() // by way of the select, so that timers have their turn
		}
		if s.hold > 0 {
			held.Reset(s.hold)
		}
		if s.cut && len(s.conns) == 0 {
			return
		}
		if s.away != nil && departures == nil {
			t := time.NewTicker(departureTick)
			defer t.Stop()
			departures = t.C
		}
	}
}

// step does a bounded amount of work and reports whether there may be more. Commands are
// taken before events are given and carried out after it: a drainer that gives its
// connection back then is not ahead of the shard, unless the shard is behind itself.
func (s *shard) step() bool {
	s.mu.Lock()
	s.commands, s.inbox = s.inbox, s.commands[:0]
	s.mu.Unlock()
	behind := false
	if s.hold = s.held(); s.hold <= 0 {
		behind = s.deliver()
	}
	ahead := s.later
	s.later = nil
	for _, c := range ahead {
		s.rejoin(c)
	}
	for i := range s.commands {
		s.carryOut(&s.commands[i])
	}
	done := len(s.commands)
	clear(s.commands)
	return behind || done > 0
}

// held returns how long the next events still wait for others.
func (s *shard) held() time.Duration {
	if s.hub.config.MaxDelay == 0 || s.at == nil || s.away != nil {
		return 0
	}
	next := s.at.next.Load()
	if next == nil || next.notice != noNotice {
		return 0
	}
	return s.hub.config.MaxDelay - time.Since(next.appended)
}

func (s *shard) carryOut(do *command) {
	c := do.conn
	switch do.kind {
	case attach:
		s.attach(c)
	case detach:
		s.detach(c)
	case change:
		s.change(c, do.change)
	case end:
		s.end(c, do.ending)
	case blocked:
		c.stuck = true
		s.unstick(c)
	case returned:
		if c.ready {
			s.hub.stats.lagging.Add(-1)
		}
		s.rejoin(c)
	case drainAll:
		s.sendAway(do.over)
	case cutAll:
		s.cutAll()
	}
}

// begin places the newcomers that waited for the first Reset.
func (s *shard) begin() {
	for c := range s.waiting {
		delete(s.waiting, c)
		s.place(c)
	}
}

func (s *shard) attach(c *Conn) {
	s.conns[c] = struct{}{}
	switch {
	case s.cut:
		c.state = ended
		_ = c.socket.Close()
		s.forget(c)
	case s.away != nil:
		s.end(c, trumpet.EndingDraining)
	case s.at == nil:
		c.state, c.deadline = waiting, time.Now().Add(s.hub.config.Patience)
		s.waiting[c] = struct{}{}
	default:
		s.place(c)
	}
}

// place gives a newcomer its place: at the shard's, or where it left off.
func (s *shard) place(c *Conn) {
	c.attached = s.at.seq
	if c.snapshot && (!c.resume || c.refused != "") {
		c.socket.Hold()
		s.drain(c, s.at.end(), s.at.head, nil)
		return
	}
	if !c.resume || c.refused != "" {
		c.placed = true
		s.rejoin(c)
		return
	}
	cursor, what := s.hub.list.find(c.since)
	if what != foundHere {
		c.socket.Hold()
		s.drain(c, cursor, c.since, nil)
		return
	}
	c.cursor, c.placed, c.resumed = cursor, true, true
	s.hub.stats.resumes[fromRing].Add(1)
	s.rejoin(c)
}

// rejoin takes back a connection from its drainer, which holds its cursor no more.
func (s *shard) rejoin(c *Conn) {
	c.state = live
	ending := c.ending.Load()
	switch {
	case c.detached:
		c.state = ended
		s.forget(c)
	case c.lost:
		c.state = ended
		c.answer(errEnded)
	case ending != nil:
		s.end(c, *ending)
	case s.at.void.Load(), c.cursor.seq > s.at.seq+1 || c.cursor.seq == s.at.seq+1 && c.cursor.index > 0:
		s.wait(c)
	case c.refused != "", !c.resume && !c.snapshot && !c.ready:
		s.settle(c)
	case !s.catchUp(c):
	case s.at.void.Load(), c.since.Compare(s.at.head) > 0:
		// Only one of the two was given what is lost now. The rewind comes next.
		s.wait(c)
	default:
		s.settle(c)
	}
}

// wait keeps a connection until the shard has moved on.
func (s *shard) wait(c *Conn) {
	c.state = drained
	s.later = append(s.later, c)
}

// settle makes a connection live that has all that the shard has given, and tells it so.
func (s *shard) settle(c *Conn) {
	c.state = live
	var b []byte
	format, head := c.reader.format, s.at.head
	if c.refused != "" {
		s.hub.stats.reset(c.refused)
		b = wire.AppendReset(b, format, head, c.refused)
		c.refused, c.resumed = "", false
	}
	if !c.ready {
		c.ready = true
		if !c.resumed {
			b = s.results(b, c, nil)
		}
		b = wire.AppendReady(b, format, head, c.resumed, s.hub.config.Worker)
		if s.at.stale {
			b = wire.AppendStale(b, format)
		}
	}
	if c.added != nil {
		b = s.results(b, c, c.added.former)
		b = wire.AppendSubscribed(b, format, c.added.change.Ref, c.reader.names, head)
		c.added = nil
	}
	if c.pending != nil {
		var ok bool
		if b, ok = s.apply(c, b); !ok {
			return
		}
	}
	s.join(c)
	if len(b) > 0 {
		s.write(c, b)
	}
	s.unstick(c)
}

// unstick gives a live connection whose socket waits to write a control frame a drainer.
// All others have one, or have ended.
func (s *shard) unstick(c *Conn) {
	if c.stuck && c.state == live {
		c.stuck = false
		c.socket.Hold()
		s.drain(c, s.at.end(), s.at.head, nil)
	}
}

// write writes control messages to a live connection.
func (s *shard) write(c *Conn, b []byte) {
	n, err := c.socket.TryWrite(b)
	s.hub.stats.wrote(1, n)
	switch {
	case err != nil:
		s.fail(c)
	case n < len(b):
		s.drain(c, s.at.end(), s.at.head, b[n:])
	}
}

// end sends a client away.
func (s *shard) end(c *Conn, e trumpet.Ending) {
	switch c.state {
	case ended:
		return
	case drained:
		if c.ending.CompareAndSwap(nil, &e) {
			c.stop()
		}
		return
	}
	delete(s.waiting, c)
	s.leave(c)
	s.hub.stats.ended(e)
	b := wire.AppendEnding(nil, c.reader.format, e)
	n, err := c.socket.TryWrite(b)
	switch {
	case err != nil:
		s.fail(c)
	case n < len(b):
		c.doneAfter = true
		s.drain(c, c.cursor, c.since, b[n:])
	default:
		c.state = ended
		c.answer(errEnded)
		c.socket.Finish()
	}
}

// fail lets go of a connection whose socket is broken. Its reader notices too.
func (s *shard) fail(c *Conn) {
	s.leave(c)
	c.state = ended
	c.answer(errEnded)
	_ = c.socket.Close()
}

func (s *shard) detach(c *Conn) {
	c.detached = true
	if c.state == drained {
		c.stop()
		return
	}
	delete(s.waiting, c)
	s.leave(c)
	c.state = ended
	s.forget(c)
}

// forget is the end of a connection in the hub.
func (s *shard) forget(c *Conn) {
	if _, ok := s.conns[c]; !ok {
		return
	}
	delete(s.conns, c)
	c.answer(errEnded)
	s.hub.detached(c)
	close(c.gone)
}

// cutAll ends the shard: drainers are waited for, everybody else is dropped.
func (s *shard) cutAll() {
	s.cut = true
	for c := range s.conns {
		_ = c.socket.Close()
		s.detach(c)
	}
}
