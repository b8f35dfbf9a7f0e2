package hub

import (
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// entryOverhead is about what an entry takes beside its event's JSON.
const entryOverhead = 352

// notice is a control message in the list.
type notice uint8

const (
	noNotice     notice = iota
	origin              // where the list begins: nobody is told
	resetNotice         // all that was given is void
	rewindNotice        // what was given after an id is void
	staleNotice
	liveNotice
	voidNotice // in the place of an event that was lost: nobody is told
)

// entry is one event, or a notice to everybody, with its encodings: each is made when the
// first connection needs it, and shared.
type entry struct {
	event   *trumpet.Event // nil for a notice
	notice  notice
	encoded [wire.Formats][variants][2]atomic.Pointer[[]byte]
}

// more reports whether further events of the same transaction follow.
func (e *entry) more() bool { return e.event != nil && e.event.More }

// live reports whether the entry is only for those who were there when it came.
func (e *entry) live() bool { return e.event == nil || e.event.ID.IsZero() }

func (e *entry) slot(format wire.Format, how variant, more bool) *atomic.Pointer[[]byte] {
	if more {
		return &e.encoded[format][how][1]
	}
	return &e.encoded[format][how][0]
}

// encode returns the entry's bytes; they are never changed. Two shards may do the work at
// once, but only one result is kept.
func (e *entry) encode(format wire.Format, how variant, more bool) []byte {
	slot := e.slot(format, how, more)
	if b := slot.Load(); b != nil {
		return *b
	}
	var b []byte
	switch {
	case how == anonymous:
		event := *e.event
		event.ID = trumpet.EventID{}
		b = wire.EncodeEvent(format, wire.Whole, &event, more)
	case e.event != nil:
		b = wire.EncodeEvent(format, wireVariants[how], e.event, more)
	case e.notice == staleNotice:
		b = wire.AppendStale(nil, format)
	case e.notice == liveNotice:
		b = wire.AppendLive(nil, format)
	}
	if !slot.CompareAndSwap(nil, &b) {
		b = *slot.Load()
	}
	return b
}

// node is what came at once. Only next and void change after it was linked.
type node struct {
	seq      uint64 // 1, 2, 3, …
	before   trumpet.EventID
	head     trumpet.EventID // the id up to which all was given with this node
	entries  []entry
	notice   notice
	loss     *loss // of a rewind
	mute     bool  // a rewind that a later one overtook: that one tells
	stale    bool  // Postgres is not heard, since here or before
	appended time.Time
	size     int64
	void     atomic.Bool // a rewind put a copy in its place
	next     atomic.Pointer[node]
}

// cursor is a place between entries: before entry index of node seq.
type cursor struct {
	seq   uint64
	index int
}

// before reports whether c stands before other.
func (c cursor) before(other cursor) bool {
	return c.seq < other.seq || c.seq == other.seq && c.index < other.index
}

func (n *node) start() cursor { return cursor{n.seq, 0} }
func (n *node) end() cursor   { return cursor{n.seq + 1, 0} }

// tells reports whether what a client is told here depends on what it was given before.
func (n *node) tells() bool { return n.notice == resetNotice || n.notice == rewindNotice }

// upTo returns the newest id among what stands before an index.
func (n *node) upTo(index int) trumpet.EventID {
	for i := min(index, len(n.entries)) - 1; i >= 0; i-- {
		if e := n.entries[i].event; e != nil && !e.ID.IsZero() {
			return e.ID
		}
	}
	return n.before
}

// newer returns the newer of two ids.
func newer(a, b trumpet.EventID) trumpet.EventID {
	if b.Compare(a) > 0 {
		return b
	}
	return a
}

func eventNode(events []trumpet.Event, head trumpet.EventID) *node {
	n := &node{head: head, entries: make([]entry, len(events)), size: entryOverhead}
	for i := range events {
		e := &events[i]
		n.entries[i].event = e
		n.size += eventSize(e)
	}
	return n
}

// payload is about how long an event is in any format.
func payload(e *trumpet.Event) int {
	return len(e.Topic) + len(e.Key) + len(e.New) + len(e.Old) + len(e.Data)
}

// eventSize is about what an event takes with two encodings of it.
func eventSize(e *trumpet.Event) int64 { return entryOverhead + 3*int64(payload(e)) }

func noticeNode(what notice, head trumpet.EventID) *node {
	n := &node{head: head, notice: what, size: entryOverhead}
	if what == staleNotice || what == liveNotice {
		n.entries = []entry{{notice: what}}
	}
	return n
}

// list is the recent nodes and their index. One goroutine appends, all others read.
type list struct {
	maxBytes  int64
	maxEvents int

	mu      sync.Mutex
	nodes   []*node // contiguous sequence numbers
	bytes   int64
	events  int
	moved   chan struct{} // closed by the next append; nil while nobody waits
	resetAt uint64        // the newest reset's node
	tail    atomic.Pointer[node]
}

// append links n. A void list forgets all that was before.
func (l *list) append(n *node, void bool) {
	tail := l.tail.Load()
	n.seq, n.before, n.appended = 1, n.head, time.Now()
	if tail != nil {
		n.seq = tail.seq + 1
		if !void {
			n.before = tail.head
		}
	}
	l.mu.Lock()
	if void {
		l.nodes, l.bytes, l.events = nil, 0, 0
		l.resetAt = n.seq
	}
	moved := l.push(n)
	l.mu.Unlock()
	l.tail.Store(n)
	if tail != nil {
		tail.next.Store(n)
	}
	if moved != nil {
		close(moved)
	}
}

// push makes n the newest node and returns what is closed once it is linked; with mu held.
func (l *list) push(n *node) (moved chan struct{}) {
	l.nodes = append(l.nodes, n)
	l.bytes += n.size
	l.events += max(1, len(n.entries))
	l.trim()
	moved, l.moved = l.moved, nil
	return moved
}

// trim lets go what is beyond the bounds, but never the newest node.
func (l *list) trim() {
	gone := 0
	for gone < len(l.nodes)-1 && (l.bytes > l.maxBytes || l.events > l.maxEvents) {
		l.bytes -= l.nodes[gone].size
		l.events -= max(1, len(l.nodes[gone].entries))
		l.nodes[gone] = nil
		gone++
	}
	l.nodes = l.nodes[gone:]
}

// change returns a channel that is closed at the next append.
func (l *list) change() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.moved == nil {
		l.moved = make(chan struct{})
	}
	return l.moved
}

// head returns the id up to which all was given.
func (l *list) head() trumpet.EventID {
	if tail := l.tail.Load(); tail != nil {
		return tail.head
	}
	return trumpet.EventID{}
}

// place says where a cursor is.
type place uint8

const (
	inList  place = iota
	atEnd         // behind the newest node
	expired       // its node was let go
)

// at returns the node that c points into. If c expired because of a reset, the reset's
// node is returned instead: it says all that there is to say.
func (l *list) at(c cursor) (*node, place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.nodes) == 0 {
		return nil, atEnd
	}
	first := l.nodes[0].seq
	switch {
	case c.seq < first && first <= l.resetAt:
		return l.nodes[0], inList
	case c.seq < first:
		return nil, expired
	case c.seq-first >= uint64(len(l.nodes)):
		return nil, atEnd
	}
	return l.nodes[c.seq-first], inList
}

// found says what the list knows of an id.
type found uint8

const (
	foundHere  found = iota
	foundAhead       // newer than all that came yet
	foundElse        // only the log can tell
)

// find returns the cursor behind the event or head with this id. Nothing but an exact
// match counts: an id of another history must not pass.
func (l *list) find(id trumpet.EventID) (cursor, found) {
	l.mu.Lock()
	i := sort.Search(len(l.nodes), func(i int) bool { return l.nodes[i].head.Compare(id) >= 0 })
	if i == len(l.nodes) {
		l.mu.Unlock()
		return cursor{}, foundAhead
	}
	n := l.nodes[i]
	l.mu.Unlock()
	switch {
	case id == n.head:
		return n.end(), foundHere
	case id == n.before && n.notice == noNotice:
		return n.start(), foundHere
	}
	for j := range n.entries {
		if e := n.entries[j].event; e != nil && e.ID == id && !id.IsZero() {
			return cursor{n.seq, j + 1}, foundHere
		}
	}
	return cursor{}, foundElse
}
