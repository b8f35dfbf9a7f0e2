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
type wheel struct {
	interval time.Duration
	tick     time.Duration
	slots    [wheelSlots][]*Conn
	now      int
}

func newWheel(interval time.Duration) wheel {
	return wheel{interval: interval, tick: interval / wheelSlots}
}

func (w *wheel) add(c *Conn) {
	c.seat = len(w.slots[c.slot])
	w.slots[c.slot] = append(w.slots[c.slot], c)
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
	turn := s.wheel.slots[s.wheel.now]
	if len(turn) == 0 {
		return
	}
	var pings [wire.Formats][]byte // each tick's own: a socket may keep the rest
	silent := now.Add(-2 * s.wheel.interval).UnixNano()
	for i := len(turn) - 1; i >= 0; i-- {
		c := turn[i]
		format := c.reader.format
		if format == wire.WebSocket && c.heard.Load() < silent {
			s.end(c, trumpet.EndingUnresponsive)
			continue
		}
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
