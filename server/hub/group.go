package hub

import (
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// group is the live connections that get the same bytes.
type group struct {
	reader  reader
	key     string
	members []*Conn

	// While the shard delivers.
	picks  []pick
	gone   bool   // a column that its filter needs is not there any more
	entry  uint64 // the index's: the event that the rest is about
	before bool
	after  bool
}

// pick is an entry that a group sees.
type pick struct {
	node        *node
	index       int
	transaction int // counts those of a batch
	how         variant
}

// change carries out what a client asked for, now or where its connection is live.
func (s *shard) change(c *Conn, what *Change) {
	c.pending = what
	switch c.state {
	case live:
		s.leave(c)
		b, ok := s.apply(c, nil)
		if !ok {
			return
		}
		s.join(c)
		if len(b) > 0 {
			s.write(c, b)
		}
	case ended:
		c.answer(errEnded)
	default:
		// What was asked for holds from where the connection is live.
	}
}

// apply changes what a connection follows, while it is in no group, and appends the answer. If
// the answer needs a snapshot, a drainer gives it, and false is returned.
func (s *shard) apply(c *Conn, b []byte) ([]byte, bool) {
	what := c.pending
	format := c.reader.format
	if what.refusal != "" {
		c.answer(nil)
		return wire.AppendRefused(b, format, what.Ref, what.refusal), true
	}
	in, err := c.reader.change(what)
	if err != nil {
		c.answer(nil)
		return wire.AppendRefused(b, format, what.Ref, err.Error()), true
	}
	if what.Snapshot && !what.Unsubscribe && s.hub.shots.source != nil {
		c.answer(nil)
		c.adding = &adding{change: what, interests: in, asked: time.Now()}
		c.socket.Hold()
		s.drain(c, s.at.end(), s.at.head, b)
		return nil, false
	}
	former := c.reader.interests
	c.reader.interests = in
	c.answer(nil)
	b = s.results(b, c, former)
	return wire.AppendSubscribed(b, format, what.Ref, in.names, s.at.head), true
}

// answer answers the Change that waits, if one does.
func (c *Conn) answer(err error) {
	if c.pending != nil {
		c.pending.applied <- err
		c.pending = nil
	}
}

// join puts a live connection into its group and on the wheel.
func (s *shard) join(c *Conn) {
	key := c.reader.key(c.reader.format)
	g := s.groups[key]
	if g == nil {
		g = &group{reader: c.reader, key: key}
		s.groups[key] = g
		s.index.add(g)
	}
	// One for all: ten thousand clients with the same interests hold them once.
	c.reader = g.reader
	c.group, c.member = g, len(g.members)
	g.members = append(g.members, c)
	s.wheel.add(c)
}

// leave takes a connection out of its group and off the wheel.
func (s *shard) leave(c *Conn) {
	g := c.group
	if g == nil {
		return
	}
	last := len(g.members) - 1
	g.members[c.member] = g.members[last]
	g.members[c.member].member = c.member
	g.members[last] = nil
	g.members = g.members[:last]
	if last == 0 {
		delete(s.groups, g.key)
		s.index.remove(g)
	}
	c.group = nil
	s.wheel.remove(c)
}

// endGone sends away a group whose filter names a column that is not there any more. Its
// clients come back, and hear then what is wrong with it.
func (s *shard) endGone(g *group) {
	for i := len(g.members) - 1; i >= 0; i-- {
		s.end(g.members[i], trumpet.EndingSchemaChanged)
	}
}
