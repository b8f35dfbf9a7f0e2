package live

import (
	"sync"

	"github.com/trumpet-realtime/trumpet"
)

// notes is what the bus told and the runner has not looked at yet. Its room is bounded by the topics
// that live queries depend on, and by what their aggregates may hold.
type notes struct {
	wake chan struct{} // one slot: look

	mu      sync.Mutex
	topics  map[string]int64 // of interest: the newest position of a change; 0 for none
	feeds   map[string][]*feed
	known   map[string]int64 // versions of definitions
	changed bool             // one of the topics did
	unsure  bool             // all may have changed: the log began again, or lost what was given
	look    bool             // the definitions may be others
	free    bool             // a heartbeat found the duty free, or it is likely to be
}

func newNotes() *notes { return &notes{wake: make(chan struct{}, 1)} }

// poke says that there is something to look at.
func (n *notes) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// noted is one look at the notes.
type noted struct {
	topics                      map[string]int64 // only where changed
	changed, unsure, look, free bool
}

// take empties the notes.
func (n *notes) take() noted {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := noted{changed: n.changed, unsure: n.unsure, look: n.look, free: n.free}
	if n.changed {
		now.topics = make(map[string]int64)
		for topic, at := range n.topics {
			if at > 0 {
				now.topics[topic] = at
				n.topics[topic] = 0
			}
		}
	}
	n.changed, n.unsure, n.look, n.free = false, false, false, false
	return now
}

// follow says which topics are of interest from now on, and to whom their events go; and
// which definitions are known.
func (n *notes) follow(topics []string, known map[string]int64, feeds map[string][]*feed) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.topics
	n.topics = make(map[string]int64, len(topics))
	for _, topic := range topics {
		n.topics[topic] = before[topic]
	}
	n.known, n.feeds = known, feeds
}

// append takes what the bus delivered.
func (n *notes) append(events []trumpet.Event, head trumpet.EventID, whole bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range events {
		e := &events[i]
		if at, ok := n.topics[e.Topic]; ok && e.ID.Position > at && e.Op != trumpet.OpResult && e.Op != trumpet.OpBroadcast {
			n.topics[e.Topic] = e.ID.Position
			n.changed = true
		}
	}
	for _, feeds := range n.feeds {
		for _, f := range feeds {
			f.put(events, head, whole)
		}
	}
	if n.changed {
		n.poke()
	}
}

// again says that what was heard before may be void.
func (n *notes) again() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.unsure, n.changed = true, false
	for topic := range n.topics {
		n.topics[topic] = 0
	}
	for _, feeds := range n.feeds {
		for _, f := range feeds {
			f.lose()
		}
	}
	n.poke()
}

// result takes of which definition a result is.
func (n *notes) result(name string, version int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known[name] != version {
		n.look = true
		n.poke()
	}
}

func (n *notes) note(set *bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*set = true
	n.poke()
}
