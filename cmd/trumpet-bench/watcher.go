package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// arrival is when a client had something that is true of a place in the order of all changes.
type arrival struct {
	place int64
	at    time.Time
}

// watcher is a client of live topics, or of one table's events.
type watcher struct {
	follower
	topics []string

	mu       sync.Mutex
	arrivals map[string][]arrival // by topic
	last     map[string]string    // the newest message
	err      error
}

// crowd is many watchers on some workers.
type crowd struct {
	watchers []*watcher
	end      context.CancelFunc
	done     sync.WaitGroup
}

// gather connects that many watchers, half of them WebSockets, in turn to the workers.
func gather(ctx context.Context, workers []*worker, n int, topics ...string) *crowd {
	c := &crowd{}
	ctx, c.end = context.WithCancel(ctx)
	for i := range n {
		w := &watcher{topics: topics, arrivals: make(map[string][]arrival), last: make(map[string]string)}
		w.address, w.sse = workers[i%len(workers)].address, i/len(workers)%2 == 1
		w.query = "topics=" + strings.Join(topics, ",")
		c.watchers = append(c.watchers, w)
		c.done.Go(func() {
			err := w.follow(ctx, w.take)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.err = err
		})
	}
	return c
}

// leave ends all connections.
func (c *crowd) leave() {
	c.end()
	c.done.Wait()
}

// take notes a message. It looks for the few members that it needs, wherever they stand.
func (w *watcher) take(message []byte) error {
	at := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if bytes.HasPrefix(message, []byte(`{"type":"ready"`)) {
		w.last["ready"] = string(message)
		return nil
	}
	topic, ok := member(message, `"topic":"`)
	if !ok || bytes.HasPrefix(message, []byte(`{"type"`)) {
		return nil
	}
	name := string(topic[:max(0, bytes.IndexByte(topic, '"'))])
	place, _ := member(message, `{"id":"`)
	if bytes.Contains(message, []byte(`"op":"result"`)) {
		// What is stale, or not there yet, is true of no place.
		if place, ok = member(message, `"as_of":`); !ok || bytes.Contains(message, []byte(`"stale":true`)) {
			return nil
		}
	}
	w.arrivals[name] = append(w.arrivals[name], arrival{position(place), at})
	w.last[name] = string(message)
	return nil
}

// newest is the newest message of a topic.
func (w *watcher) newest(topic string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last[topic]
}

// member is what stands behind a member's name.
func member(message []byte, name string) ([]byte, bool) {
	_, rest, ok := bytes.Cut(message, []byte(name))
	return rest, ok
}

// await waits until every watcher is as wanted, or one has failed.
func (c *crowd) await(ctx context.Context, what string, wanted func(w *watcher) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		missing := 0
		for i, w := range c.watchers {
			w.mu.Lock()
			if w.err != nil {
				defer w.mu.Unlock()
				return fmt.Errorf("client %d: %w", i, w.err)
			}
			if !wanted(w) {
				missing++
			}
			w.mu.Unlock()
		}
		if missing == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			w := c.watchers[0]
			w.mu.Lock()
			defer w.mu.Unlock()
			return fmt.Errorf("%d of %d clients have not %s: %w; the first has %.400v", missing, len(c.watchers), what, ctx.Err(), w.last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ready waits until every watcher is told that it misses nothing, and has a value of each topic
// if values are expected.
func (c *crowd) ready(ctx context.Context, values bool) error {
	return c.await(ctx, "a first value of each topic", func(w *watcher) bool {
		for _, topic := range w.topics {
			if values && len(w.arrivals[topic]) == 0 {
				return false
			}
		}
		return w.last["ready"] != ""
	})
}

// reached waits until every watcher has values of each topic that are true of a place or later.
func (c *crowd) reached(ctx context.Context, place int64) error {
	return c.await(ctx, fmt.Sprintf("values as of %d", place), func(w *watcher) bool {
		for _, topic := range w.topics {
			if list := w.arrivals[topic]; len(list) == 0 || list[len(list)-1].place < place {
				return false
			}
		}
		return true
	})
}

// forget lets what came so far not count.
func (c *crowd) forget() {
	for _, w := range c.watchers {
		w.mu.Lock()
		clear(w.arrivals)
		w.mu.Unlock()
	}
}

// commit is a change: where it stands in the order, and when its commit had returned.
type commit = arrival

// delays takes for each commit, client and topic the time from the commit's return until the client
// had a value that it is part of. Commits are in order.
func (c *crowd) delays(commits []commit) []time.Duration {
	var all []time.Duration
	for _, w := range c.watchers {
		w.mu.Lock()
		for _, list := range w.arrivals {
			all = append(all, delays(commits, list)...)
		}
		w.mu.Unlock()
	}
	return all
}

func delays(commits []commit, arrivals []arrival) []time.Duration {
	all := make([]time.Duration, 0, len(commits))
	next := 0
	for _, c := range commits {
		for next < len(arrivals) && arrivals[next].place < c.place {
			next++
		}
		if next < len(arrivals) {
			all = append(all, max(0, arrivals[next].at.Sub(c.at)))
		}
	}
	return all
}

// quantiles sorts and picks. Of nothing there are none.
func quantiles(values []time.Duration, qs ...float64) []time.Duration {
	if len(values) == 0 {
		return nil
	}
	slices.Sort(values)
	picked := make([]time.Duration, len(qs))
	for i, q := range qs {
		picked[i] = values[min(int(q*float64(len(values))), len(values)-1)]
	}
	return picked
}
