package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// jobs is the table of these tests.
var jobs = trumpet.Table{
	Topic: "jobs", Schema: "public", Name: "jobs", Key: []string{"id"},
	Columns: []trumpet.Column{
		{Name: "id", Type: "integer", Kind: trumpet.KindNumber},
		{Name: "status", Type: "text", Kind: trumpet.KindText},
		{Name: "n", Type: "numeric", Kind: trumpet.KindNumber},
	},
}

// interest compiles a subscription to the table.
func interest(t fataler, text string) Interest {
	t.Helper()
	s, err := trumpet.ParseSubscription(text)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if len(s.Conditions) == 0 {
		return Interest{Subscription: s}
	}
	m, err := s.Compile(jobs)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return Interest{Subscription: s, Matcher: m}
}

func interestsIn(t fataler, texts ...string) []Interest {
	t.Helper()
	var out []Interest
	for _, text := range texts {
		out = append(out, interest(t, text))
	}
	return out
}

type job struct {
	ID     int     `json:"id"`
	Status *string `json:"status"`
	N      int     `json:"n"`
}

func (j job) json() json.RawMessage {
	b, err := json.Marshal(j)
	if err != nil {
		panic(err)
	}
	return b
}

// taken reports what the conditions of these tests mean, said once more in Go.
func (j job) taken(text string) bool {
	is := func(s string) bool { return j.Status != nil && *j.Status == s }
	switch text {
	case "jobs":
		return true
	case "jobs?status=eq.open":
		return is("open")
	case "jobs?status=not.eq.open":
		return j.Status != nil && !is("open")
	case "jobs?n=lt.5&status=in.(done,open)":
		return (is("open") || is("done")) && j.N < 5
	case "jobs?n=gte.7":
		return j.N >= 7
	case "jobs?status=is.null":
		return j.Status == nil
	case "jobs?id=eq.3":
		return j.ID == 3
	case "jobs?id=in.(1,2,3,4)":
		return j.ID <= 4
	}
	panic(text)
}

var choices = []string{
	"jobs", "jobs?status=eq.open", "jobs?status=not.eq.open", "jobs?n=lt.5&status=in.(done,open)", "jobs?n=gte.7",
	"jobs?status=is.null", "jobs?id=eq.3", "jobs?id=in.(1,2,3,4)",
}

// world is a table with its log, and what reads both.
type world struct {
	fakeLog
	hub *Hub

	mu       sync.Mutex
	rows     map[int]job
	position int64
	at       trumpet.EventID
	linger   bool // until something more has happened, what is read is kept back
	reads    int
}

// ReadSnapshot implements Snapshots.
func (w *world) ReadSnapshot(_ context.Context, requests []trumpet.SnapshotRequest, _ trumpet.SnapshotLimits) (trumpet.Snapshot, error) {
	w.mu.Lock()
	defer func() {
		at, linger := w.at, w.linger
		w.mu.Unlock()
		for until := time.Now().Add(20 * time.Millisecond); linger && time.Now().Before(until); {
			if w.hub.Stats().Head.Compare(at) > 0 {
				return
			}
			runtime.Gosched()
		}
	}()
	w.reads++
	out := trumpet.Snapshot{At: w.at}
	for _, r := range requests {
		if r.Topic != jobs.Topic {
			continue
		}
		topic := trumpet.TopicSnapshot{Topic: r.Topic}
		for _, id := range slices.Sorted(maps.Keys(w.rows)) {
			var row trumpet.Row
			object := w.rows[id].json()
			if err := row.Parse(object); err != nil {
				return out, err
			}
			if len(r.Matchers) == 0 || slices.ContainsFunc(r.Matchers, func(m *trumpet.Matcher) bool { return m.Match(&row) == trumpet.True }) {
				if n := len(topic.Pages); n == 0 || len(topic.Pages[n-1]) == 5 {
					topic.Pages = append(topic.Pages, nil)
				}
				n := len(topic.Pages) - 1
				topic.Pages[n] = append(topic.Pages[n], object)
			}
		}
		out.Topics = append(out.Topics, topic)
	}
	return out, nil
}

// transact makes a transaction of some changes, and gives it to the log, and a little later to
// the hub.
func (w *world) transact(r *rand.Rand) {
	w.mu.Lock()
	var events []trumpet.Event
	for range 1 + r.IntN(4) {
		w.position++
		e := trumpet.Event{
			ID: trumpet.EventID{Position: w.position, Tag: uint32(w.position)}, Topic: "jobs", At: time.Unix(w.position, 0), More: true,
		}
		if r.IntN(40) == 0 {
			e.Op = trumpet.OpTruncate
			clear(w.rows)
			events = append(events, e)
			continue
		}
		id := 1 + r.IntN(12)
		old, there := w.rows[id]
		next := job{ID: id, N: r.IntN(10)}
		if r.IntN(4) > 0 {
			status := []string{"open", "done", "new"}[r.IntN(3)]
			next.Status = &status
		}
		switch {
		case !there:
			e.Op, e.New = trumpet.OpInsert, next.json()
			w.rows[id] = next
		case r.IntN(4) == 0:
			e.Op, e.Old = trumpet.OpDelete, old.json()
			next = old
			delete(w.rows, id)
		default:
			if other := 1 + r.IntN(12); r.IntN(4) == 0 {
				if _, taken := w.rows[other]; !taken {
					next.ID = other
				}
			}
			changed := map[string]any{}
			if next.ID != old.ID {
				changed["id"] = old.ID
			}
			if fmt.Sprint(deref(next.Status)) != fmt.Sprint(deref(old.Status)) {
				changed["status"] = old.Status
			}
			if next.N != old.N {
				changed["n"] = old.N
			}
			if len(changed) == 0 {
				continue
			}
			e.Op, e.New = trumpet.OpUpdate, next.json()
			e.Old, _ = json.Marshal(changed)
			delete(w.rows, id)
			w.rows[next.ID] = next
		}
		e.Key = json.RawMessage(fmt.Sprintf(`{"id":%d}`, next.ID))
		events = append(events, e)
	}
	if len(events) > 0 {
		events[len(events)-1].More = false
		w.at = last(events)
		w.add(events, w.at)
	}
	w.mu.Unlock()
	if len(events) > 0 {
		w.hub.Append(events, last(events))
	}
}

func deref(s *string) any {
	if s == nil {
		return nil
	}
	return *s
}

// keeper is a client that keeps the rows that it follows.
type keeper struct {
	follows  []string
	asked    []string // with a snapshot, and not answered yet
	lastID   string
	rows     map[int]job
	incoming map[int]job
}

// hear takes one message, and reports what is wrong with it.
func (k *keeper) hear(m message) error {
	id := func(object json.RawMessage) int {
		var key struct{ ID int }
		_ = json.Unmarshal(object, &key)
		return key.ID
	}
	put := func(object json.RawMessage, into map[int]job) {
		var j job
		_ = json.Unmarshal(object, &j)
		into[j.ID] = j
	}
	switch {
	case m.Type == "snapshot":
		if m.Page == 1 {
			k.incoming = map[int]job{}
		}
		for _, row := range m.Rows {
			put(row, k.incoming)
		}
		if !m.More {
			k.rows, k.incoming = k.incoming, nil
		}
	case m.Type == "subscribed":
		k.follows, k.asked = m.Topics, nil
	case m.Type != "":
	case m.Op == "truncate":
		clear(k.rows)
	case m.Op == "insert", m.Op == "enter":
		if _, there := k.rows[id(m.Key)]; there {
			return fmt.Errorf("got %+v, but it is there", m)
		}
		put(m.New, k.rows)
	case m.Op == "update":
		former := id(m.Key)
		if old := id(m.Old); old != 0 {
			former = old
		}
		if _, there := k.rows[former]; !there {
			return fmt.Errorf("got %+v, but there is no such row", m)
		}
		delete(k.rows, former)
		put(m.New, k.rows)
	case m.Op == "delete", m.Op == "leave":
		if _, there := k.rows[id(m.Key)]; !there {
			return fmt.Errorf("got %+v, but there is no such row", m)
		}
		delete(k.rows, id(m.Key))
	}
	if m.ID != "" {
		k.lastID = m.ID
	}
	return nil
}

// Whatever changes, and wherever clients are cut off, come back and ask for more: each one's
// rows are those that its filters take, and no change comes twice, or of a row that it has not.
func TestFilteredViewsAreExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		r := rand.New(rand.NewPCG(seed, 0))
		h, err := New(Config{
			RingEvents: rapid.SampledFrom([]int{8, 60, 10_000}).Draw(t, "ring"), Shards: 2, Patience: limit, MaxLag: 2 * limit,
			Ping: 100 * time.Millisecond, farewell: limit,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		w := &world{hub: h, rows: map[int]job{}, linger: rapid.Bool().Draw(t, "linger")}
		w.page = rapid.IntRange(1, 20).Draw(t, "page")
		w.fakeLog.add(nil, trumpet.EventID{})
		h.UseLog(w)
		h.UseSnapshots(w)
		h.Reset(trumpet.EventID{})
		h.Live()

		var over sync.WaitGroup
		var answers atomic.Int64
		ended, stop := make(chan struct{}), make(chan struct{})
		failures := make(chan error, 16) // one a client
		for i := range 10 {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			k := &keeper{follows: []string{choices[random.IntN(len(choices))], "end"}}
			if random.IntN(2) == 0 {
				k.follows = append(k.follows, choices[random.IntN(len(choices))])
			}
			format := wire.Format(i % 2)
			connect := func() *peer {
				client := Client{Format: format, Interests: interestsIn(t, k.follows...), Snapshot: true}
				if k.asked != nil { // and not answered: all anew
					k.follows, k.asked, k.lastID = append(k.follows, k.asked...), nil, ""
					client.Interests = interestsIn(t, k.follows...)
				}
				if k.lastID != "" {
					client.Resume, client.Since = true, mustParse(t, k.lastID)
				}
				k.incoming = nil
				return newPeer(t, h, client, false)
			}
			p := connect()
			over.Go(func() {
				defer func() { p.hangUp() }()
				for {
					m, err := p.next()
					p.conn.Heard()
					if err == nil && m.Topic == "end" {
						if k.asked == nil {
							break
						}
					}
					cut := m.Type == "error" || m.opcode == 8 || m.Type == "reset" && m.ID != ""
					if err == nil && !cut && m.opcode < 8 {
						err = k.hear(m)
					}
					if err != nil {
						failures <- fmt.Errorf("client %d (%v): %w", i, k.follows, err)
						return
					}
					switch m.Type {
					case "reset":
						k.lastID = ""
					case "ready", "subscribed":
						answers.Add(1)
					}
					select {
					case <-stop:
						return
					default:
					}
					if cut || random.IntN(30) == 0 {
						p.hangUp()
						p = connect()
						continue
					}
					if m.Type == "ready" && format == wire.WebSocket && random.IntN(3) == 0 && k.asked == nil {
						k.asked = []string{choices[random.IntN(len(choices))]}
						if err := p.conn.Change(Change{Snapshot: true, Interests: interestsIn(t, k.asked...)}); err != nil {
							failures <- err
							return
						}
					}
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				for id, row := range w.rows {
					want := slices.ContainsFunc(k.follows, func(f string) bool { return f != "end" && row.taken(f) })
					got, has := k.rows[id]
					if want != has || has && string(got.json()) != string(row.json()) {
						failures <- fmt.Errorf("client %d (%v): row %s is %v, want %v", i, k.follows, row.json(), has, want)
						return
					}
				}
				if slices.ContainsFunc(slices.Collect(maps.Keys(k.rows)), func(id int) bool { _, ok := w.rows[id]; return !ok }) {
					failures <- fmt.Errorf("client %d (%v) has rows that are gone", i, k.follows)
				}
			})
		}
		// Until clients have begun and been answered often enough while rows changed, but not longer
		// than a client that reads a small log page by page can follow.
		writing := time.NewTicker(500 * time.Microsecond)
		defer writing.Stop()
		wanted := int64(rapid.IntRange(10, 60).Draw(t, "answers"))
		for n := 0; n < 80 && answers.Load() < wanted && len(failures) == 0; n++ {
			w.transact(r)
			<-writing.C
		}
		// The end is said again and again, because some may not follow yet.
		saying := time.NewTicker(5 * time.Millisecond)
		defer saying.Stop()
		go func() { over.Wait(); close(ended) }()
		for said := false; ; {
			select {
			case err := <-failures:
				close(stop)
				h.Close()
				over.Wait()
				t.Fatalf("%v", err)
			case <-ended:
				said = true
			case <-saying.C:
				w.mu.Lock()
				w.position++
				e := event(w.position, 0, "end", false, 1)
				w.at = e.ID
				w.add([]trumpet.Event{e}, e.ID)
				w.mu.Unlock()
				h.Append([]trumpet.Event{e}, e.ID)
			}
			if said {
				break
			}
		}
		select {
		case err := <-failures:
			t.Fatalf("%v", err)
		default:
		}
	})
}

// Ten thousand different filters by value, and as many by range.
func BenchmarkFilters(b *testing.B) {
	for _, kind := range []string{"id=eq.%d", "n=gt.%d"} {
		for _, filters := range []int{1, 100, 10_000} {
			b.Run(fmt.Sprintf("%s/filters=%d", kind[:4], filters), func(b *testing.B) {
				x := newIndex()
				for i := range filters {
					x.add(&group{reader: reader{wire.SSE, newInterests(interestsIn(b, "jobs?"+fmt.Sprintf(kind, 1_000_000+i)))}})
				}
				status := "open"
				e := trumpet.Event{
					Topic: "jobs", Op: trumpet.OpUpdate, Key: json.RawMessage(`{"id":1000000}`),
					New: job{ID: 1_000_000, Status: &status, N: 1}.json(), Old: json.RawMessage(`{"n":2}`),
				}
				n := eventNode([]trumpet.Event{e}, trumpet.EventID{Position: 1})
				b.ReportAllocs()
				for b.Loop() {
					x.pick(n, 0, 0)
					for _, g := range x.picked {
						g.picks = g.picks[:0]
					}
					x.picked = x.picked[:0]
				}
			})
		}
	}
}

func TestFilteredDeliveryDoesNotAllocate(t *testing.T) {
	x := newIndex()
	for i := range 100 {
		for _, filter := range []string{"id=eq.", "n=gt.", "status=in.(open,done)&id=lt."} {
			x.add(&group{reader: reader{wire.SSE, newInterests(interestsIn(t, "jobs?"+filter+strconv.Itoa(i)))}})
		}
	}
	status := "open"
	e := trumpet.Event{
		Topic: "jobs", Op: trumpet.OpUpdate, Key: json.RawMessage(`{"id":7}`),
		New: job{ID: 7, Status: &status, N: 50}.json(), Old: json.RawMessage(`{"n":2,"status":null}`),
	}
	n := eventNode([]trumpet.Event{e}, trumpet.EventID{Position: 1})
	seen := 0
	pick := func() {
		x.pick(n, 0, 0)
		seen = len(x.picked)
		for _, g := range x.picked {
			g.picks = g.picks[:0]
		}
		x.picked = x.picked[:0]
	}
	pick()
	if n := testing.AllocsPerRun(100, pick); n != 0 {
		t.Errorf("%v allocations for one event", n)
	}
	// One by id; n was 2 and is 50; id < i for i from 8, where it entered.
	if want := 1 + 50 + 92; seen != want {
		t.Errorf("%d groups saw it, want %d", seen, want)
	}
}
