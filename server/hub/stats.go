package hub

import (
	"sync/atomic"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// Where a client that came back was resumed from.
const (
	fromRing = iota
	fromLog
)

// counters are the hub's; every event that a client did not get is explained by one.
type counters struct {
	events          atomic.Uint64
	deliveries      atomic.Uint64
	bytes           atomic.Uint64
	writes          atomic.Uint64
	lagging         atomic.Int64
	lagged          atomic.Uint64
	logPages        atomic.Uint64
	snapshots       atomic.Uint64
	snapshotClients atomic.Uint64
	connections     [wire.Formats]atomic.Int64
	resumes         [2]atomic.Uint64
	resets          [8]atomic.Uint64 // in the order of wire.Reasons
	endings         [16]atomic.Uint64
}

func (c *counters) wrote(writes, bytes int) {
	c.writes.Add(uint64(writes))
	c.bytes.Add(uint64(bytes))
}

func (c *counters) reset(reason wire.Reason) { c.resetAll(reason, 1) }

// resetAll counts clients that were told to fetch their state anew.
func (c *counters) resetAll(reason wire.Reason, clients int) {
	for i, r := range wire.Reasons {
		if r == reason {
			c.resets[i].Add(uint64(clients))
		}
	}
}

// ended counts by code: the message may be the client's own.
func (c *counters) ended(e trumpet.Ending) {
	for i := range trumpet.Endings {
		if trumpet.Endings[i].Code == e.Code {
			c.endings[i].Add(1)
		}
	}
}

// CountEnding counts a client that was sent away before it was attached.
func (h *Hub) CountEnding(e trumpet.Ending) { h.stats.ended(e) }

// Stats is what a hub counted since its start, and what it has now.
type Stats struct {
	WebSockets int64 // connections now
	Streams    int64
	Lagging    int64 // connections now that have not taken all that they were given

	Events          uint64 // appended
	Deliveries      uint64 // events and notices written to connections
	Bytes           uint64 // written to connections
	Writes          uint64 // system calls for that
	Lagged          uint64 // how often a connection began to lag
	LogPages        uint64 // read for clients that resumed
	Snapshots       uint64 // read from tables
	SnapshotClients uint64 // that were given one

	ResumesFromRing uint64
	ResumesFromLog  uint64
	Resets          map[wire.Reason]uint64
	Endings         map[string]uint64

	RingEvents int
	RingBytes  int64
	Head       trumpet.EventID
}

// Stats returns the counters.
func (h *Hub) Stats() Stats {
	c := &h.stats
	s := Stats{
		WebSockets:      c.connections[wire.WebSocket].Load(),
		Streams:         c.connections[wire.SSE].Load(),
		Lagging:         c.lagging.Load(),
		Events:          c.events.Load(),
		Deliveries:      c.deliveries.Load(),
		Bytes:           c.bytes.Load(),
		Writes:          c.writes.Load(),
		Lagged:          c.lagged.Load(),
		LogPages:        c.logPages.Load(),
		Snapshots:       c.snapshots.Load(),
		SnapshotClients: c.snapshotClients.Load(),
		ResumesFromRing: c.resumes[fromRing].Load(),
		ResumesFromLog:  c.resumes[fromLog].Load(),
		Resets:          make(map[wire.Reason]uint64, len(wire.Reasons)),
		Endings:         make(map[string]uint64, len(trumpet.Endings)),
		Head:            h.list.head(),
	}
	for i, reason := range wire.Reasons {
		s.Resets[reason] = c.resets[i].Load()
	}
	for i := range trumpet.Endings {
		s.Endings[trumpet.Endings[i].Name] = c.endings[i].Load()
	}
	h.list.mu.Lock()
	s.RingEvents, s.RingBytes = h.list.events, h.list.bytes
	h.list.mu.Unlock()
	return s
}
