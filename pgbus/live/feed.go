package live

import (
	"sync"

	"github.com/trumpet-realtime/trumpet"
)

// maxFeedBytes bounds the events that wait for one aggregate. Above it they are dropped, and the table is
// read anew.
const maxFeedBytes = 64 << 20

// feed is the queue from delivery to an aggregate. Delivery never waits.
type feed struct {
	topic string
	wake  chan struct{} // one slot: look

	mu     sync.Mutex
	events []trumpet.Event
	bytes  int
	head   int64 // everything up to here was put
	whole  bool  // head ends a transaction
	lost   bool  // events are missing
	until  int64 // wake when head has come so far; 0: only for events
}

func newFeed(topic string) *feed {
	return &feed{topic: topic, wake: make(chan struct{}, 1), whole: true}
}

func (f *feed) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// put takes the topic's events.
func (f *feed) put(events []trumpet.Event, head trumpet.EventID, whole bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := false
	for i := range events {
		e := &events[i]
		if e.Topic != f.topic || e.ID.IsZero() {
			continue
		}
		found = true
		if f.bytes += len(e.New) + len(e.Old) + 256; f.bytes > maxFeedBytes {
			f.lost = true
		}
		if f.lost {
			f.events = nil
			continue
		}
		f.events = append(f.events, *e)
	}
	f.head, f.whole = head.Position, whole
	if found || f.until > 0 && f.head >= f.until {
		f.until = 0
		f.poke()
	}
}

// lose says that what was put, and more, may be void.
func (f *feed) lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events, f.lost, f.head = nil, true, 0
	f.poke()
}

// fed is what a feed had.
type fed struct {
	events []trumpet.Event
	head   int64
	whole  bool
	lost   bool
}

// take empties the feed.
func (f *feed) take() fed {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := fed{f.events, f.head, f.whole, f.lost}
	f.events, f.bytes, f.lost = nil, 0, false
	return now
}

// await has the feed wake when everything up to a position was put.
func (f *feed) await(position int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.until = position
	if f.head >= position {
		f.until = 0
		f.poke()
	}
}
