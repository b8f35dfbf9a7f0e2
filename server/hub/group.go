package hub

import "github.com/trumpet-realtime/trumpet/server/wire"

// group is the live connections that get the same bytes.
type group struct {
	reader  reader
	key     string
	members []*Conn
}

// change carries out what a client asked for, now or where its connection is live.
func (s *shard) change(c *Conn, what *wire.Command) {
	c.pending = what
	switch c.state {
	case live:
		s.leave(c)
		b := s.apply(c, nil)
		s.join(c)
		if len(b) > 0 {
			s.write(c, b)
		}
	case ended:
		c.answer(errEnded)
	default:
		// The new topics hold from where the connection is live.
	}
}

// apply changes what a connection follows, while it is in no group.
func (s *shard) apply(c *Conn, b []byte) []byte {
	reader, err := c.reader.change(c.pending)
	c.reader = reader
	c.answer(err)
	if err != nil {
		return b
	}
	return wire.AppendSubscribed(b, reader.format, reader.topics.names(), s.at.head)
}

// answer answers the Change that waits, if one does.
func (c *Conn) answer(err error) {
	if c.pending != nil {
		c.pending = nil
		c.applied <- err
	}
}

// join puts a live connection into its group and on the wheel.
func (s *shard) join(c *Conn) {
	key := c.reader.topics.key(c.reader.format)
	g := s.groups[key]
	if g == nil {
		g = &group{reader: c.reader, key: key}
		s.groups[key] = g
	}
	// One set for all: ten thousand clients with the same topics hold it once.
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
	}
	c.group = nil
	s.wheel.remove(c)
}
