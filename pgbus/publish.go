package pgbus

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/trumpet-realtime/trumpet"
)

// placeTimeout is how long Publish waits for the log's place of what is already committed.
const placeTimeout = 3 * time.Second

// Publish broadcasts a JSON value to a topic's listeners and returns when it is committed in
// Postgres, with its event id. The id is zero if the broadcast is committed but got no place in
// the log within 3 seconds. An error of type *pgconn.PgError is Postgres's own refusal.
func (b *Bus) Publish(ctx context.Context, topic string, data json.RawMessage) (trumpet.EventID, error) {
	if err := trumpet.ValidTopic(topic); err != nil {
		return trumpet.EventID{}, err
	}
	conn, err := b.acquire(ctx)
	if err != nil {
		return trumpet.EventID{}, fmt.Errorf("broadcast: %w", err)
	}
	var recordID int64
	err = conn.QueryRow(ctx, "select trumpet.broadcast($1, $2::text::jsonb)", topic, string(data)).Scan(&recordID)
	conn.Release()
	if err != nil {
		return trumpet.EventID{}, fmt.Errorf("broadcast: %w", err)
	}
	return b.published.place(ctx, recordID), nil
}

// published matches the broadcasts of this worker with the events that come back. Every
// broadcast that passes is remembered for a while, because it may come back before
// Publish has learnt its record's id.
type published struct {
	mu      sync.Mutex
	waiting map[int64]chan trumpet.EventID
	seen    map[int64]trumpet.EventID
	order   []int64 // of seen, oldest first; bounded by rememberedBroadcasts
}

const rememberedBroadcasts = 1024

func newPublished() *published {
	return &published{waiting: make(map[int64]chan trumpet.EventID), seen: make(map[int64]trumpet.EventID)}
}

// seenRecord notes the place of a broadcast that came through the bus.
func (p *published) seenRecord(recordID int64, id trumpet.EventID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if waiter, ok := p.waiting[recordID]; ok {
		waiter <- id
		delete(p.waiting, recordID)
		return
	}
	if len(p.order) == rememberedBroadcasts {
		delete(p.seen, p.order[0])
		p.order = p.order[1:]
	}
	p.order = append(p.order, recordID)
	p.seen[recordID] = id
}

// place waits for a broadcast to come through the bus.
func (p *published) place(ctx context.Context, recordID int64) trumpet.EventID {
	p.mu.Lock()
	if id, ok := p.seen[recordID]; ok {
		p.mu.Unlock()
		return id
	}
	waiter := make(chan trumpet.EventID, 1)
	p.waiting[recordID] = waiter
	p.mu.Unlock()

	timer := time.NewTimer(placeTimeout)
	defer timer.Stop()
	select {
	case id := <-waiter:
		return id
	case <-ctx.Done():
	case <-timer.C:
	}
	p.mu.Lock()
	delete(p.waiting, recordID)
	p.mu.Unlock()
	return trumpet.EventID{}
}
