package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

const (
	// logTimeout bounds one read of the log, and how long reads may be waited for while
	// none succeeds.
	logTimeout = 15 * time.Second
	// slabFrame is up to which size frames are encoded one behind the other.
	slabFrame = 8 << 10
)

var (
	// errAgain: nobody waited for the page any more, or what was read is void.
	errAgain = errors.New("ask again")
	// errCovered: another page has meanwhile what this one was to begin with.
	errCovered = errors.New("another page has it")
)

// page is a page of the log. All that resume from within it share it, and its encodings.
// Its node is in no list.
type page struct {
	node
	after trumpet.EventID
	upTo  trumpet.EventID

	done chan struct{} // closed when it was read
	err  error

	// Guarded by pages.mu.
	refs   int
	loaded bool // it is one of pages.loaded, and counts in pages.bytes
	used   uint64

	slabs [wire.Formats]sync.Once
}

// fill makes the page of what was read.
func (p *page) fill(events []trumpet.Event, upTo trumpet.EventID) {
	p.before, p.head, p.upTo = p.after, upTo, upTo
	p.entries, p.size = make([]entry, len(events)), entryOverhead
	for i := range events {
		p.entries[i].event = &events[i]
		p.size += eventSize(&events[i])
	}
}

// encode encodes the page's events one behind the other, so that runs of them can be
// written as they are. Large ones are left to be encoded by themselves: whoever waits with
// the rest of one holds that, and not the page.
func (p *page) encode(format wire.Format) {
	p.slabs[format].Do(func() {
		var slab []byte
		ends := make([]int, len(p.entries))
		for i := range p.entries {
			if e := p.entries[i].event; payload(e) <= slabFrame {
				slab = wire.AppendEventFrame(slab, format, wire.Whole, e, e.More)
			}
			ends[i] = len(slab)
		}
		frames := make([][]byte, len(p.entries))
		start := 0
		for i, end := range ends {
			if end > start {
				frames[i] = slab[start:end]
				p.entries[i].slot(format, whole, p.entries[i].event.More).CompareAndSwap(nil, &frames[i])
			}
			start = end
		}
	})
}

// locate returns the index behind the event with this id. Nothing but an exact match counts.
func (p *page) locate(id trumpet.EventID) (int, bool) {
	switch id {
	case p.after:
		return 0, true
	case p.upTo:
		return len(p.entries), true
	}
	i := sort.Search(len(p.entries), func(i int) bool { return p.entries[i].event.ID.Compare(id) >= 0 })
	return i + 1, i < len(p.entries) && p.entries[i].event.ID == id
}

// pages reads the log. A page is read once for all that need it at the time, and kept for
// those that come a little later as long as there is room.
type pages struct {
	hub   *Hub
	log   Log
	reads chan struct{}

	mu        sync.Mutex
	reading   map[trumpet.EventID]*page
	loaded    []*page
	bytes     int64         // of those loaded
	clock     uint64        // for page.used
	noted     uint64        // clock, when idle looked last
	epoch     uint64        // how often all was void
	succeeded time.Time     // when a read last did
	freed     chan struct{} // closed when bytes shrinks; nil while nobody waits
}

func newPages(h *Hub) *pages {
	return &pages{hub: h, reads: make(chan struct{}, h.config.LogPages), reading: make(map[trumpet.EventID]*page)}
}

// get returns a page with what follows an id, and the index from where on; whoever got it
// gives it back by put. If there is none it reads the one after key, where since was found
// before, or after since.
func (p *pages) get(ctx context.Context, since, key trumpet.EventID) (*page, int, error) {
	if p.log == nil {
		return nil, 0, fmt.Errorf("read log: %w", trumpet.ErrPruned)
	}
	for {
		p.mu.Lock()
		if got, from := p.lookup(since); got != nil {
			got.refs++
			p.mu.Unlock()
			return got, from, nil
		}
		got := p.reading[key]
		first := got == nil
		if first {
			got = &page{after: key, done: make(chan struct{})}
			p.reading[key] = got
		}
		got.refs++
		p.mu.Unlock()
		if first {
			got.err = p.read(ctx, got)
			close(got.done)
		}
		var err error
		select {
		case <-got.done:
			err = got.err
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err == nil {
			if from, ok := got.locate(since); ok {
				return got, from, nil
			}
		}
		p.put(got)
		switch {
		case ctx.Err() != nil:
			return nil, 0, ctx.Err()
		case errors.Is(err, errAgain):
		case key != since: // that page has changed, is there no more, or ends earlier
			key = since
		case errors.Is(err, errCovered): // it is found now
		default:
			return nil, 0, err
		}
	}
}

// lookup returns the page that has what follows an id; with mu held.
func (p *pages) lookup(since trumpet.EventID) (*page, int) {
	for _, got := range p.loaded {
		if got.after.Compare(since) > 0 || since.Compare(got.upTo) >= 0 {
			continue
		}
		if from, ok := got.locate(since); ok {
			p.clock++
			got.used = p.clock
			return got, from
		}
	}
	return nil, 0
}

// read reads a page, when there is room and its turn has come.
func (p *pages) read(ctx context.Context, got *page) (err error) {
	var epoch uint64
	admitted := false
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if admitted { // not before: whoever is admitted next must see this one counted
			<-p.reads
		}
		delete(p.reading, got.after)
		if err != nil {
			return
		}
		p.succeeded = time.Now()
		if epoch != p.epoch {
			err = errAgain
		}
		// One that has nothing is not kept: whoever comes next shall ask again.
		if err == nil && got.upTo != got.after {
			p.clock++
			got.loaded, got.used = true, p.clock
			p.loaded = append(p.loaded, got)
			p.bytes += got.size
		}
	}()
	if err := p.admit(ctx); err != nil {
		return err
	}
	admitted = true
	p.mu.Lock()
	epoch = p.epoch
	other, _ := p.lookup(got.after)
	p.mu.Unlock()
	if other != nil {
		return errCovered
	}
	// Not the first client's context: others wait for the same page.
	ctx, cancel := context.WithTimeout(p.hub.ctx, logTimeout)
	defer cancel()
	p.hub.stats.logPages.Add(1)
	events, upTo, err := p.log.ReadLog(ctx, got.after, p.hub.list.head())
	if err != nil {
		return err
	}
	got.fill(events, upTo)
	return nil
}

// admit waits in order until a page may be read, and for room; it takes one of p.reads. It
// gives up only when ctx ends, or reads fail.
func (p *pages) admit(ctx context.Context) error {
	began := time.Now()
	ticker := time.NewTicker(logTimeout / 4)
	defer ticker.Stop()
	for taken := false; ; {
		slot, freed := p.reads, (chan struct{})(nil)
		if taken {
			slot = nil
			if freed = p.makeRoom(); freed == nil {
				return nil
			}
		}
		var err error
		select {
		case slot <- struct{}{}:
			taken = true
		case <-freed:
		case <-ctx.Done():
			err = errAgain // others may wait for this page
		case <-ticker.C:
			p.mu.Lock()
			if time.Since(began) > logTimeout && time.Since(p.succeeded) > logTimeout {
				err = errors.New("wait to read log: the log does not answer")
			}
			p.mu.Unlock()
		}
		if err != nil {
			if taken {
				<-p.reads
			}
			return err
		}
	}
}

// makeRoom lets go of pages that nobody reads until there is room for another, those unused
// for longest first, and returns nil; or what is closed when it should be tried again.
func (p *pages) makeRoom() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trim(p.hub.config.LogBytes - 1)
	if p.bytes < p.hub.config.LogBytes {
		return nil
	}
	if p.freed == nil {
		p.freed = make(chan struct{})
	}
	return p.freed
}

// trim lets go of unused pages down to a bound; with mu held.
func (p *pages) trim(most int64) {
	for p.bytes > most {
		oldest := -1
		for i, got := range p.loaded {
			if got.refs == 0 && (oldest < 0 || got.used < p.loaded[oldest].used) {
				oldest = i
			}
		}
		if oldest < 0 {
			return
		}
		p.unload(oldest)
	}
}

// unload lets go of a page; with mu held.
func (p *pages) unload(i int) {
	got := p.loaded[i]
	got.loaded = false
	p.bytes -= got.size
	p.loaded = slices.Delete(p.loaded, i, i+1)
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

func (p *pages) put(got *page) {
	p.mu.Lock()
	defer p.mu.Unlock()
	got.refs--
	if got.refs > 0 {
		return
	}
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
	p.trim(p.hub.config.LogBytes)
}

// void forgets all pages: what they hold may be lost.
func (p *pages) void() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch++
	for len(p.loaded) > 0 {
		p.unload(len(p.loaded) - 1)
	}
}

// idle forgets the pages when nobody has needed one for a while.
func (p *pages) idle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clock == p.noted {
		p.trim(0)
	}
	p.noted = p.clock
}
