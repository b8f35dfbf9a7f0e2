package hub

import (
	"bytes"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// stubborn are the ways in which a client has much to take.
var stubborn = map[string]func(t *testing.T, h *Hub, log *fakeLog, events []trumpet.Event, client Client) *peer{
	"live": func(t *testing.T, h *Hub, log *fakeLog, events []trumpet.Event, client Client) *peer {
		client.Resume = false
		p := newPeer(t, h, client, true)
		p.expect(t, "ready")
		for i := range events {
			log.add(events[i:i+1], events[i].ID)
			give(h, events[i])
		}
		return p
	},
	"replayed from the list": func(t *testing.T, h *Hub, log *fakeLog, events []trumpet.Event, client Client) *peer {
		for i := range events {
			log.add(events[i:i+1], events[i].ID)
			give(h, events[i])
		}
		return newPeer(t, h, client, true)
	},
	"replayed from the log": func(t *testing.T, h *Hub, log *fakeLog, events []trumpet.Event, client Client) *peer {
		log.add(events, last(events))
		h.list.mu.Lock()
		h.list.maxEvents = 1
		h.list.mu.Unlock()
		give(h, events...)
		return newPeer(t, h, client, true)
	},
}

// A client that takes nothing, or a byte now and then, is ended soon, whatever it is being
// given; others are not touched; and it goes on exactly where it was cut off.
func TestWhoeverIsTooSlowIsEndedAndResumes(t *testing.T) {
	t.Parallel()
	for way, begin := range stubborn {
		for _, trickle := range []bool{false, true} {
			for format := range wire.Formats {
				name := way + ", takes nothing, " + format.String()
				if trickle {
					name = way + ", a byte now and then, " + format.String()
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					h, err := New(Config{MaxLag: time.Second, farewell: 100 * time.Millisecond})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(h.Close)
					log := &fakeLog{page: 50}
					log.add(nil, trumpet.EventID{})
					h.UseLog(log)
					h.Reset(trumpet.EventID{})
					h.Live()
					other := newPeer(t, h, Client{Format: format, Interests: follow("b")}, false)
					other.expect(t, "ready")
					var events []trumpet.Event
					for i := range int64(200) {
						events = append(events, event(i+1, 0, "a", false, 10_000))
					}
					client := Client{Format: format, Interests: follow("a"), Resume: true}
					p := begin(t, h, log, events, client)
					if trickle {
						p.trickle(t, func() bool { return h.Stats().Endings["slow"] == 1 })
					}
					eventually(t, "ended as slow", func() bool { return h.Stats().Endings["slow"] == 1 })
					select {
					case <-p.left: // its place is free
					case <-time.After(limit):
						t.Fatal("its place is still taken")
					}
					// What the kernel had taken is there to be read.
					got := 0
					for ; ; got++ {
						m, err := p.next()
						if err != nil || m.Type != "" || m.opcode > 1 {
							break
						}
						if m.ID != events[got].ID.String() {
							t.Fatalf("event %d: got %+v", got, m)
						}
						client.Since = events[got].ID
					}
					if got == len(events) {
						t.Fatal("it got everything")
					}
					client.Resume = true
					q := newPeer(t, h, client, false)
					q.expectEvents(t, expected(events[got:], "a"))
					if m := q.expect(t, "ready"); !m.Resumed {
						t.Fatalf("got %+v", m)
					}
					more := []trumpet.Event{event(1000, 0, "b", false, 1)}
					give(h, more...)
					other.expectEvents(t, expected(more, "b"))
					q.hangUp()
					other.hangUp()
					_ = p.far.Close()
				})
			}
		}
	}
}

// trickle takes a byte every 10 ms, and puts it back for who reads on.
func (p *peer) trickle(t *testing.T, over func() bool) {
	t.Helper()
	ahead, _ := p.read.Peek(p.read.Buffered())
	taken := bytes.NewBuffer(bytes.Clone(ahead))
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(limit); !over() && time.Now().Before(deadline); <-ticker.C {
		if _, err := io.CopyN(taken, p.far, 1); err != nil {
			t.Fatalf("take a byte: %v", err)
		}
	}
	p.read.Reset(io.MultiReader(taken, p.far))
}

// sipper is a socket that takes a byte at a time.
type sipper struct {
	finished chan struct{}
	once     sync.Once
	Socket
}

func (s *sipper) TryWrite([]byte) (int, error) { return 0, nil }
func (s *sipper) Hold()                        {}
func (s *sipper) Release(time.Time) error      { return nil }
func (s *sipper) Finish()                      { s.once.Do(func() { close(s.finished) }) }
func (s *sipper) Close() error                 { s.Finish(); return nil }
func (s *sipper) WriteUntil(b []byte, _ time.Time) (int, error) {
	<-time.After(time.Millisecond)
	return min(1, len(b)), os.ErrDeadlineExceeded
}

// waiter is a socket that cannot be cut: it waits for its client.
type waiter struct {
	sipper
	writes  atomic.Int64
	release chan struct{}
}

func (w *waiter) WriteUntil(b []byte, _ time.Time) (int, error) {
	if w.writes.Add(1) == 1 {
		<-time.After(patrol + 100*time.Millisecond)
	} else {
		<-w.release
	}
	return len(b), nil
}

// A client whose socket cannot be cut does not keep others waiting for their turn.
func TestSocketThatCannotBeCutTakesNoTurns(t *testing.T) {
	t.Parallel()
	for name, ring := range map[string]int{"from the log": 1, "from the list": 1000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, Config{turns: 1, MaxLag: 2 * limit, RingEvents: ring})
			log := &fakeLog{page: 5}
			log.add(nil, trumpet.EventID{})
			h.UseLog(log)
			var events []trumpet.Event
			for i := range int64(20) {
				events = append(events, event(i+1, 0, "a", false, 50_000))
			}
			log.add(events, last(events))
			give(h, events...)
			w := &waiter{sipper: sipper{finished: make(chan struct{})}, release: make(chan struct{})}
			released := sync.OnceFunc(func() { close(w.release) })
			t.Cleanup(released)
			conn, err := h.Attach(Client{Socket: w, Interests: follow("a"), Resume: true})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "it waits", func() bool { return w.writes.Load() == 2 })
			p := newPeer(t, h, Client{Interests: follow("a"), Resume: true}, false)
			p.expectEvents(t, expected(events, "a"))
			p.expect(t, "ready")
			p.hangUp()
			released()
			conn.Detach()
		})
	}
}

// A client that always takes something, but too little, is ended too.
func TestSipperIsEnded(t *testing.T) {
	t.Parallel()
	for name, resume := range map[string]bool{"live": false, "resumes": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, Config{MaxLag: 300 * time.Millisecond})
			give(h, event(1, 0, "a", false, 200_000))
			s := &sipper{finished: make(chan struct{})}
			conn, err := h.Attach(Client{Socket: s, Interests: follow("a"), Resume: resume})
			if err != nil {
				t.Fatal(err)
			}
			position := int64(1)
			eventually(t, "ended", func() bool {
				select {
				case <-s.finished:
					return true
				default: // it may not have joined yet
					position++
					give(h, event(position, 0, "a", false, 10_000))
					return false
				}
			})
			conn.Detach()
			if n := h.Stats().Endings["slow"]; n != 1 {
				t.Errorf("%d were ended as slow", n)
			}
		})
	}
}

// A WebSocket that answers no ping is ended at the next one, so within two intervals.
func TestVanishedClientIsEndedWithinTwoPings(t *testing.T) {
	t.Parallel()
	h, s := still(t, Config{}, 0)
	vanished := newPeer(t, h, Client{Format: wire.WebSocket}, false)
	answers := newPeer(t, h, Client{Format: wire.WebSocket}, false)
	stream := newPeer(t, h, Client{Format: wire.SSE}, false)
	for s.step() {
	}
	now := time.Now()
	heard := now
	turn := func() {
		for range wheelSlots {
			now = now.Add(s.wheel.tick)
			s.tick(now)
			answers.conn.heard.Store(now.Add(s.wheel.tick / 2).UnixNano()) // some slot later it answers
		}
	}
	turn() // all were pinged
	vanished.conn.heard.Store(now.UnixNano())
	heard = now
	turn()
	if vanished.conn.state != live {
		t.Fatal("it was ended at the ping that it could not have answered yet")
	}
	turn()
	if vanished.conn.state != ended {
		t.Fatalf("nothing was heard for %v, and it was not ended", now.Sub(heard))
	}
	const promised = 40 * time.Second
	if silence := now.Sub(heard) + h.config.farewell + time.Second; silence > promised {
		t.Errorf("its place is free after %v", silence)
	}
	if answers.conn.state != live || stream.conn.state != live {
		t.Error("somebody else was ended")
	}
	// While events go on, the kernel has 15 s before there is a drainer.
	if silence := 15*time.Second + h.config.MaxLag + patrol + h.config.farewell + time.Second; silence > promised {
		t.Errorf("its place is free after %v", silence)
	}
	for _, p := range []*peer{vanished, answers, stream} {
		_ = p.far.Close()
	}
	for s.step() || len(s.conns) > 0 {
	}
}
