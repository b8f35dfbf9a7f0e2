package hub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// fakeLog is a log in memory. Its pages are small.
type fakeLog struct {
	mu     sync.Mutex
	events []trumpet.Event
	pruned trumpet.EventID // what comes after it is there
	heads  map[trumpet.EventID]bool
	page   int
	fail   error
	reads  atomic.Int64
	gate   chan struct{} // if not nil, every read waits for it
	most   atomic.Int64
	now    atomic.Int64
}

func (l *fakeLog) add(events []trumpet.Event, head trumpet.EventID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, events...)
	if l.heads == nil {
		l.heads = map[trumpet.EventID]bool{{}: true}
	}
	l.heads[head] = true
}

func (l *fakeLog) ReadLog(ctx context.Context, after, until trumpet.EventID) ([]trumpet.Event, trumpet.EventID, error) {
	l.reads.Add(1)
	if now := l.now.Add(1); now > l.most.Load() {
		l.most.Store(now)
	}
	defer l.now.Add(-1)
	if l.gate != nil {
		select {
		case <-l.gate:
		case <-ctx.Done():
			return nil, trumpet.EventID{}, ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return nil, trumpet.EventID{}, l.fail
	}
	if after.Compare(l.pruned) < 0 {
		return nil, trumpet.EventID{}, fmt.Errorf("read log: %w", trumpet.ErrPruned)
	}
	known := l.heads[after]
	var out []trumpet.Event
	upTo := after
	for _, e := range l.events {
		known = known || e.ID == after
		if e.ID.Compare(after) <= 0 || e.ID.Compare(until) > 0 {
			continue
		}
		if len(out) >= l.page && !out[len(out)-1].More {
			break
		}
		out = append(out, e)
		upTo = e.ID
	}
	if !known {
		return nil, trumpet.EventID{}, fmt.Errorf("read log: %w", trumpet.ErrUnknownID)
	}
	if len(out) < l.page && until.Compare(upTo) > 0 {
		upTo = until
	}
	return out, upTo, nil
}

// Whatever the transactions, the topics, the size of the list and the id that a client
// left off at: it gets all after it, once, in order, and then goes on live.
func TestResumeIsGapFreeAndDuplicateFree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		transactions := history(r, 1, rapid.IntRange(1, 120).Draw(t, "transactions"), rapid.SampledFrom([]int{0, 50, 3000}).Draw(t, "size"))
		events := flat(transactions)
		topics := rapid.SampledFrom(topicChoices).Draw(t, "topics")
		format := rapid.SampledFrom([]wire.Format{wire.WebSocket, wire.SSE}).Draw(t, "format")
		from := rapid.IntRange(-1, len(events)-1).Draw(t, "from")
		atAttach := rapid.IntRange(0, len(transactions)).Draw(t, "appended before the client comes")
		config := Config{
			RingEvents: rapid.SampledFrom([]int{1, 5, 30, 10_000}).Draw(t, "ring"), Patience: limit, MaxLag: 2 * limit, Shards: 2, farewell: limit,
			LogBytes: rapid.SampledFrom([]int64{1, 20_000, 64 << 20}).Draw(t, "log bytes"),
		}

		log := &fakeLog{page: rapid.IntRange(1, 40).Draw(t, "page")}
		log.add(nil, trumpet.EventID{})
		h, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		h.UseLog(log)
		h.Reset(trumpet.EventID{})
		h.Live()
		give := func(transactions [][]trumpet.Event) {
			for len(transactions) > 0 {
				n := min(1+r.IntN(4), len(transactions))
				some := flat(transactions[:n])
				log.add(some, last(some))
				h.Append(some, last(some))
				transactions = transactions[n:]
			}
		}
		give(transactions[:atAttach])
		// The client may have been with a worker that is ahead of this one.
		if n := len(flat(transactions[:atAttach])); from >= n {
			log.add(events[n:from+1], events[from].ID)
			log.mu.Lock()
			log.events = log.events[:n]
			log.heads[events[from].ID] = true
			log.mu.Unlock()
		}
		since := trumpet.EventID{}
		if from >= 0 {
			since = events[from].ID
		}
		small := rapid.Bool().Draw(t, "small buffers")
		connect := func() *peer {
			return newPeer(t, h, Client{Format: format, Interests: follow(topics...), Resume: true, Since: since}, small)
		}
		p := connect()
		var work sync.WaitGroup
		work.Go(func() { give(transactions[atAttach:]) })

		// What is expected of the events after since, whatever place ready has among them.
		want := expected(events, topics...)
		for len(want) > 0 && from >= 0 {
			if mustParse(t, want[0].ID).Compare(since) > 0 {
				break
			}
			want = want[1:]
		}
		ready := false
		for i := 0; i < len(want) || !ready; {
			m := p.mustNext(t)
			switch {
			case m.Type == "ready":
				if ready || !m.Resumed {
					t.Fatalf("got %+v, ready before: %v", m, ready)
				}
				ready = true
			case m.Type == "stale" || m.Type == "live":
			case m.close == trumpet.EndingSlow.Code || m.Code == trumpet.EndingSlow.Name:
				// It was live and fell off the list. It comes back, as any client does.
				if !ready {
					t.Fatalf("got %+v before ready", m)
				}
				p.hangUp()
				p, ready = connect(), false
			case m.Type != "":
				t.Fatalf("got %+v", m)
			case i == len(want):
				t.Fatalf("got %+v after the last event", m)
			case m.ID != want[i].ID || m.More != want[i].More:
				t.Fatalf("event %d: got %+v, want %+v", i, m, want[i])
			default:
				i++
				since = mustParse(t, m.ID)
			}
		}
		work.Wait()
		end := []trumpet.Event{event(1_000_000, 0, topics[0], false, 1)}
		log.add(end, last(end))
		h.Append(end, last(end))
		p.expectEvents(t, expected(end, topics[0]))
		p.hangUp()
	})
}

func mustParse(t fataler, text string) trumpet.EventID {
	t.Helper()
	id, err := trumpet.ParseEventID(text)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	return id
}

func TestRefusedResume(t *testing.T) {
	t.Parallel()
	h := start(t, Config{RingEvents: 2})
	log := &fakeLog{page: 10, pruned: trumpet.EventID{Position: 3}}
	h.UseLog(log)
	for i := range int64(20) {
		events := []trumpet.Event{event(i+1, 0, "a", false, 1)}
		log.add(events, last(events))
		h.Append(events, last(events))
	}
	for name, test := range map[string]struct {
		client Client
		reason string
	}{
		"pruned":       {Client{Resume: true, Since: trumpet.EventID{Position: 2, Tag: 2}}, "pruned"},
		"unknown":      {Client{Resume: true, Since: trumpet.EventID{Position: 5, Tag: 1}}, "unknown"},
		"unknown here": {Client{Resume: true, Since: trumpet.EventID{Position: 20, Tag: 1}}, "unknown"},
		"ahead":        {Client{Resume: true, Since: trumpet.EventID{Position: 900, Tag: 1}}, "unknown"},
		"invalid":      {Client{Refused: wire.ReasonInvalid}, "invalid"},
	} {
		for format := range wire.Formats {
			t.Run(name+" "+format.String(), func(t *testing.T) {
				client := test.client
				client.Format, client.Interests = format, follow("a")
				before := h.Stats().Resets[wire.Reason(test.reason)]
				p := newPeer(t, h, client, false)
				if m := p.expect(t, "reset"); m.Reason != test.reason || m.ID != "20.0-00000014" {
					t.Errorf("got %+v", m)
				}
				if m := p.expect(t, "ready"); m.Resumed || m.ID != "20.0-00000014" {
					t.Errorf("got %+v", m)
				}
				if h.Stats().Resets[wire.Reason(test.reason)] != before+1 {
					t.Error("the reset was not counted")
				}
				p.hangUp()
			})
		}
	}
}

func TestResumeWithoutPostgresIsSentAway(t *testing.T) {
	t.Parallel()
	h := start(t, Config{RingEvents: 1, Patience: 300 * time.Millisecond})
	h.UseLog(&fakeLog{page: 10, fail: errors.New("no connection")})
	events := []trumpet.Event{event(1, 0, "a", false, 1), event(2, 0, "a", false, 1), event(3, 0, "a", false, 1)}
	for i := range events {
		h.Append(events[i:i+1], events[i].ID)
	}
	p := newPeer(t, h, Client{Format: wire.WebSocket, Interests: follow("a"), Resume: true, Since: events[0].ID}, false)
	p.expectEnd(t, trumpet.EndingUnavailable)
	p.hangUp()
}

// Many clients that come back at once cost Postgres a few reads.
func TestResumesShareReads(t *testing.T) {
	t.Parallel()
	h := start(t, Config{RingEvents: 1, LogPages: 2})
	log := &fakeLog{page: 1000, gate: make(chan struct{})}
	log.add(nil, trumpet.EventID{})
	h.UseLog(log)
	var events []trumpet.Event
	for i := range int64(100) {
		events = append(events, event(i+1, 0, "a", false, 10))
		h.Append(events[i:], events[i].ID)
	}
	log.add(events, last(events))
	var peers []*peer
	for i := range 60 {
		from := events[i%3]
		peers = append(peers, newPeer(t, h, Client{Format: wire.Format(i % 2), Interests: follow("a"), Resume: true, Since: from.ID}, false))
	}
	eventually(t, "all wait", func() bool {
		h.pages.mu.Lock()
		defer h.pages.mu.Unlock()
		refs := 0
		for _, page := range h.pages.reading {
			refs += page.refs
		}
		return refs == len(peers)
	})
	close(log.gate)
	for i, p := range peers {
		p.expectEvents(t, expected(events[i%3+1:], "a"))
		p.expect(t, "ready")
		p.hangUp()
	}
	// Three, or two: an id within a page that was read has that.
	if reads, most := log.reads.Load(), log.most.Load(); reads > 3 || most > 2 {
		t.Errorf("%d reads, %d at once", reads, most)
	}
	if s := h.Stats(); s.ResumesFromLog != 60 {
		t.Errorf("stats are %+v", s)
	}
}
