package oracle

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// wish is a frame that a client sent.
type wish struct {
	ref           int
	subscriptions []string // all, if it is granted
	topics        []string // of which snapshots must come
	snapshot      bool
	own           bool // a snapshot that it needs to go on
	given         bool // a snapshot came: a view is ahead of the last id
	done          bool // all came: from there on it is followed, and the answer comes soon
}

// subscribed takes the answer to a frame: from here on the client follows what it asked for.
func (c *client) subscribed(m *trumpettest.Message, id trumpet.EventID) *broken {
	if c.board == nil || c.board.wish == nil || string(m.Ref) != fmt.Sprint(c.board.wish.ref) {
		return breaks(ordered, "it got an answer to a frame that it did not send: ref %s", m.Ref)
	}
	w := c.board.wish
	c.board.wish = nil
	c.note("is told that %d is done at %s", w.ref, m.ID)
	if w.snapshot && len(w.topics) > 0 {
		return breaks(delivered, "its subscription %d is complete after %s, and no snapshot of %s came", w.ref, m.ID, w.topics)
	}
	var names []string
	for _, text := range w.subscriptions {
		for _, f := range filters {
			if f.told != "" && f.subscription() == text {
				text = f.topic + "?" + f.told
			}
		}
		s, err := trumpet.ParseSubscription(text)
		if err != nil {
			return breaks(ordered, "%s is no subscription: %v", text, err)
		}
		names = append(names, s.String())
	}
	slices.Sort(names)
	if !slices.Equal(names, m.Topics) {
		return breaks(ordered, "its subscriptions are %q, and must be %q", m.Topics, names)
	}
	c.run.tally.wishes.Add(1)
	if b := c.claim(id, "subscribed"); b != nil {
		return b
	}
	c.last = m.ID
	if w.done {
		return nil
	}
	c.former = append(c.former, c.stretch)
	c.want(w.subscriptions)
	c.stretch = &stretch{after: id, follows: c.interest}
	return nil
}

// refused takes the answer to a frame that cannot be granted: what needs it begins anew.
func (c *client) refused(conn *connection, m *trumpettest.Message) *broken {
	if c.board == nil || c.board.wish == nil || string(m.Ref) != fmt.Sprint(c.board.wish.ref) {
		return breaks(ordered, "it got a refusal of a frame that it did not send: ref %s", m.Ref)
	}
	w := c.board.wish
	c.board.wish = nil
	c.run.tally.refused.Add(1)
	c.note("is told that %d is refused: %s", w.ref, m.Message)
	if !strings.Contains(m.Message, "later") {
		return breaks(delivered, "its subscription is refused for good: %s", m.Message)
	}
	if w.own { // as client.js, which begins anew
		conn.ours = true
		conn.Cut()
	}
	return nil
}

// seek asks for what a board needs, or, now and then, wants. leave: the connection is of no use any more.
func (c *client) seek(ctx context.Context, conn *connection) (leave bool) {
	storming, _ := c.run.storming()
	c.mu.Lock()
	b := c.board
	w := &wish{subscriptions: b.subscriptions}
	var topics []string // what the frame names
	unsubscribe := false
	switch {
	case c.spoiled || b.wish != nil || conn.anew || !conn.ready && b.rng.IntN(2) == 0: // also asks while it catches up
	case len(b.loose) > 0:
		if time.Since(b.asked) < 300*time.Millisecond {
			break
		}
		if c.transport == trumpettest.SSE {
			c.note("comes back for a snapshot")
			conn.ours, leave = true, true // it will be dialled without an id
			break
		}
		w.own, w.snapshot = true, true
		for _, s := range b.subscriptions {
			if topic, _, _ := strings.Cut(s, "?"); b.loose[topic] {
				topics = append(topics, s)
			}
		}
	case b.wishes && storming && conn.ready && time.Now().After(b.nextWish):
		if !b.nextWish.IsZero() {
			topics, unsubscribe = b.choose()
			w.snapshot = !unsubscribe
		}
		b.nextWish = time.Now().Add(time.Duration(b.rng.IntN(int(c.run.config.Restless))))
	}
	if topics == nil {
		c.mu.Unlock()
		return leave
	}
	b.refs++
	w.ref, b.asked = b.refs, time.Now()
	frame := map[string]any{"type": "subscribe", "ref": w.ref, "topics": topics}
	if unsubscribe {
		frame["type"] = "unsubscribe"
		w.subscriptions = slices.DeleteFunc(slices.Clone(b.subscriptions), func(s string) bool { return slices.Contains(topics, s) })
	} else {
		w.subscriptions = slices.Clone(b.subscriptions)
		for _, s := range topics {
			if !slices.Contains(w.subscriptions, s) {
				w.subscriptions = append(w.subscriptions, s)
			}
			if topic, _, _ := strings.Cut(s, "?"); maxRows[topic] > 0 && !slices.Contains(w.topics, topic) {
				w.topics = append(w.topics, topic)
			}
		}
		w.snapshot = len(w.topics) > 0
		frame["snapshot"] = w.snapshot
	}
	b.wish = w
	c.note("asks, as %d, to %s %s", w.ref, frame["type"], topics)
	c.mu.Unlock()
	text, err := json.Marshal(frame)
	if err != nil {
		panic(err) // strings and numbers
	}
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_ = conn.Send(bounded, string(text)) // the connection has ended: reading says so
	return false
}

// choose is a random wish: to leave all of a topic, or to follow something more.
func (b *board) choose() (topics []string, unsubscribe bool) {
	if n := len(b.subscriptions); n > 1 && b.rng.IntN(3) == 0 || n > 8 {
		leave, _, _ := strings.Cut(b.subscriptions[1+b.rng.IntN(n-1)], "?") // markers are the first
		for _, s := range b.subscriptions {
			if topic, _, _ := strings.Cut(s, "?"); topic == leave {
				topics = append(topics, s)
			}
		}
		return topics, true
	}
	names := append(liveNames(), "jobs", "customers", "dispatch")
	for range 1 + b.rng.IntN(3) {
		if b.rng.IntN(3) == 0 {
			topics = append(topics, names[b.rng.IntN(len(names))])
		} else {
			topics = append(topics, filters[b.rng.IntN(len(filters))].subscription())
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics), false
}
