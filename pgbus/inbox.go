package pgbus

import (
	"context"
	"sync"
)

// maxInboxBytes bounds what waits between the listening session and the deliverer. What does not
// fit is dropped: signed payloads are then read from the log, raw notifications are counted.
const maxInboxBytes = 64 << 20

// arrival is one thing that the listener tells the deliverer; exactly one part is set.
type arrival struct {
	channel, payload string // a notification
	connected        *connected
	heartbeat        *head
	disconnected     bool
}

// connected says that a session listens, and what the log's head was since. ctx ends with the session.
type connected struct {
	ctx  context.Context
	head head
}

// inbox is the queue from the listener to the deliverer. The listener never waits.
type inbox struct {
	wake chan struct{} // one slot: look

	mu       sync.Mutex
	arrivals []arrival
	bytes    int
	overflow bool // a signed payload was dropped since the last take
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// put reports false if there was no room for a notification.
func (in *inbox) put(a arrival) bool {
	in.mu.Lock()
	fits := in.bytes+len(a.payload) <= maxInboxBytes
	switch {
	case fits:
		in.arrivals = append(in.arrivals, a)
		in.bytes += len(a.payload)
	case a.channel == channelEvents:
		in.overflow = true
	}
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default:
	}
	return fits
}

// take waits for arrivals and returns all of them, and whether signed payloads are missing
// behind them.
func (in *inbox) take(ctx context.Context) (arrivals []arrival, overflow bool, err error) {
	for {
		in.mu.Lock()
		arrivals, overflow = in.arrivals, in.overflow
		in.arrivals, in.bytes, in.overflow = nil, 0, false
		in.mu.Unlock()
		if len(arrivals) > 0 || overflow {
			return arrivals, overflow, nil
		}
		select {
		case <-in.wake:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}
