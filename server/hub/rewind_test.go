package hub

import (
	"slices"
	"testing"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// again makes the event of a position that is given a second time.
func again(position int64, topic string, size int) trumpet.Event {
	e := event(position, 0, topic, false, size)
	e.ID.Tag += 1000
	return e
}

// give appends events one by one.
func give(h *Hub, events ...trumpet.Event) {
	for i := range events {
		h.Append(events[i:i+1], events[i].ID)
	}
}

// rewind loses what comes after an id.
func (l *fakeLog) rewind(to trumpet.EventID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = slices.DeleteFunc(slices.Clone(l.events), func(e trumpet.Event) bool { return e.ID.Compare(to) > 0 })
	for id := range l.heads {
		if id.Compare(to) > 0 {
			delete(l.heads, id)
		}
	}
	l.heads[to] = true
}

// expectVerdict reads what a rewind or a reset says.
func (p *peer) expectVerdict(t fataler, to trumpet.EventID, concerned bool) {
	t.Helper()
	if concerned {
		if m := p.expect(t, "reset"); m.Reason != "lost" || m.ID != to.String() {
			t.Fatalf("got %+v", m)
		}
	}
	if m := p.expect(t, "ready"); m.Resumed == concerned || m.ID != to.String() {
		t.Fatalf("got %+v, want it to be concerned: %v", m, concerned)
	}
}

func TestRewindTellsExactlyWhoIsConcerned(t *testing.T) {
	t.Parallel()
	for format := range wire.Formats {
		t.Run(format.String(), func(t *testing.T) {
			t.Parallel()
			h := start(t, Config{})
			log := &fakeLog{page: 10}
			h.UseLog(log)
			join := func(topics ...string) *peer {
				p := newPeer(t, h, Client{Format: format, Interests: follow(topics...)}, false)
				p.expect(t, "ready")
				return p
			}
			a, b, quiet := join("a", "b"), join("b"), join("nothing")
			first := []trumpet.Event{event(1, 0, "a", false, 1), event(2, 0, "b", false, 1)}
			lost := []trumpet.Event{event(3, 0, "a", false, 1), event(4, 0, "c", false, 1)}
			give(h, append(first, lost...)...)
			log.add(append(first, lost...), lost[1].ID)
			a.expectEvents(t, expected(append(first, lost...), "a", "b"))
			b.expectEvents(t, expected(first, "b"))
			// Its state was fetched when the lost event was part of it, whatever it was given.
			between, betweenQuiet := join("a"), join("b")

			to := first[1].ID
			log.rewind(to)
			h.Rewind(to)
			a.expectVerdict(t, to, true)
			b.expectVerdict(t, to, false)
			quiet.expectVerdict(t, to, false)
			between.expectVerdict(t, to, true)
			betweenQuiet.expectVerdict(t, to, false)
			if n := h.Stats().Resets[wire.ReasonLost]; n != 2 {
				t.Errorf("%d resets were counted", n)
			}
			after := newPeer(t, h, Client{Format: format, Interests: follow("a", "b", "c")}, false)
			if m := after.expect(t, "ready"); m.ID != to.String() || m.Resumed {
				t.Errorf("got %+v", m)
			}

			// A position comes a second time.
			second := []trumpet.Event{again(3, "b", 1), again(4, "a", 1), again(5, "nothing", 1)}
			give(h, second...)
			log.add(second, second[2].ID)
			for p, topics := range map[*peer][]string{
				a: {"a", "b"}, b: {"b"}, quiet: {"nothing"}, between: {"a"}, betweenQuiet: {"b"}, after: {"a", "b"},
			} {
				p.expectEvents(t, expected(second, topics...))
				p.hangUp()
			}

			for _, since := range []trumpet.EventID{lost[0].ID, lost[1].ID} {
				p := newPeer(t, h, Client{Format: format, Interests: follow("a"), Resume: true, Since: since}, false)
				if m := p.expect(t, "reset"); m.Reason != "unknown" {
					t.Errorf("since %v: got %+v", since, m)
				}
				if m := p.expect(t, "ready"); m.Resumed || m.ID != second[2].ID.String() {
					t.Errorf("since %v: got %+v", since, m)
				}
				p.hangUp()
			}
			for i, since := range []trumpet.EventID{first[0].ID, to, second[0].ID} {
				p := newPeer(t, h, Client{Format: format, Interests: follow("a", "b", "c"), Resume: true, Since: since}, false)
				p.expectEvents(t, expected(append(first[1:], second...)[i:], "a", "b", "c"))
				if m := p.expect(t, "ready"); !m.Resumed || m.ID != second[2].ID.String() {
					t.Errorf("since %v: got %+v", since, m)
				}
				p.hangUp()
			}
			if s := h.Stats(); s.ResumesFromRing != 3 || s.Resets[wire.ReasonUnknown] != 2 || s.Resets[wire.ReasonLost] != 2 {
				t.Errorf("stats are %+v", s)
			}
		})
	}
}

// A client that lags is given nothing of what was lost that it had not begun to take, and is
// told by what it was given.
func TestRewindWhileLagging(t *testing.T) {
	t.Parallel()
	const big = 1 << 20
	raw := trumpet.Event{Topic: "a", Op: trumpet.OpBroadcast, Data: []byte(`"hello"`)}
	for name, test := range map[string]struct {
		to        int64 // what stands of 1, 2, 3, of which 2 is large
		topics    []string
		given     int // of them
		concerned bool
	}{
		"before what is lost":           {2, []string{"a"}, 2, false},
		"inside":                        {1, []string{"a"}, 2, true},
		"everything is lost":            {0, []string{"a"}, 2, true},
		"before, on other topics":       {2, []string{"b", "a"}, 2, false},
		"inside, but nothing it was on": {2, []string{"a", "c"}, 2, false},
	} {
		for format := range wire.Formats {
			t.Run(name+" "+format.String(), func(t *testing.T) {
				t.Parallel()
				h := start(t, Config{MaxLag: 2 * limit})
				p := newPeer(t, h, Client{Format: format, Interests: follow(test.topics...)}, true)
				p.expect(t, "ready")
				events := []trumpet.Event{event(1, 0, "a", false, 1), event(2, 0, "a", false, big), event(3, 0, "a", false, 1)}
				give(h, events[:2]...)
				eventually(t, "lagging", func() bool { return h.Stats().Lagging == 1 })
				give(h, events[2])
				// What has no place in the log is not lost.
				h.Append([]trumpet.Event{raw}, events[2].ID)
				h.Stale()
				to := trumpet.EventID{Position: test.to, Tag: uint32(test.to)}
				h.Rewind(to)
				second := []trumpet.Event{again(3, "a", 1)}
				give(h, second...)

				p.expectEvents(t, expected(events[:test.given], test.topics...))
				if m := p.mustNext(t); string(m.Data) != `"hello"` {
					t.Fatalf("got %+v", m)
				}
				p.expect(t, "stale")
				p.expectVerdict(t, to, test.concerned)
				p.expectEvents(t, expected(second, test.topics...))
				p.hangUp()
			})
		}
	}
}

// A laggard behind two rewinds is told once, at the end, and of both.
func TestTwoRewindsWhileLagging(t *testing.T) {
	t.Parallel()
	const big = 1 << 20
	large := trumpet.Event{Topic: "a", Op: trumpet.OpBroadcast, Data: event(1, 0, "", false, big).Data}
	one, two, three := event(1, 0, "b", false, 1), event(2, 0, "a", false, 1), event(3, 0, "b", false, 1)
	for name, test := range map[string]struct {
		topics    []string
		two       string // topic of what only the second loses
		concerned bool
	}{
		"by the second": {[]string{"a"}, "a", true},
		"by the first":  {[]string{"b", "a"}, "c", true},
		"by both":       {[]string{"b", "a"}, "a", true},
		"by none":       {[]string{"d", "a"}, "c", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, Config{MaxLag: 2 * limit})
			p := newPeer(t, h, Client{Format: wire.SSE, Interests: follow(test.topics...)}, true)
			p.expect(t, "ready")
			two := two
			two.Topic = test.two
			give(h, one, two, three)
			h.Append([]trumpet.Event{large}, three.ID)
			eventually(t, "lagging", func() bool { return h.Stats().Lagging == 1 })
			h.Rewind(two.ID)
			give(h, again(3, "nobody's", 1))
			h.Rewind(one.ID)
			p.expectEvents(t, expected([]trumpet.Event{one, two, three}, test.topics...))
			if m := p.mustNext(t); len(m.Data) < big {
				t.Fatalf("got %+v", m)
			}
			p.expectVerdict(t, one.ID, test.concerned)
			second := []trumpet.Event{again(2, "a", 1)}
			give(h, second...)
			p.expectEvents(t, expected(second, "a"))
			p.hangUp()
		})
	}
}

// A client whose drainer was ahead of its shard, which then never came to what was lost.
func TestRewindOfWhatOnlyADrainerGave(t *testing.T) {
	t.Parallel()
	events := []trumpet.Event{
		event(1, 0, "b", false, 1), event(2, 0, "b", false, 1), event(3, 0, "b", false, 1), event(4, 0, "a", false, 1),
	}
	to := events[1].ID
	second := []trumpet.Event{again(3, "b", 1), again(4, "c", 1)}
	for name, test := range map[string]struct {
		since     trumpet.EventID
		topic     string
		given     []trumpet.Event
		concerned bool
	}{
		"it was given what is lost": {trumpet.EventID{}, "b", events, true},
		"it was, elsewhere":         {events[3].ID, "b", nil, true},
		"only its place is lost":    {events[3].ID, "c", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, s := still(t, Config{}, 0)
			h.Live()
			give(h, events[:2]...)
			for s.step() {
			}
			give(h, events[2:]...)
			log := &fakeLog{page: 10}
			log.add(events, events[3].ID)
			h.UseLog(log)
			h.list.mu.Lock()
			h.list.nodes = h.list.nodes[len(h.list.nodes)-3:] // the beginning is in the log only
			h.list.mu.Unlock()
			p := newPeer(t, h, Client{Format: wire.SSE, Interests: follow(test.topic), Resume: true, Since: test.since}, false)
			s.mu.Lock()
			s.inbox = s.inbox[:0]
			s.mu.Unlock()
			s.attach(p.conn) // without a step of the shard
			eventually(t, "given", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(s.inbox) > 0 || !test.since.IsZero()
			})
			h.Rewind(to)
			give(h, second...)
			eventually(t, "live", func() bool {
				for s.step() {
				}
				return p.conn.state == live
			})
			p.expectEvents(t, expected(test.given, test.topic))
			if test.concerned {
				p.expect(t, "reset")
			} else if m := p.expect(t, "ready"); !m.Resumed || m.ID != to.String() {
				t.Fatalf("got %+v", m)
			}
			p.expectEvents(t, expected(second, test.topic))
			if m := p.expect(t, "ready"); m.Resumed == test.concerned || m.ID != second[1].ID.String() {
				t.Fatalf("got %+v", m)
			}
			_ = p.far.Close()
			for s.step() || len(s.conns) > 0 {
			}
		})
	}
}

// A shard that stands in what was lost goes on over the lost nodes, and comes to the rewind.
func TestRewindFromWithinLostNodes(t *testing.T) {
	t.Parallel()
	h, s := still(t, Config{}, 0)
	h.Live()
	p := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a")}, false)
	quiet := newPeer(t, h, Client{Format: wire.WebSocket, Interests: follow("b")}, false)
	for s.step() {
	}
	one, two, three := event(1, 0, "a", false, 1), event(2, 0, "a", false, 1), event(3, 0, "a", false, 1)
	give(h, one, two)
	for s.step() {
	}
	give(h, three)
	h.Rewind(one.ID)
	// It comes to a shard that stands in the void: it is ready where that has an end.
	late := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a"), Resume: true, Since: one.ID}, false)
	fresh := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a")}, false)
	eventually(t, "all are live", func() bool {
		for s.step() {
		}
		return late.conn.state == live && fresh.conn.state == live
	})
	p.expect(t, "ready")
	quiet.expect(t, "ready")
	p.expectEvents(t, expected([]trumpet.Event{one, two, three}, "a"))
	p.expectVerdict(t, one.ID, true)
	quiet.expectVerdict(t, one.ID, false)
	late.expectVerdict(t, one.ID, false)
	if m := fresh.expect(t, "ready"); m.Resumed || m.ID != one.ID.String() {
		t.Errorf("got %+v", m)
	}
	give(h, again(2, "a", 1))
	for s.step() {
	}
	for _, q := range []*peer{p, late, fresh} {
		q.expectEvents(t, expected([]trumpet.Event{again(2, "a", 1)}, "a"))
		_ = q.far.Close()
	}
	_ = quiet.far.Close()
	for s.step() || len(s.conns) > 0 {
	}
}
