package hub

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/socket"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// still returns a hub with one shard that only moves when it is stepped, with clients
// whose bytes are read by nobody who allocates.
func still(tb testing.TB, config Config, clients int) (*Hub, *shard) {
	tb.Helper()
	config.Shards = 1
	h, err := newHub(config)
	if err != nil {
		tb.Fatal(err)
	}
	s := h.shards[0]
	h.Reset(trumpet.EventID{})
	for i := range clients {
		near, far := pair(tb, false)
		tb.Cleanup(func() { _ = near.Close() })
		go func() { _, _ = io.Copy(io.Discard, far); _ = far.Close() }()
		c := Client{Format: wire.Format(i % 2), Interests: follow("a"), Socket: socket.New(near, socket.Config{})}
		if _, err := h.Attach(c); err != nil {
			tb.Fatal(err)
		}
	}
	for s.step() {
	}
	return h, s
}

func encoded(position int64) *node {
	e := event(position, 0, "a", false, 200)
	n := eventNode([]trumpet.Event{e}, e.ID)
	for format := range wire.Formats {
		n.entries[0].encode(format, whole, false)
	}
	return n
}

func TestDeliveryDoesNotAllocate(t *testing.T) {
	const runs = 50
	h, s := still(t, Config{}, 20)
	var nodes []*node
	for i := range int64(2*runs + 10) {
		nodes = append(nodes, encoded(i+1))
	}
	h.list.nodes = append(make([]*node, 0, 1000), h.list.nodes...)
	deliver := func() {
		// Two at once, so that frames are joined.
		h.append(nodes[0], false)
		h.append(nodes[1], false)
		nodes = nodes[2:]
		s.step()
	}
	deliver()
	if n := testing.AllocsPerRun(runs, deliver); n != 0 {
		t.Errorf("%v allocations for 40 deliveries", n)
	}
	if n := h.stats.deliveries.Load(); n < 40*runs {
		t.Errorf("only %d deliveries", n)
	}
}

// With a maximum delay events wait for others, and go into one write with them.
func TestMaxDelay(t *testing.T) {
	t.Parallel()
	const clients, events = 10, 20
	h, s := still(t, Config{MaxDelay: maxDelay}, clients)
	before := h.Stats()
	nodes := make([]*node, events)
	for i := range nodes {
		nodes[i] = encoded(int64(i + 1))
		h.append(nodes[i], false)
	}
	s.step()
	if stats := h.Stats(); stats.Deliveries != before.Deliveries || s.hold <= 0 || s.hold > maxDelay {
		t.Fatalf("%d deliveries at once, and the next after %v", stats.Deliveries-before.Deliveries, s.hold)
	}
	nodes[0].appended = nodes[0].appended.Add(-maxDelay)
	s.step()
	stats := h.Stats()
	if got := stats.Deliveries - before.Deliveries; got != clients*events {
		t.Errorf("%d deliveries, want %d", got, clients*events)
	}
	if got := stats.Writes - before.Writes; got != clients {
		t.Errorf("%d writes, want one for each of %d clients", got, clients)
	}
	if s.hold > 0 {
		t.Errorf("nothing waits, and the shard wants to look after %v", s.hold)
	}
}

// A hub that waits gives everything all the same, in order, and without a wake-up of its own.
func TestMaxDelayRunning(t *testing.T) {
	t.Parallel()
	h := start(t, Config{MaxDelay: 5 * time.Millisecond})
	p := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a")}, false)
	p.expect(t, "ready")
	var all []trumpet.Event
	for i := range int64(30) {
		events := []trumpet.Event{event(i+1, 0, "a", false, 10)}
		h.Append(events, last(events))
		all = append(all, events...)
		if i%3 == 0 { // the hub rests in between
			p.expectEvents(t, expected(all, "a"))
			all = nil
		}
	}
	p.expectEvents(t, expected(all, "a"))
	p.hangUp()
}

// BenchmarkBareWrites is what a loop of writes costs that knows nothing: the bound.
func BenchmarkBareWrites(b *testing.B) {
	const clients = 500
	var conns []*net.TCPConn
	for range clients {
		near, far := pair(b, false)
		b.Cleanup(func() { _ = near.Close() })
		go func() { _, _ = io.Copy(io.Discard, far); _ = far.Close() }()
		conns = append(conns, near)
	}
	e := event(1, 0, "a", false, 200)
	bytes := wire.EncodeEvent(wire.WebSocket, wire.Whole, &e, false)
	b.ReportAllocs()
	writes := 0
	for b.Loop() {
		for _, conn := range conns {
			if _, err := conn.Write(bytes); err != nil {
				b.Fatal(err)
			}
			writes++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(writes), "ns/delivery")
}

// BenchmarkDeliver is the shard's loop: what it allocates must be 0, which TestDeliveryDoesNotAllocate holds.
func BenchmarkDeliver(b *testing.B) {
	for _, clients := range []int{10, 500} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			h, s := still(b, Config{}, clients)
			nodes := make([]*node, b.N)
			for i := range nodes {
				nodes[i] = encoded(int64(i + 1))
			}
			h.list.nodes = append(make([]*node, 0, b.N+10), h.list.nodes...)
			before := h.stats.deliveries.Load()
			b.ReportAllocs()
			b.ResetTimer()
			for i := range nodes {
				h.append(nodes[i], false)
				s.step()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(h.stats.deliveries.Load()-before), "ns/delivery")
		})
	}
}
