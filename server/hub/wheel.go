package hub

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

const (
	// wheelSlots is how many parts a ping interval has; in each, a part of the
	// connections has its turn.
	wheelSlots = 25
	// departureTick is how often some clients are sent away while all are.
	departureTick = 20 * time.Millisecond
)

// wheel is all timers of a shard: each live connection has its turn once an interval.
//
// The place of a client that vanished without a word is free within 40 s:
//
//   - A WebSocket is pinged at its turn and ended at the next one if nothing was heard since.
//     A client that vanishes right after its answer is ended two turns after that:
//     2 × 15 s + a slot of 0.6 s, + 1 s for the close frame + 1 s to hang up < 33 s.
//   - An SSE client is pinged within 15.6 s, and the kernel gives a connection up when it
//     acknowledged nothing for 15 s (TCP_USER_TIMEOUT, package socket): < 31 s.
//   - Where events go on, the same 15 s begin with the first that is not acknowledged. If the
//     socket's buffers are full before, a drainer waits, which the kernel leaves more time;
//     it ends the connection after MaxLag: 15 s + 20 s + 0.5 s + 2 s < 38 s.
type wheel struct {
	tick  time.Duration
	slots [wheelSlots][]*Conn
	now   int
}

func newWheel(interval time.Duration) wheel {
	return wheel{tick: interval / wheelSlots}
}

func (w *wheel) add(c *Conn) {
	c.seat = len(w.slots[c.slot])
	w.slots[c.slot] = append(w.slots[c.slot], c)
	c.pinged = 0
}

func (w *wheel) remove(c *Conn) {
	slot := w.slots[c.slot]
	last := len(slot) - 1
	slot[c.seat] = slot[last]
	slot[c.seat].seat = c.seat
	slot[last] = nil
	w.slots[c.slot] = slot[:last]
}

// tick pings the connections whose turn it is, and ends those that did not answer.
func (s *shard) tick(now time.Time) {
	for c := range s.waiting {
		if now.After(c.deadline) {
			s.end(c, trumpet.EndingUnavailable)
		}
	}
	s.wheel.now = (s.wheel.now + 1) % wheelSlots
	if s.wheel.now == 0 && s == s.hub.shards[0] {
		s.hub.pages.idle()
		s.hub.shots.idle()
	}
	turn := s.wheel.slots[s.wheel.now]
	if len(turn) == 0 {
		return
	}
	var pings [wire.Formats][]byte // each tick's own: a socket may keep the rest
	for i := len(turn) - 1; i >= 0; i-- {
		c := turn[i]
		format := c.reader.format
		if format == wire.WebSocket && c.heard.Load() < c.pinged {
			s.end(c, trumpet.EndingUnresponsive)
			continue
		}
		c.pinged = now.UnixNano()
		if pings[format] == nil {
			pings[format] = wire.AppendPing(nil, format, s.at.head, now)
			if format == wire.WebSocket {
				pings[format] = append(pings[format], wire.Ping...)
			}
		}
		s.write(c, pings[format])
	}
}

// departure is how all clients are sent away.
type departure struct {
	start time.Time
	queue []departing // the next one last
}

type departing struct {
	conn *Conn
	at   time.Duration // after the start
}

// sendAway begins to send all clients away, evenly over a time and in random order.
func (s *shard) sendAway(over time.Duration) {
	now := time.Now()
	s.away = &departure{start: now}
	for c := range s.conns {
		at := time.Duration(0)
		if over > 0 {
			at = rand.N(over)
		}
		s.away.queue = append(s.away.queue, departing{c, at})
	}
	slices.SortFunc(s.away.queue, func(a, b departing) int { return cmp.Compare(b.at, a.at) })
	s.depart(now)
}

// depart sends away those whose time has come.
func (s *shard) depart(now time.Time) {
	elapsed := now.Sub(s.away.start)
	for n := len(s.away.queue) - 1; n >= 0 && s.away.queue[n].at <= elapsed; n-- {
		s.end(s.away.queue[n].conn, trumpet.EndingDraining)
		s.away.queue = s.away.queue[:n]
	}
}
