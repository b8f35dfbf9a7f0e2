package hub

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// filled starts a hub whose list holds the newest event only, and a log with all of them.
func filled(t *testing.T, config Config, page, events, size int) (*Hub, *fakeLog, []trumpet.Event) {
	t.Helper()
	config.RingEvents = 1
	h := start(t, config)
	log := &fakeLog{page: page}
	log.add(nil, trumpet.EventID{})
	h.UseLog(log)
	var all []trumpet.Event
	for i := range int64(events) {
		all = append(all, event(i+1, 0, string(rune('a'+i%2)), false, size))
	}
	give(h, all...)
	log.add(all, last(all))
	return h, log, all
}

// resumed is a client that comes back and wants everything after the event at an index.
func resumed(t *testing.T, h *Hub, all []trumpet.Event, from int, small bool, topics ...string) *peer {
	t.Helper()
	client := Client{Format: wire.Format(from % 2), Interests: follow(topics...), Resume: true}
	if from > 0 {
		client.Since = all[from-1].ID
	}
	return newPeer(t, h, client, small)
}

func (p *peer) expectResumed(t *testing.T, all []trumpet.Event, from int, topics ...string) {
	t.Helper()
	p.expectEvents(t, expected(all[from:], topics...))
	if m := p.expect(t, "ready"); !m.Resumed {
		t.Fatalf("got %+v", m)
	}
}

// Clients that come back share pages also if their ids differ and they drift apart, and one
// that comes later finds them still there.
func TestPagesAreSharedByAllWhoAreInThem(t *testing.T) {
	t.Parallel()
	const pageSize, events, clients = 20, 400, 40
	h, log, all := filled(t, Config{}, pageSize, events, 10)
	log.gate = make(chan struct{})
	var peers []*peer
	for i := range clients {
		peers = append(peers, resumed(t, h, all, i, i%3 == 0, "a", "b"))
	}
	eventually(t, "all wait", func() bool {
		h.pages.mu.Lock()
		defer h.pages.mu.Unlock()
		refs := 0
		for _, page := range h.pages.reading {
			refs += page.refs
		}
		return refs == clients
	})
	close(log.gate)
	for i, p := range peers {
		p.expectResumed(t, all, i, "a", "b")
		p.hangUp()
	}
	// Those that were being read at once may overlap, and what follows each of them.
	reads := log.reads.Load()
	if most := int64(2*events/pageSize + 2*h.config.LogPages); reads > most {
		t.Errorf("%d reads of pages of %d for %d events", reads, pageSize, events)
	}
	late := resumed(t, h, all, 7, false, "a")
	late.expectResumed(t, all, 7, "a")
	late.hangUp()
	if again := log.reads.Load(); again != reads {
		t.Errorf("a latecomer cost %d reads", again-reads)
	}
	// Nobody needs them any more.
	h.pages.idle()
	h.pages.idle()
	if h.pages.bytes != 0 || len(h.pages.loaded) != 0 {
		t.Errorf("%d pages with %d bytes are left", len(h.pages.loaded), h.pages.bytes)
	}
}

// The page that a client was in is let go of, and another one, which begins before it and ends before the
// client's place, is there.
func TestAPageIsReadThoughAnotherHasItsBeginning(t *testing.T) {
	t.Parallel()
	h, _, all := filled(t, Config{}, 10, 40, 10)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for _, from := range []struct{ since, key int }{{4, 4}, {16, 9}} {
		got, index, err := h.pages.get(ctx, all[from.since].ID, all[from.key].ID)
		if err != nil {
			t.Fatalf("event %d, in the page after %d: %v", from.since, from.key, err)
		}
		if e := got.entries[index].event; e.ID != all[from.since+1].ID {
			t.Errorf("after event %d comes %v", from.since, e.ID)
		}
		h.pages.put(got)
	}
}

// However many come back with different ids and topics, the pages in memory are bounded.
func TestPagesAreBounded(t *testing.T) {
	t.Parallel()
	const size = 1000
	bound := 10 * eventSize(&trumpet.Event{Data: make([]byte, size)})
	h, log, all := filled(t, Config{LogBytes: bound, LogPages: 1}, 5, 200, size)
	most := make(chan int64)
	stop := make(chan struct{})
	go func() {
		highest := int64(0)
		for {
			h.pages.mu.Lock()
			highest = max(highest, h.pages.bytes)
			h.pages.mu.Unlock()
			select {
			case <-stop:
				most <- highest
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	}()
	var peers []*peer
	for i := range 30 {
		peers = append(peers, resumed(t, h, all, 6*i, i%2 == 0, []string{"a", "b"}[:1+i%2]...))
	}
	for i, p := range peers {
		p.expectResumed(t, all, 6*i, []string{"a", "b"}[:1+i%2]...)
		p.hangUp()
	}
	close(stop)
	// A page is begun below the bound, and may end above it.
	if got := <-most; got > bound*3/2+entryOverhead {
		t.Errorf("pages took %d bytes, the bound is %d", got, bound)
	}
	if log.reads.Load() < 40 {
		t.Errorf("only %d reads: nothing was let go", log.reads.Load())
	}
}

// Clients that take nothing hold neither a turn nor a page, and the time that others wait for
// the log is not held against them.
func TestStuckClientsHoldNothingThatOthersNeed(t *testing.T) {
	t.Parallel()
	for name, ring := range map[string]int{"from the log": 1, "from the list": 10_000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, _, all := filled(t, Config{turns: 2, LogBytes: 1 << 20, MaxLag: 4 * limit}, 10, 300, 0)
			if ring > 1 {
				h.list.mu.Lock()
				h.list.maxEvents = ring
				h.list.mu.Unlock()
			}
			big := make([]trumpet.Event, 0, 80)
			for i := range int64(80) {
				big = append(big, event(1000+i, 0, "a", false, 20_000))
			}
			give(h, big...)
			h.pages.log.(*fakeLog).add(big, last(big))
			var stuck []*peer
			for range 6 {
				stuck = append(stuck, resumed(t, h, all, len(all)-1, true, "a"))
			}
			eventually(t, "all are stuck", func() bool {
				h.pages.mu.Lock()
				defer h.pages.mu.Unlock()
				for _, page := range h.pages.loaded {
					if page.refs > 0 {
						return false
					}
				}
				return len(h.turns) == cap(h.turns) && h.stats.deliveries.Load() >= 6
			})
			for i := range 6 {
				quick := resumed(t, h, all, len(all)-1-i%2, false, "a", "b")
				quick.expectResumed(t, append(all[:len(all):len(all)], big...), len(all)-1-i%2, "a", "b")
				quick.hangUp()
			}
			for _, p := range stuck {
				p.expectResumed(t, append(all[:len(all):len(all)], big...), len(all)-1, "a")
				p.hangUp()
			}
		})
	}
}

// Waiting for the log, however long, does not make a client slow.
func TestWaitingForTheLogIsNotBeingSlow(t *testing.T) {
	t.Parallel()
	h, log, all := filled(t, Config{MaxLag: 300 * time.Millisecond, Patience: limit}, 10, 50, 10)
	log.gate = make(chan struct{})
	p := resumed(t, h, all, 3, false, "a", "b")
	eventually(t, "reading", func() bool { return log.now.Load() == 1 })
	// Somebody who is slow measures the time.
	slow := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("big")}, true)
	slow.expect(t, "ready")
	for range 2 {
		big := []trumpet.Event{event(h.Stats().Head.Position+1, 0, "big", false, 2<<20)}
		log.add(big, last(big))
		h.list.mu.Lock()
		h.list.maxEvents = 3
		h.list.mu.Unlock()
		give(h, big...)
		all = append(all, big...)
	}
	eventually(t, "slow", func() bool { return h.Stats().Endings["slow"] == 1 })
	close(log.gate)
	p.expectResumed(t, all, 3, "a", "b")
	p.hangUp()
	slow.hangUp()
}

// What is encoded together for a page is what each event is encoded to by itself.
func TestPageEncodesEachEventAsItIs(t *testing.T) {
	t.Parallel()
	var events []trumpet.Event
	for i := range int64(20) {
		e := event(i+1, 0, fmt.Sprint("topic", i%3), i%4 != 3, int(i)*700)
		if i == 5 {
			e.Data = []byte("\"line\nbreak \xff\"")
		}
		events = append(events, e)
	}
	for format := range wire.Formats {
		p := &page{}
		p.fill(events, last(events))
		p.encode(format)
		joined := 0
		for i := range events {
			got := p.entries[i].encode(format, whole, events[i].More)
			if want := wire.EncodeEvent(format, wire.Whole, &events[i], events[i].More); string(got) != string(want) {
				t.Errorf("event %d is %q, want %q", i, got, want)
			}
			if payload(&events[i]) <= slabFrame {
				joined += len(got)
			}
		}
		// Runs of them are written from where they are.
		var out output
		for i := range events {
			if payload(&events[i]) <= slabFrame {
				out.add(p.entries[i].encode(format, whole, events[i].More), &p.node, i)
			}
		}
		if out.run == nil || len(out.bytes()) != joined || out.joined != nil {
			t.Errorf("%v: %d of %d bytes in one run", format, len(out.run), joined)
		}
	}
}
