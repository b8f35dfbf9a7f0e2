package hub

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

const (
	// shotReads is how many snapshots are read at once.
	shotReads = 2
	// shotTimeout bounds one read.
	shotTimeout = 15 * time.Second
	// shotAge is how long a snapshot is given to newcomers: what changed since follows it anyway.
	shotAge = time.Second
	// maxBegins is how often a client is begun by a snapshot before it is sent away, because
	// the log does not go on from where the snapshots stand.
	maxBegins = 3
)

// Snapshots reads tables.
type Snapshots interface {
	// ReadSnapshot reads the rows that are asked for, all as of one place in the log. Topics
	// that are no tables are left out. Its error wraps a *trumpet.Refusal where trying again
	// cannot help.
	ReadSnapshot(ctx context.Context, requests []trumpet.SnapshotRequest, limits trumpet.SnapshotLimits) (trumpet.Snapshot, error)
}

// adding is what a live connection asked for with a snapshot.
type adding struct {
	change    *Change
	interests *interests
	former    *interests
	asked     time.Time
	reads     int // of snapshots whose place the list does not know
}

// requests are what a snapshot of some interests reads: of the topics in only, or of all.
func (in *interests) requests(only []Interest) []trumpet.SnapshotRequest {
	var out []trumpet.SnapshotRequest
	for i := range in.list {
		topic := in.list[i].Subscription.Topic
		if only != nil && !slices.ContainsFunc(only, func(o Interest) bool { return o.Subscription.Topic == topic }) {
			continue
		}
		if slices.ContainsFunc(out, func(r trumpet.SnapshotRequest) bool { return r.Topic == topic }) {
			continue
		}
		request := trumpet.SnapshotRequest{Topic: topic}
		if v := in.views[topic]; !v.whole {
			for _, f := range v.filters {
				request.Matchers = append(request.Matchers, f.matcher)
			}
		}
		out = append(out, request)
	}
	return out
}

// shotKey names what is read, with lengths as interests.key has them.
func shotKey(requests []trumpet.SnapshotRequest) string {
	list := make([]Interest, 0, len(requests))
	for _, r := range requests {
		if r.Matchers == nil {
			list = append(list, Interest{Subscription: trumpet.Subscription{Topic: r.Topic}})
		}
		for _, m := range r.Matchers {
			list = append(list, Interest{Subscription: m.Subscription(), Matcher: m})
		}
	}
	return newInterests(list).key(0)
}

// shot is one snapshot, which all who asked for the same share.
type shot struct {
	key      string
	requests []trumpet.SnapshotRequest
	begun    time.Time // of the read; zero while it waits for its turn
	epoch    uint64
	done     chan struct{}
	err      error
	snapshot trumpet.Snapshot
	size     int64

	// Guarded by shots.mu.
	refs     int
	finished time.Time

	encoded [wire.Formats]struct {
		once  sync.Once
		pages [][]byte
	}
}

// pages returns the snapshot as messages, encoded once for each format.
func (s *shot) pages(format wire.Format) [][]byte {
	e := &s.encoded[format]
	e.once.Do(func() {
		for i := range s.snapshot.Topics {
			t := &s.snapshot.Topics[i]
			if len(t.Pages) == 0 {
				e.pages = append(e.pages, wire.AppendSnapshot(nil, format, t.Topic, 1, nil, false))
			}
			for n, rows := range t.Pages {
				e.pages = append(e.pages, wire.AppendSnapshot(nil, format, t.Topic, n+1, rows, n < len(t.Pages)-1))
			}
		}
	})
	return e.pages
}

// shots reads snapshots: each once for all that ask for it at about the same time, a few at
// once, and with a bound on what they take in memory together.
type shots struct {
	hub    *Hub
	source Snapshots
	reads  chan struct{}

	mu     sync.Mutex
	newest map[string]*shot
	bytes  int64 // of all that are read and held
}

func newShots(h *Hub) *shots {
	return &shots{hub: h, reads: make(chan struct{}, shotReads), newest: make(map[string]*shot)}
}

// get returns a snapshot whose read began after a moment, or any that is young enough if that
// is zero. Whoever got it gives it back by put.
func (s *shots) get(ctx context.Context, requests []trumpet.SnapshotRequest, after time.Time) (*shot, error) {
	key := shotKey(requests)
	s.mu.Lock()
	got := s.newest[key]
	first := got == nil || !got.serves(after, s.hub.epoch.Load())
	if first {
		if got != nil && got.refs == 0 {
			s.bytes -= got.size
		}
		got = &shot{key: key, requests: requests, done: make(chan struct{})}
		s.newest[key] = got
	}
	got.refs++
	s.mu.Unlock()
	if first {
		s.read(got)
	}
	select {
	case <-got.done:
	case <-ctx.Done():
		s.put(got)
		return nil, ctx.Err()
	}
	if got.err != nil {
		s.put(got)
		return nil, got.err
	}
	return got, nil
}

// serves reports whether one who asks now may have this one; with shots.mu held.
func (s *shot) serves(after time.Time, epoch uint64) bool {
	switch {
	case s.begun.IsZero():
		return true
	case s.begun.Before(after), s.epoch != epoch:
		return false
	case s.finished.IsZero():
		return true
	}
	return s.err == nil && time.Since(s.finished) < shotAge
}

// errFull: the snapshots that are held take all the memory that they may.
var errFull = errors.New("too many snapshots are held")

// read reads a snapshot when its turn has come. It has a bound of its own, and not the context
// of the first who asked, because others wait for it too.
func (s *shots) read(got *shot) {
	defer close(got.done)
	ctx, cancel := context.WithTimeout(s.hub.ctx, shotTimeout)
	defer cancel()
	select {
	case s.reads <- struct{}{}:
		defer func() { <-s.reads }()
	case <-ctx.Done():
		got.err = ctx.Err()
	}
	s.mu.Lock()
	got.begun, got.epoch = time.Now(), s.hub.epoch.Load()
	s.trim()
	if got.err == nil && s.bytes >= s.hub.config.LogBytes {
		got.err = errFull
	}
	s.mu.Unlock()
	if got.err == nil {
		s.hub.stats.snapshots.Add(1)
		got.snapshot, got.err = s.source.ReadSnapshot(ctx, got.requests, trumpet.SnapshotLimits{})
	}
	for i := range got.snapshot.Topics {
		for _, rows := range got.snapshot.Topics[i].Pages {
			for _, row := range rows {
				got.size += 3*int64(len(row)) + 24 // with two encodings
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	got.finished = time.Now()
	s.bytes += got.size
}

func (s *shots) put(got *shot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if got.refs--; got.refs == 0 && s.newest[got.key] != got {
		s.bytes -= got.size
	}
	s.trim()
}

// trim lets go of snapshots that nobody needs; with mu held.
func (s *shots) trim() {
	for key, held := range s.newest {
		if held.refs == 0 && (held.err != nil || time.Since(held.finished) >= shotAge) {
			delete(s.newest, key)
			s.bytes -= held.size
		}
	}
}

// idle lets go of what nobody asked for in a while.
func (s *shots) idle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trim()
}

// shot returns a snapshot, waiting a while for Postgres.
func (d *drainer) shot(in *interests, only []Interest, after time.Time) (*shot, error) {
	var patience time.Time
	for {
		if err := d.check(); err != nil {
			return nil, err
		}
		began := time.Now()
		got, err := d.hub.shots.get(d.ctx, in.requests(only), after)
		now := time.Now()
		d.begun, d.behind = d.begun.Add(now.Sub(began)), now // it was not the client that was waited for
		switch {
		case err == nil, refusal(err) != nil:
			return got, err
		case d.ctx.Err() != nil:
			return nil, d.interrupted()
		}
		if err := d.wait(&patience, nil); err != nil {
			return nil, err
		}
	}
}

// begin gives a newcomer a snapshot, and puts it where that stands in the log.
func (d *drainer) begin() error {
	if d.begins++; d.begins > maxBegins {
		return &endError{trumpet.EndingUnavailable}
	}
	format := d.reader.format
	if d.refused != "" {
		d.hub.stats.reset(d.refused)
		// Without an id: a client that is cut off now must not go on from there.
		if err := d.write(wire.AppendResetBySnapshot(nil, format, d.refused)); err != nil {
			return err
		}
		d.refused = ""
	}
	got, err := d.shot(d.reader.interests, nil, time.Time{})
	if err != nil {
		return impossible(err)
	}
	defer d.hub.shots.put(got)
	if err := d.giveShot(got); err != nil {
		return err
	}
	d.since, d.fresh, d.resumed, d.epoch = got.snapshot.At, true, false, got.epoch
	return nil
}

// refusal returns why trying again cannot help, with a text for the client, or nil.
func refusal(err error) *trumpet.Refusal {
	var r *trumpet.Refusal
	errors.As(err, &r)
	return r
}

// impossible returns what becomes of a connection whose snapshot cannot be read.
func impossible(err error) error {
	r := refusal(err)
	if r == nil {
		return err
	}
	ending := trumpet.EndingSchemaChanged
	switch {
	case errors.Is(r, trumpet.ErrTooLarge):
		ending = trumpet.EndingTooLarge
	case errors.Is(r, trumpet.ErrNotReadable):
		ending = trumpet.EndingUnauthorized
	}
	ending.Message = r.Message
	return &endError{ending}
}

// giveShot writes a snapshot's messages.
func (d *drainer) giveShot(got *shot) error {
	for _, page := range got.pages(d.reader.format) {
		if err := d.write(page); err != nil {
			return err
		}
	}
	d.hub.stats.snapshotClients.Add(1)
	return nil
}

// add gives a live client the snapshot of what it asked for: all that it follows first, up to
// where the snapshot stands, then the snapshot, and from there on the new topics too.
func (d *drainer) add() error {
	a := d.adding
	got, err := d.shot(a.interests, a.change.Interests, a.asked)
	var end *endError
	switch {
	case err == nil:
	case refusal(err) != nil:
		return d.refuseAdded(refusal(err).Message)
	case errors.As(err, &end) && end.ending.Code == trumpet.EndingUnavailable.Code:
		return d.refuseAdded("the tables cannot be read now; ask again later")
	default:
		return err
	}
	defer d.hub.shots.put(got)
	var patience time.Time
	for {
		if err := d.check(); err != nil {
			return err
		}
		if d.hub.epoch.Load() != got.epoch {
			a.asked = time.Now() // what the snapshot says may be lost: read another one
			return nil
		}
		changed := d.hub.list.change()
		// All up to here stands before the snapshot if that is not found: the list may grow, beyond
		// the snapshot too, while events are given.
		sure := d.hub.list.tail.Load().end()
		at, what := d.hub.list.find(got.snapshot.At)
		switch {
		case what == foundHere && !d.cursor.before(at):
			return d.addHere(got)
		case what == foundHere:
			sure = at
		case what == foundElse:
			if a.reads++; a.reads == maxBegins {
				return d.refuseAdded("the log cannot be followed now; ask again later")
			}
			a.asked = time.Now() // another one may stand where the list knows the place
			return nil
		}
		if d.cursor.before(sure) {
			if _, err := d.follows(sure); err != nil {
				return err
			}
			continue
		}
		if err := d.wait(&patience, changed); err != nil {
			return d.refuseAdded("the log cannot be followed now; ask again later")
		}
	}
}

// addHere gives the snapshot, and has the client follow what it asked for from here on.
func (d *drainer) addHere(got *shot) error {
	a := d.adding
	if err := d.giveShot(got); err != nil {
		return err
	}
	a.former, d.reader.interests = d.reader.interests, a.interests
	d.adding, d.added = nil, a
	return nil
}

// refuseAdded tells a client that what it asked for is not possible; it goes on as it was.
func (d *drainer) refuseAdded(message string) error {
	ref := d.adding.change.Ref
	d.adding = nil
	return d.write(wire.AppendRefused(nil, d.reader.format, ref, message))
}
