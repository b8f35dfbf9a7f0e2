package hub

import (
	"context"
)

const (
	// chunkBytes is about how much is written at once.
	chunkBytes = 64 << 10
	// turnBytes is about how much a shard gives before it looks at its commands again.
	turnBytes = 1 << 20
)

// frame is one event or notice in an output: its bytes, which nobody changes, and where
// in the list it stands.
type frame struct {
	bytes []byte
	at    cursor
}

// output is frames put together to be written at once. It is reused.
type output struct {
	frames []frame
	size   int
	joined []byte
}

func (o *output) add(b []byte, at cursor) {
	o.frames = append(o.frames, frame{b, at})
	o.size += len(b)
}

// bytes returns the frames as one piece, valid until the next call.
func (o *output) bytes() []byte {
	if len(o.frames) == 1 {
		return o.frames[0].bytes
	}
	o.joined = o.joined[:0]
	for i := range o.frames {
		o.joined = append(o.joined, o.frames[i].bytes...)
	}
	return o.joined
}

// cut returns where a connection is that was given n bytes: its cursor, and what is left
// of the frame that was cut.
func (o *output) cut(n int) (cursor, []byte) {
	for i := range o.frames {
		f := &o.frames[i]
		switch {
		case n == 0:
			return f.at, nil
		case n < len(f.bytes):
			return cursor{f.at.seq, f.at.index + 1}, f.bytes[n:]
		}
		n -= len(f.bytes)
	}
	last := o.frames[len(o.frames)-1].at
	return cursor{last.seq, last.index + 1}, nil
}

func (o *output) reset() {
	clear(o.frames)
	o.frames, o.size = o.frames[:0], 0
	if cap(o.joined) > 4*chunkBytes {
		o.joined = nil
	}
}

// deliver gives the new nodes to all that are live, and reports whether there are more.
func (s *shard) deliver() bool {
	if s.at == nil {
		s.hub.list.mu.Lock()
		if len(s.hub.list.nodes) > 0 {
			s.at = s.hub.list.nodes[0]
		}
		s.hub.list.mu.Unlock()
		if s.at == nil {
			return false
		}
		s.begin()
	}
	first := s.at.next.Load()
	if first == nil {
		return false
	}
	last, size := first, first.size
	for next := last.next.Load(); next != nil && size < turnBytes; next = last.next.Load() {
		last, size = next, size+next.size
	}
	for _, g := range s.groups {
		s.deliverTo(g, first, last)
	}
	s.at = last
	return last.next.Load() != nil
}

// deliverTo gives the nodes from first to last to one group.
func (s *shard) deliverTo(g *group, first, last *node) {
	for n := first; ; n = n.next.Load() {
		seq := n.seq
		g.reader.each(n.entries, 0, false, func(b []byte, index int) bool {
			if s.out.size > 0 && s.out.size+len(b) > chunkBytes {
				s.flush(g)
			}
			s.out.add(b, cursor{seq, index})
			return true
		})
		if n == last {
			break
		}
	}
	s.flush(g)
}

// flush writes what was put together to every member of the group. Nothing here allocates
// or waits.
func (s *shard) flush(g *group) {
	if s.out.size == 0 {
		return
	}
	b := s.out.bytes()
	writes, written := 0, 0
	// From the end, because a connection that lags or fails is replaced by the last one.
	for i := len(g.members) - 1; i >= 0; i-- {
		c := g.members[i]
		n, err := c.socket.TryWrite(b)
		writes++
		written += n
		switch {
		case err != nil:
			s.fail(c)
		case n < len(b):
			at, rest := s.out.cut(n)
			s.drain(c, at, rest)
		}
	}
	s.hub.stats.wrote(writes, written)
	s.hub.stats.deliveries.Add(uint64(writes * len(s.out.frames)))
	s.out.reset()
}

// catchUp gives a connection what stands between its cursor and the shard's place, if that
// is little, and reports whether it is there now. If not, it has a drainer again.
func (s *shard) catchUp(c *Conn) bool {
	from := c.cursor
	for at := from; at.seq <= s.at.seq; {
		n, where := s.hub.list.at(at)
		if where != inList {
			s.out.reset()
			c.socket.Hold()
			s.drain(c, from, nil)
			return false
		}
		index := at.index
		if n.seq != at.seq { // skipped to a reset
			index = 0
		}
		whole := c.reader.each(n.entries, index, n.seq <= c.attached, func(b []byte, index int) bool {
			if s.out.size > 0 && s.out.size+len(b) > chunkBytes {
				return false
			}
			if n.notice == resetNotice {
				c.resumed = c.resumed && c.ready
			}
			s.out.add(b, cursor{n.seq, index})
			return true
		})
		if !whole {
			s.out.reset()
			c.socket.Hold()
			s.drain(c, from, nil)
			return false
		}
		at = n.end()
	}
	c.cursor = s.at.end()
	if s.out.size == 0 {
		return true
	}
	defer s.out.reset()
	b := s.out.bytes()
	n, err := c.socket.TryWrite(b)
	s.hub.stats.wrote(1, n)
	s.hub.stats.deliveries.Add(uint64(len(s.out.frames)))
	switch {
	case err != nil:
		s.fail(c)
		return false
	case n < len(b):
		at, rest := s.out.cut(n)
		s.drain(c, at, rest)
		return false
	}
	return true
}

// drain gives a connection whose socket is held to a drainer.
func (s *shard) drain(c *Conn, at cursor, rest []byte) {
	s.leave(c)
	c.state, c.cursor, c.rest = drained, at, rest
	ctx, stop := context.WithCancel(s.hub.ctx)
	c.stop = stop
	if c.ready {
		s.hub.stats.lagging.Add(1)
		s.hub.stats.lagged.Add(1)
	}
	s.hub.drainers.Go(func() {
		defer stop()
		c.drain(ctx)
		s.post(command{kind: returned, conn: c})
	})
}
