package hub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// logTimeout bounds one read of the log.
const logTimeout = 15 * time.Second

// findPlace brings a client that resumes into the list: page after page from the log,
// until its id is one that the list knows.
func (d *drainer) findPlace() error {
	var patience time.Time // when to give up waiting
	read, verified := false, false
	for {
		if err := d.check(); err != nil {
			return err
		}
		changed := d.hub.list.change()
		at, what := d.hub.list.find(d.since)
		if what == foundHere {
			if !d.ready && !d.resumed {
				from := fromRing
				if read {
					from = fromLog
				}
				d.hub.stats.resumes[from].Add(1)
			}
			d.cursor, d.placed, d.resumed = at, true, true
			return nil
		}
		if what == foundAhead && verified {
			// Another worker was ahead of this one; what is missing comes soon.
			if err := d.wait(&patience, changed); err != nil {
				return err
			}
			continue
		}
		page, err := d.hub.pages.get(d.ctx, d.since)
		switch {
		case err == nil:
		case errors.Is(err, trumpet.ErrPruned):
			return d.refuse(wire.ReasonPruned)
		case errors.Is(err, trumpet.ErrUnknownID):
			return d.refuse(wire.ReasonUnknown)
		default:
			if err := d.wait(&patience, nil); err != nil {
				return err
			}
			continue
		}
		read, verified = true, true
		before := d.since
		// The page is held while it is written, so that must not take for ever.
		d.holding = time.Now()
		err = d.giveAll(page.entries, 0, true)
		if err == nil && len(*d.chunk) > 0 {
			err = d.flush()
		}
		d.holding = time.Time{}
		if page.upTo.Compare(before) > 0 {
			d.since = page.upTo
		}
		d.hub.pages.put(page)
		if err != nil {
			return err
		}
		if d.since != before {
			patience = time.Time{}
			continue
		}
		// Nothing newer in the log than what the list may already have.
		if err := d.wait(&patience, changed); err != nil {
			return err
		}
	}
}

func (d *drainer) refuse(reason wire.Reason) error {
	d.refused, d.placed = reason, true
	return errRefused
}

// wait waits a little, or for the list to grow; but all waiting together is bounded.
func (d *drainer) wait(until *time.Time, changed <-chan struct{}) error {
	if until.IsZero() {
		*until = time.Now().Add(d.hub.config.Patience)
	}
	if !time.Now().Before(*until) {
		return &endError{trumpet.EndingUnavailable}
	}
	timer := time.NewTimer(100*time.Millisecond + rand.N(150*time.Millisecond))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-d.ctx.Done():
		if ending := d.ending.Load(); ending != nil {
			return &endError{*ending}
		}
		return d.ctx.Err()
	}
	d.progress = time.Now() // it was not the client that was waited for
	return nil
}

// page is a page of the log. All that resume from the same id share one, and its encodings.
type page struct {
	after   trumpet.EventID
	done    chan struct{} // closed when it was read
	entries []entry
	upTo    trumpet.EventID
	err     error
	refs    int  // guarded by pages.mu
	slot    bool // it counts in pages.held
}

// pages reads the log. It bounds how many pages there are at once, being read or being
// written to clients.
type pages struct {
	hub   *Hub
	log   Log
	reads chan struct{}
	held  chan struct{}

	mu     sync.Mutex
	shared map[trumpet.EventID]*page
}

func newPages(h *Hub) *pages {
	return &pages{hub: h, reads: make(chan struct{}, h.config.LogPages), held: make(chan struct{}, 8*h.config.LogPages), shared: make(map[trumpet.EventID]*page)}
}

// get returns the page after an id; whoever got it gives it back by put. The caller that
// comes first reads it, for all.
func (p *pages) get(ctx context.Context, after trumpet.EventID) (*page, error) {
	if p.log == nil {
		return nil, fmt.Errorf("read log: %w", trumpet.ErrPruned)
	}
	p.mu.Lock()
	got := p.shared[after]
	first := got == nil
	if first {
		got = &page{after: after, done: make(chan struct{})}
		p.shared[after] = got
	}
	got.refs++
	p.mu.Unlock()
	if first {
		p.read(ctx, got)
		close(got.done)
	}
	select {
	case <-got.done:
	case <-ctx.Done():
		p.put(got)
		return nil, ctx.Err()
	}
	if got.err != nil {
		p.put(got)
		return nil, got.err
	}
	return got, nil
}

func (p *pages) read(ctx context.Context, got *page) {
	ctx, stop := context.WithTimeout(ctx, logTimeout)
	defer stop()
	if got.slot = take(ctx, p.held); got.slot && take(ctx, p.reads) {
		defer func() { <-p.reads }()
		// Not the first client's context: others wait for the same page.
		ctx, cancel := context.WithTimeout(p.hub.ctx, logTimeout)
		defer cancel()
		var events []trumpet.Event
		events, got.upTo, got.err = p.log.ReadLog(ctx, got.after, p.hub.list.head())
		got.entries = make([]entry, len(events))
		for i := range events {
			got.entries[i].event = &events[i]
		}
		p.hub.stats.logPages.Add(1)
	} else {
		got.err = fmt.Errorf("wait to read log: %w", ctx.Err())
	}
	if got.err != nil || got.upTo == got.after {
		// Whoever comes next shall ask again.
		p.mu.Lock()
		p.drop(got)
		p.mu.Unlock()
	}
}

// drop ends the sharing of a page; with mu held.
func (p *pages) drop(got *page) {
	if p.shared[got.after] == got {
		delete(p.shared, got.after)
	}
}

func (p *pages) put(got *page) {
	p.mu.Lock()
	defer p.mu.Unlock()
	got.refs--
	if got.refs > 0 {
		return
	}
	p.drop(got)
	if got.slot {
		<-p.held
	}
}

// take puts one into a semaphore, unless ctx ends first.
func take(ctx context.Context, semaphore chan<- struct{}) bool {
	select {
	case semaphore <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}
