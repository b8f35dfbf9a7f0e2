package hub

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// past knows what each id stands for: the events that led to it.
type past struct {
	mu   sync.Mutex
	upTo map[trumpet.EventID][]trumpet.Event
}

func (p *past) of(id trumpet.EventID, topics []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, e := range p.upTo[id] {
		if slices.Contains(topics, e.Topic) {
			out = append(out, e.ID.String())
		}
	}
	return out
}

// believer is a client that keeps what it takes for the truth, comes back wherever it was
// cut off, and believes what it is told.
type believer struct {
	past   *past
	topics []string
	exact  bool // the hub remembers all that it gave
	view   []string
	lastID string
}

// hear takes one message, and reports what is wrong with it.
func (b *believer) hear(m message) error {
	id, err := trumpet.ParseEventID(m.ID)
	if m.ID != "" && err != nil {
		return err
	}
	switch m.Type {
	case "":
		if m.ID == "" {
			return nil
		}
		b.view = append(b.view, m.ID)
	case "reset":
		if b.exact && m.Reason == "lost" && slices.Equal(b.view, b.past.of(id, b.topics)) {
			return fmt.Errorf("got %+v, but nothing was lost", m)
		}
		b.view = b.past.of(id, b.topics)
	case "ready", "ping":
		stands := b.past.of(id, b.topics)
		if m.Type == "ready" && !m.Resumed {
			b.view = stands
		}
		if !slices.Equal(b.view, stands) {
			return fmt.Errorf("got %+v, which stands for %v, having %v", m, stands, b.view)
		}
	default:
		return nil
	}
	b.lastID = m.ID
	return nil
}

// Whatever comes and is lost, and wherever clients are cut off and come back: at every ready
// and ping a client has what the id stands for, and nothing is reset without need.
func TestRewindsLeaveEveryClientWithTheTruth(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		r := rand.New(rand.NewPCG(seed, 0))
		config := Config{
			RingEvents: rapid.SampledFrom([]int{8, 60, 10_000}).Draw(t, "ring"), Shards: 2, Patience: limit, MaxLag: 2 * limit,
			Ping: 100 * time.Millisecond, turns: rapid.SampledFrom([]int{1, 3, 128}).Draw(t, "turns"), farewell: limit,
			LogBytes: rapid.SampledFrom([]int64{1, 20_000, 64 << 20}).Draw(t, "log bytes"),
		}
		size := rapid.SampledFrom([]int{0, 50, 20_000}).Draw(t, "size")
		steps := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 60).Draw(t, "steps")

		log := &fakeLog{page: rapid.IntRange(1, 20).Draw(t, "page")}
		log.add(nil, trumpet.EventID{})
		h, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		h.UseLog(log)
		truth := &past{upTo: map[trumpet.EventID][]trumpet.Event{{}: nil}}
		h.Reset(trumpet.EventID{})
		h.Live()

		end := "" // the last event's id, once it is known
		var mu sync.Mutex
		over := func(b *believer) bool {
			mu.Lock()
			defer mu.Unlock()
			return end != "" && slices.Contains(b.view, end)
		}
		var work sync.WaitGroup
		failures := make(chan error, 8)
		for i := range 8 {
			b := &believer{past: truth, topics: append([]string{"end"}, topicChoices[i%len(topicChoices)]...), exact: config.RingEvents > 1000}
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			connect := func() *peer {
				client := Client{Format: wire.Format(i % 2), Interests: follow(b.topics...)}
				if b.lastID != "" {
					client.Resume, client.Since = true, mustParse(t, b.lastID)
				}
				return newPeer(t, h, client, i < 4)
			}
			p := connect()
			work.Go(func() {
				defer func() { p.hangUp() }()
				for !over(b) {
					m, err := p.next()
					p.conn.Heard()
					ended := m.Type == "error" || m.opcode == 8 || random.IntN(40) == 0
					if err == nil && !ended && m.opcode < 8 {
						err = b.hear(m)
					}
					if err != nil {
						failures <- fmt.Errorf("client %d: %w", i, err)
						return
					}
					if ended { // or it hangs up by itself
						p.hangUp()
						p = connect()
					}
				}
			})
		}

		var events []trumpet.Event // what stands
		position, tag := int64(0), uint32(0)
		add := func(topic string, rows int) {
			var some []trumpet.Event
			position++
			tag++
			for o := range rows {
				e := event(position, int32(o), topic, o < rows-1, r.IntN(size+1))
				e.ID.Tag = tag
				some = append(some, e)
			}
			truth.mu.Lock()
			for _, e := range some {
				events = append(events, e)
				truth.upTo[e.ID] = events
			}
			truth.mu.Unlock()
			log.add(some, last(some))
			h.Append(some, last(some))
		}
		for _, step := range steps {
			switch {
			case step == 0 && len(events) > 0:
				keep := len(events) - r.IntN(min(len(events), 20)+1)
				for keep > 0 && keep < len(events) && events[keep-1].More {
					keep--
				}
				to := trumpet.EventID{}
				if keep > 0 {
					to = events[keep-1].ID
				}
				events = slices.Clone(events[:keep])
				position = to.Position
				log.rewind(to)
				h.Rewind(to)
			case step == 1:
				h.Append([]trumpet.Event{{Topic: "a", Op: trumpet.OpBroadcast, Data: event(1, 0, "", false, 2*size).Data}}, h.Stats().Head)
			case step == 2:
				h.Stale()
				h.Live()
			default:
				for range 1 + r.IntN(5) {
					add(string(rune('a'+r.IntN(3))), 1+r.IntN(3))
				}
			}
		}
		mu.Lock()
		position++
		tag++
		last := event(position, 0, "end", false, 1)
		last.ID.Tag = tag
		end = last.ID.String()
		truth.mu.Lock()
		events = append(events, last)
		truth.upTo[last.ID] = events
		truth.mu.Unlock()
		mu.Unlock()
		log.add([]trumpet.Event{last}, last.ID)
		h.Append([]trumpet.Event{last}, last.ID)
		work.Wait()
		close(failures)
		for err := range failures {
			t.Fatal(err)
		}
	})
}
