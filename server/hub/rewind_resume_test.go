package hub

import (
	"testing"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// An id that another worker gave, and that the log loses before this worker came to it.
func TestRewindOfWhatOnlyAnotherWorkerGave(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Patience: 2 * limit})
	log := &fakeLog{page: 10}
	h.UseLog(log)
	events := []trumpet.Event{event(1, 0, "a", false, 1), event(2, 0, "a", false, 1)}
	log.add(events, events[1].ID)
	give(h, events[0])
	p := newPeer(t, h, Client{Format: wire.WebSocket, Interests: follow("a"), Resume: true, Since: events[1].ID}, false)
	eventually(t, "asked", func() bool { return log.reads.Load() > 0 && log.now.Load() == 0 })
	log.rewind(events[0].ID)
	h.Rewind(events[0].ID)
	if m := p.expect(t, "reset"); m.Reason != "unknown" || m.ID != events[0].ID.String() {
		t.Fatalf("got %+v", m)
	}
	p.expect(t, "ready")
	p.hangUp()
}

// A client in the middle of a resume whose place is lost is refused, and told once.
func TestRewindDuringAResumeFromTheLog(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		since, to int64
		reset     string
	}{
		"its id is lost":               {4, 3, "unknown"},
		"its id stands, its page not":  {2, 3, ""},
		"its id stands as what is new": {3, 3, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, Config{RingEvents: 1, Patience: limit})
			log := &fakeLog{page: 2, gate: make(chan struct{})}
			h.UseLog(log)
			var events []trumpet.Event
			for i := range int64(8) {
				events = append(events, event(i+1, 0, "a", false, 1))
			}
			give(h, events...)
			log.add(events, events[7].ID)
			since := trumpet.EventID{Position: test.since, Tag: uint32(test.since)}
			p := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a"), Resume: true, Since: since}, false)
			eventually(t, "reading", func() bool { return log.now.Load() == 1 })
			to := trumpet.EventID{Position: test.to, Tag: uint32(test.to)}
			log.rewind(to)
			h.Rewind(to)
			second := []trumpet.Event{again(4, "a", 1), again(5, "a", 1)}
			give(h, second...)
			log.add(second, second[1].ID)
			close(log.gate)
			if test.reset != "" {
				if m := p.expect(t, "reset"); m.Reason != test.reset {
					t.Fatalf("got %+v", m)
				}
			} else {
				p.expectEvents(t, expected(append(events[test.since:test.to:test.to], second...), "a"))
			}
			if m := p.expect(t, "ready"); m.Resumed != (test.reset == "") || m.ID != second[1].ID.String() {
				t.Fatalf("got %+v", m)
			}
			third := []trumpet.Event{again(6, "a", 1)}
			give(h, third...)
			p.expectEvents(t, expected(third, "a"))
			p.hangUp()
		})
	}
}

// Pages that were read before a rewind are not given after it.
func TestRewindVoidsPages(t *testing.T) {
	t.Parallel()
	h := start(t, Config{RingEvents: 1, Patience: limit})
	log := &fakeLog{page: 3}
	log.add(nil, trumpet.EventID{})
	h.UseLog(log)
	var events []trumpet.Event
	for i := range int64(8) {
		events = append(events, event(i+1, 0, "a", false, 1))
	}
	give(h, events...)
	log.add(events, events[7].ID)
	resume := func(want []trumpet.Event) {
		t.Helper()
		p := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a"), Resume: true}, false)
		p.expectEvents(t, expected(want, "a"))
		if m := p.expect(t, "ready"); !m.Resumed {
			t.Fatalf("got %+v", m)
		}
		p.hangUp()
	}
	resume(events)
	to := events[3].ID
	log.rewind(to)
	h.Rewind(to)
	second := []trumpet.Event{again(5, "a", 1), again(6, "a", 1)}
	give(h, second...)
	log.add(second, second[1].ID)
	resume(append(events[:4:4], second...))
}
