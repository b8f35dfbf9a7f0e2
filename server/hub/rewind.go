package hub

import (
	"sort"
	"strings"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// loss is what a rewind made void. It never changes.
type loss struct {
	to      trumpet.EventID            // what was given up to here stands
	topics  map[string]trumpet.EventID // the oldest event that each topic lost
	unknown bool                       // some of it had left the list: any topic may have lost some
}

// concerns reports whether one that follows these topics, and was given all up to reach, has
// something of what was lost. It does not matter where its connection began: one that began
// behind a lost event fetched its state when that event was part of it.
func (l *loss) concerns(topics map[string]*view, reach trumpet.EventID) bool {
	if reach.Compare(l.to) <= 0 {
		return false
	}
	if l.unknown {
		return true
	}
	if len(l.topics) < len(topics) {
		for topic, oldest := range l.topics {
			if _, ok := topics[topic]; ok && oldest.Compare(reach) <= 0 {
				return true
			}
		}
		return false
	}
	for topic := range topics {
		if oldest, ok := l.topics[topic]; ok && oldest.Compare(reach) <= 0 {
			return true
		}
	}
	return false
}

// rewind voids what the list has after to, and appends n, which says so.
//
// Each node that goes on beyond to is replaced by a copy with the same sequence number and
// the same indices, in which what was lost is void; so every cursor keeps its meaning, heads
// stay in order, and nobody finds a lost id. The shards that stand in the old nodes, or step
// into them in this moment, go on over the old ones' next pointers, give what is there, and
// come to n as well: the node before n, old or copy, tells them whether they did.
func (l *list) rewind(n *node, to trumpet.EventID) {
	tail := l.tail.Load()
	n.seq, n.before, n.head, n.appended = tail.seq+1, to, to, time.Now()
	n.loss = &loss{to: to, topics: make(map[string]trumpet.EventID)}

	l.mu.Lock()
	first := sort.Search(len(l.nodes), func(i int) bool { return l.nodes[i].head.Compare(to) > 0 })
	n.loss.unknown = first == 0 && l.nodes[0].before.Compare(to) > 0
	var before, replaced, last *node
	if first > 0 {
		before = l.nodes[first-1]
	}
	for i, old := range l.nodes[first:] {
		stands := old.until(to, n.loss)
		old.void.Store(true)
		if last == nil {
			replaced = stands
		} else {
			last.next.Store(stands)
		}
		l.bytes += stands.size - old.size
		l.nodes[first+i], last = stands, stands
	}
	if last != nil {
		last.next.Store(n)
	}
	n.size += int64(len(n.loss.topics)) * entryOverhead
	moved := l.push(n)
	l.mu.Unlock()

	l.tail.Store(n)
	tail.next.Store(n)
	if before != nil && replaced != nil {
		before.next.Store(replaced)
	}
	if moved != nil {
		close(moved)
	}
}

// until returns a copy of the node without the events after to, which are noted in lost.
func (n *node) until(to trumpet.EventID, lost *loss) *node {
	stands := &node{
		seq: n.seq, before: n.before, head: to, entries: make([]entry, len(n.entries)),
		notice: n.notice, loss: n.loss, mute: n.notice == rewindNotice, stale: n.stale, appended: n.appended, size: n.size,
	}
	if stands.before.Compare(to) > 0 {
		stands.before = to
	}
	for i := range n.entries {
		e := &n.entries[i]
		stands.entries[i].event, stands.entries[i].notice = e.event, e.notice
		if e.event == nil || e.event.ID.Compare(to) <= 0 {
			continue
		}
		stands.entries[i].event, stands.entries[i].notice = nil, voidNotice
		stands.size -= eventSize(e.event) - entryOverhead
		if _, ok := lost.topics[e.event.Topic]; !ok {
			lost.topics[strings.Clone(e.event.Topic)] = e.event.ID // ids come in order
		}
	}
	return stands
}

// concerns reports whether a client that was given all up to reach must fetch its state
// anew at this node.
func (n *node) concerns(r *reader, reach trumpet.EventID) bool {
	return n.notice == resetNotice || n.loss.concerns(r.views, reach)
}

// passed returns what reach is behind this node.
func (n *node) passed(reach trumpet.EventID) trumpet.EventID {
	switch {
	case n.notice == resetNotice:
		return n.head
	case n.notice == rewindNotice && reach.Compare(n.loss.to) > 0:
		// Not head: a later rewind may have gone further back, and comes yet.
		return n.loss.to
	}
	return newer(reach, n.head)
}

// verdict is what a client that is live, or was, is told where something became void.
func (n *node) verdict(format wire.Format, concerned bool, worker string) []byte {
	var b []byte
	if concerned {
		b = wire.AppendReset(b, format, n.head, wire.ReasonLost)
	}
	return wire.AppendReady(b, format, n.head, !concerned, worker)
}

// tell tells all live connections what became void at n, the next node.
func (s *shard) tell(n *node) {
	reach := s.at.head
	s.at = n
	s.forgetResults(n)
	if n.mute {
		return // who comes here over copies was given nothing of what was lost
	}
	var verdicts [wire.Formats][2][]byte
	for _, g := range s.groups {
		concerned := n.concerns(&g.reader, reach)
		slot := &verdicts[g.reader.format][0]
		if concerned {
			slot = &verdicts[g.reader.format][1]
		}
		if *slot == nil {
			*slot = n.verdict(g.reader.format, concerned, s.hub.config.Worker)
		}
		if concerned {
			s.hub.stats.resetAll(wire.ReasonLost, len(g.members))
		}
		// From the end, because a connection that lags or fails is replaced by the last one.
		for i := len(g.members) - 1; i >= 0; i-- {
			s.hub.stats.deliveries.Add(1)
			s.write(g.members[i], *slot)
		}
	}
}

// tell tells the drainer's client what became void at n. One that is not live yet is told
// only that something is missing, and ready follows where it becomes live; but if its place
// was lost it is set back at once, because ids that it takes for old ones may follow.
func (d *drainer) tell(n *node) error {
	reach, format := d.since, d.reader.format
	if n.notice == resetNotice && n.seq <= d.attached && !d.ready {
		return nil
	}
	concerned := n.concerns(&d.reader, reach) || d.owed
	if concerned && d.snapshot && !d.ready {
		return d.refuse(wire.ReasonLost)
	}
	if d.owed = concerned && n.mute; n.mute {
		return nil
	}
	if concerned {
		d.hub.stats.reset(wire.ReasonLost)
	}
	var b []byte
	switch {
	case d.ready || !concerned && reach.Compare(n.loss.to) > 0:
		b = n.verdict(format, concerned, d.hub.config.Worker)
	case concerned:
		d.resumed = false
		b = wire.AppendReset(nil, format, n.head, wire.ReasonLost)
	default:
		return nil
	}
	d.behind = n.appended
	d.hub.stats.deliveries.Add(1)
	return d.write(b)
}
