package hub

import (
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// history makes transactions on topics a, b and c.
func history(r *rand.Rand, from int64, transactions, size int) [][]trumpet.Event {
	var out [][]trumpet.Event
	for range transactions {
		var events []trumpet.Event
		for range 1 + r.IntN(3) { // records of one transaction
			rows := 1 + r.IntN(3)
			topic := string(rune('a' + r.IntN(3)))
			for o := range rows {
				events = append(events, event(from, int32(o), topic, true, r.IntN(size+1)))
			}
			from++
		}
		events[len(events)-1].More = false
		out = append(out, events)
	}
	return out
}

func flat(transactions [][]trumpet.Event) []trumpet.Event {
	var out []trumpet.Event
	for _, events := range transactions {
		out = append(out, events...)
	}
	return out
}

func last(events []trumpet.Event) trumpet.EventID { return events[len(events)-1].ID }

// giveAll appends transactions, a few at a time.
func giveAll(h *Hub, r *rand.Rand, transactions [][]trumpet.Event) {
	for len(transactions) > 0 {
		n := min(1+r.IntN(4), len(transactions))
		events := flat(transactions[:n])
		h.Append(events, last(events))
		transactions = transactions[n:]
	}
}

var topicChoices = [][]string{{"a"}, {"b"}, {"a", "c"}, {"a", "b", "c"}, {"c", "nothing"}}

func TestEveryClientSeesItsEventsOnceAndInOrder(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	var peers []*peer
	for i := range 30 {
		format := wire.Format(i % 2)
		p := newPeer(t, h, Client{Format: format, Interests: follow(topicChoices[i%len(topicChoices)]...)}, i%7 == 0)
		p.expect(t, "ready")
		peers = append(peers, p)
	}
	r := rand.New(rand.NewPCG(1, 2))
	transactions := history(r, 1, 500, 200)
	var work sync.WaitGroup
	for i, p := range peers {
		work.Go(func() {
			for {
				m := p.mustNext(t)
				if m.Type == "" {
					t.Error("an event before live")
					return
				}
				if m.Type == "live" {
					break
				}
			}
			p.expectEvents(t, expected(flat(transactions), topicChoices[i%len(topicChoices)]...))
		})
	}
	h.Stale()
	h.Live()
	giveAll(h, r, transactions)
	work.Wait()
	for _, p := range peers {
		p.hangUp()
	}
	if s := h.Stats(); s.WebSockets != 0 || s.Streams != 0 || s.Events != uint64(len(flat(transactions))) {
		t.Errorf("stats are %+v", s)
	}
}

func TestLaggingClientMissesNothing(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	for _, format := range []wire.Format{wire.WebSocket, wire.SSE} {
		t.Run(format.String(), func(t *testing.T) {
			p := newPeer(t, h, Client{Format: format, Interests: follow("a", "b")}, true)
			p.expect(t, "ready")
			lagged := h.Stats().Lagged
			base := h.Stats().Head.Position + 1
			r := rand.New(rand.NewPCG(3, 4))
			transactions := history(r, base, 600, 4000)
			giveAll(h, r, transactions)
			eventually(t, "lagging", func() bool { return h.Stats().Lagging == 1 })
			p.expectEvents(t, expected(flat(transactions), "a", "b"))
			eventually(t, "caught up", func() bool { return h.Stats().Lagging == 0 })
			// A frame that is larger than any chunk.
			big := []trumpet.Event{event(base+5000, 0, "a", false, 3<<20)}
			h.Append(big, last(big))
			p.expectEvents(t, expected(big, "a"))
			if h.Stats().Lagged < lagged+2 {
				t.Errorf("lagged %d times", h.Stats().Lagged-lagged)
			}
			p.hangUp()
		})
	}
}

func TestSlowClientIsSentAway(t *testing.T) {
	t.Parallel()
	for _, format := range []wire.Format{wire.WebSocket, wire.SSE} {
		for name, config := range map[string]Config{
			"fell off the list": {RingEvents: 5},
			"lagged too long":   {MaxLag: time.Second},
		} {
			t.Run(format.String()+" "+name, func(t *testing.T) {
				t.Parallel()
				h := start(t, config)
				slow := newPeer(t, h, Client{Format: format, Interests: follow("a")}, true)
				quick := newPeer(t, h, Client{Format: format, Interests: follow("a")}, false)
				slow.expect(t, "ready")
				quick.expect(t, "ready")
				var events []trumpet.Event
				for i := range int64(150) {
					events = append(events, event(i+1, 0, "a", false, 20_000))
				}
				for i := range events {
					h.Append(events[i:i+1], events[i].ID)
					quick.expectEvents(t, expected(events[i:i+1], "a"))
				}
				eventually(t, "ended", func() bool { return h.Stats().Endings["slow"] == 1 })
				// What was cut is completed, then comes the reason.
				for i := range events {
					m := slow.mustNext(t)
					if m.ID != events[i].ID.String() {
						if m.close != trumpet.EndingSlow.Code && m.Code != trumpet.EndingSlow.Name {
							t.Fatalf("got %+v after %d events", m, i)
						}
						slow.hangUp()
						quick.hangUp()
						return
					}
				}
				quick.hangUp()
				t.Fatal("the slow client got everything")
			})
		}
	}
}

func TestSecondResetReachesEverybody(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	p := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a")}, false)
	p.expect(t, "ready")
	h.Append([]trumpet.Event{event(1, 0, "a", false, 1)}, trumpet.EventID{Position: 1, Tag: 1})
	other := trumpet.EventID{Position: 1, Tag: 99}
	h.Reset(other)
	h.Append([]trumpet.Event{event(2, 0, "a", false, 1)}, trumpet.EventID{Position: 2, Tag: 2})
	if m := p.mustNext(t); m.ID != "1.0-00000001" {
		t.Fatalf("got %+v", m)
	}
	if m := p.expect(t, "reset"); m.Reason != "lost" || m.ID != other.String() || m.sse != m.ID {
		t.Fatalf("got %+v", m)
	}
	if m := p.expect(t, "ready"); m.Resumed || m.ID != other.String() || m.sse != m.ID {
		t.Fatalf("got %+v", m)
	}
	if n := h.Stats().Resets[wire.ReasonLost]; n != 1 {
		t.Errorf("%d resets were counted", n)
	}
	if m := p.mustNext(t); m.ID != "2.0-00000002" {
		t.Fatalf("got %+v", m)
	}
	// What was before the reset cannot be resumed; the reset's own id can.
	for id, resumed := range map[trumpet.EventID]bool{{Position: 1, Tag: 1}: false, other: true} {
		q := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a"), Resume: true, Since: id}, false)
		if !resumed {
			q.expect(t, "reset")
		} else if m := q.mustNext(t); m.ID != "2.0-00000002" {
			t.Fatalf("got %+v", m)
		}
		if m := q.expect(t, "ready"); m.Resumed != resumed || m.ID != "2.0-00000002" {
			t.Fatalf("got %+v", m)
		}
		q.hangUp()
	}
	p.hangUp()
}

func TestStaleAndLive(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	p := newPeer(t, h, Client{Format: wire.WebSocket}, false)
	p.expect(t, "ready")
	h.Stale()
	h.Stale()
	p.expect(t, "stale")
	q := newPeer(t, h, Client{Format: wire.WebSocket}, false)
	q.expect(t, "ready")
	q.expect(t, "stale")
	h.Live()
	p.expect(t, "live")
	q.expect(t, "live")
	p.hangUp()
	q.hangUp()
}

func TestNewcomersWaitForTheBus(t *testing.T) {
	t.Parallel()
	h, err := New(Config{Patience: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	p := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a")}, false)
	h.Reset(trumpet.EventID{Position: 4, Tag: 4})
	if m := p.expect(t, "ready"); m.ID != "4.0-00000004" {
		t.Fatalf("got %+v", m)
	}
	p.expect(t, "stale")
	h.Live()
	p.expect(t, "live")
	p.hangUp()

	late, err := New(Config{Patience: time.Nanosecond, Ping: 25 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	q := newPeer(t, late, Client{Format: wire.SSE}, false)
	q.expectEnd(t, trumpet.EndingUnavailable)
	q.hangUp()
}

func TestRawNotificationsAreForThosePresent(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	raw := []trumpet.Event{{Topic: "a", Op: trumpet.OpBroadcast, Data: []byte(`"hello"`)}}
	first := []trumpet.Event{event(1, 0, "a", false, 1)}
	h.Append(first, last(first))
	h.Append(raw, last(first))
	second := []trumpet.Event{event(2, 0, "a", false, 1)}
	h.Append(second, last(second))
	p := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a"), Resume: true}, false)
	p.expectEvents(t, expected(append(first, second...), "a"))
	p.expect(t, "ready")
	h.Append(raw, last(second))
	if m := p.mustNext(t); string(m.Data) != `"hello"` || m.ID != "" || m.sse != "" {
		t.Fatalf("got %+v", m)
	}
	p.hangUp()
}

func TestSubscribe(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	p := newPeer(t, h, Client{Format: wire.WebSocket}, false)
	p.expect(t, "ready")
	position := int64(0)
	give := func(topics ...string) {
		for _, topic := range topics {
			position++
			events := []trumpet.Event{event(position, 0, topic, false, 1)}
			h.Append(events, last(events))
		}
	}
	change := func(unsubscribe bool, want int, topics ...string) {
		t.Helper()
		if err := p.conn.Change(Change{Unsubscribe: unsubscribe, Interests: follow(topics...)}); err != nil {
			t.Fatal(err)
		}
		if m := p.expect(t, "subscribed"); len(m.Topics) != want {
			t.Fatalf("got %+v", m)
		}
	}
	give("a")
	change(false, 2, "b", "c")
	give("a", "b")
	if m := p.mustNext(t); m.Topic != "b" {
		t.Fatalf("got %+v", m)
	}
	change(true, 1, "b")
	give("b", "c")
	if m := p.mustNext(t); m.Topic != "c" {
		t.Fatalf("got %+v", m)
	}
	many := make([]string, wire.MaxTopics)
	for i := range many {
		many[i] = strconv.Itoa(i)
	}
	if err := p.conn.Change(Change{Interests: follow(many...)}); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "refused")
	if err := p.conn.Refuse(nil, "no such thing"); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "refused")
	give("c")
	if m := p.mustNext(t); m.Topic != "c" {
		t.Fatalf("got %+v", m)
	}
	p.hangUp()
	if err := p.conn.Change(Change{Interests: follow("a")}); err == nil {
		t.Error("a change after the end")
	}
}

func TestSubscribeWhileLagging(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	p := newPeer(t, h, Client{Format: wire.WebSocket, Interests: follow("a")}, true)
	p.expect(t, "ready")
	var events []trumpet.Event
	for i := range int64(400) {
		events = append(events, event(i+1, 0, "a", false, 20_000))
	}
	h.Append(events, last(events))
	eventually(t, "lagging", func() bool { return h.Stats().Lagging == 1 })
	applied := make(chan error)
	go func() { applied <- p.conn.Change(Change{Interests: follow("b")}) }()
	p.expectEvents(t, expected(events, "a"))
	if m := p.expect(t, "subscribed"); m.ID != last(events).String() {
		t.Fatalf("got %+v", m)
	}
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	more := []trumpet.Event{event(500, 0, "b", false, 1)}
	h.Append(more, last(more))
	p.expectEvents(t, expected(more, "b"))
	p.hangUp()
}
