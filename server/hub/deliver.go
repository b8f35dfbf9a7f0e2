package hub

import (
	"context"

	"github.com/trumpet-realtime/trumpet"
)

const (
	// chunkBytes is about how much is written at once.
	chunkBytes = 64 << 10
	// turnBytes is about how much a shard gives before it looks at its commands again.
	turnBytes = 1 << 20
)

// frame is one event or notice in an output: its bytes, which nobody changes, and where
// it stands.
type frame struct {
	bytes []byte
	node  *node
	index int
}

// output is frames put together to be written at once. It is reused.
type output struct {
	frames []frame
	size   int
	run    []byte // the frames, as long as each begins in memory where the one before ends
	joined []byte
	own    bool // not one of those that are shared
}

func (o *output) add(b []byte, n *node, index int) {
	switch {
	case len(o.frames) == 0:
		o.run = b
	case o.run != nil && cap(o.run) > len(o.run) && len(b) > 0 && &o.run[:len(o.run)+1][len(o.run)] == &b[0]:
		o.run = o.run[:len(o.run)+len(b)]
	default:
		o.run = nil
	}
	o.frames = append(o.frames, frame{b, n, index})
	o.size += len(b)
}

// takes reports whether another frame of that size may be added.
func (o *output) takes(size int) bool { return o.size == 0 || o.size+size <= chunkBytes }

// bytes returns the frames as one piece, valid until the next call.
func (o *output) bytes() []byte {
	if o.run != nil {
		return o.run
	}
	o.joined = o.joined[:0]
	for i := range o.frames {
		o.joined = append(o.joined, o.frames[i].bytes...)
	}
	return o.joined
}

// cut returns where a connection is that took only n bytes: behind the frame at index of
// frames, of which rest is left. That frame may be whole.
func (o *output) cut(n int) (index int, rest []byte) {
	for index < len(o.frames)-1 && n >= len(o.frames[index].bytes) {
		n -= len(o.frames[index].bytes)
		index++
	}
	return index, o.frames[index].bytes[n:]
}

// behind returns the cursor behind a frame, and the newest id up to there.
func (f *frame) behind() (cursor, trumpet.EventID) {
	return cursor{f.node.seq, f.index + 1}, f.node.upTo(f.index + 1)
}

func (o *output) reset() {
	clear(o.frames)
	o.frames, o.size, o.run = o.frames[:0], 0, nil
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
	next := s.at.next.Load()
	if next == nil {
		return false
	}
	if next.tells() {
		s.tell(next)
		return next.next.Load() != nil
	}
	// Kept, because a rewind may lead the way elsewhere meanwhile.
	for size := int64(0); next != nil && !next.tells() && size < turnBytes; next = next.next.Load() {
		s.batch = append(s.batch, next)
		size += next.size
	}
	s.pick()
	for _, g := range s.index.picked {
		s.deliverTo(g)
	}
	clear(s.index.picked)
	s.index.picked = s.index.picked[:0]
	s.at = s.batch[len(s.batch)-1]
	clear(s.batch)
	s.batch = s.batch[:0]
	return next != nil
}

// pick finds out which groups see what of the batch.
func (s *shard) pick() {
	transaction := 0
	for _, n := range s.batch {
		for i := range n.entries {
			e := &n.entries[i]
			switch {
			case e.event != nil:
				s.index.pick(n, i, transaction)
				if e.event.Op == trumpet.OpResult {
					s.retain(e.event)
				}
			case e.notice != voidNotice:
				for _, g := range s.groups {
					s.index.give(g, n, i, transaction, whole)
				}
			}
			if !e.more() {
				transaction++
			}
		}
	}
}

// deliverTo gives a group what it sees of the batch. All but the last that it sees of a
// transaction are encoded with more.
func (s *shard) deliverTo(g *group) {
	for i := range g.picks {
		p := &g.picks[i]
		more := i+1 < len(g.picks) && g.picks[i+1].transaction == p.transaction
		b := p.node.entries[p.index].encode(g.reader.format, p.how, more)
		if !s.out.takes(len(b)) {
			s.flush(g)
		}
		s.out.add(b, p.node, p.index)
	}
	s.flush(g)
	clear(g.picks)
	g.picks = g.picks[:0]
	if g.gone {
		s.endGone(g)
	}
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
			s.lag(c, n)
		}
	}
	s.hub.stats.wrote(writes, written)
	s.hub.stats.deliveries.Add(uint64(writes * len(s.out.frames)))
	s.out.reset()
}

// lag gives a connection that took only n bytes of the output to a drainer.
func (s *shard) lag(c *Conn, n int) {
	index, rest := s.out.cut(n)
	at, reach := s.out.frames[index].behind()
	s.drain(c, at, reach, rest)
}

// catchUp gives a connection what stands between its cursor and the shard's place, if that
// is little, and reports whether it is there now. If not, it has a drainer again.
func (s *shard) catchUp(c *Conn) bool {
	defer s.out.reset()
	reach := c.since
	for at := c.cursor; at.seq <= s.at.seq; {
		n, where := s.hub.list.at(at)
		here := where == inList && n.seq == at.seq // else it skipped to a reset
		replay := here && n.seq <= c.attached
		whole := here && (replay || !n.tells()) &&
			c.reader.each(&s.index.glance, n.entries, at.index, replay, func(b []byte, index int) bool {
				if !s.out.takes(len(b)) {
					return false
				}
				s.out.add(b, n, index)
				return true
			})
		if !whole {
			// Also where a filter's column is gone: the drainer gives what stands before.
			c.socket.Hold()
			s.drain(c, c.cursor, c.since, nil)
			return false
		}
		at, reach = n.end(), newer(reach, n.head)
	}
	c.cursor, c.since = s.at.end(), reach
	if s.out.size == 0 {
		return true
	}
	b := s.out.bytes()
	n, err := c.socket.TryWrite(b)
	s.hub.stats.wrote(1, n)
	s.hub.stats.deliveries.Add(uint64(len(s.out.frames)))
	switch {
	case err != nil:
		s.fail(c)
		return false
	case n < len(b):
		s.lag(c, n)
		return false
	}
	return true
}

// drain gives a connection whose socket is held to a drainer. at is its cursor, and reach
// the newest id that it was given, lost or not.
func (s *shard) drain(c *Conn, at cursor, reach trumpet.EventID, rest []byte) {
	s.leave(c)
	c.state, c.cursor, c.since, c.rest = drained, at, reach, rest
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
