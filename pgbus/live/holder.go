package live

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// maxRuns bounds the queries that run at once.
	maxRuns = 2
	// retryFirst and retryLongest bound the pauses after which a failed query is tried again, if nothing
	// changed meanwhile.
	retryFirst, retryLongest = time.Second, 5 * time.Minute
)

// query is a live query as whoever has the duty knows it.
type query struct {
	definition
	last published

	forced    bool  // it has to run whatever changed
	changed   int64 // the newest position of a change that it depends on
	ran       int64 // the changes that it knows of
	running   bool
	again     bool      // what the present run brings is void
	notBefore time.Time // of the next run
	failures  int       // in a row
	retryAt   time.Time // zero if it did not fail
	cancel    context.CancelFunc

	told    bool  // that it fails
	refused *kept // a result that could not be published just then

	keeper *keeper // of an aggregate
}

// due reports whether the query has to run, and from when on it may.
func (q *query) due() (bool, time.Time) {
	switch {
	case q.running, q.Query == "": // an aggregate has a keeper
		return false, time.Time{}
	case q.forced || q.changed > q.ran:
		return true, q.notBefore
	case !q.retryAt.IsZero():
		return true, q.retryAt
	}
	return false, time.Time{}
}

// holder is the runner while it has the duty. Its state is one goroutine's.
type holder struct {
	*Runner
	mu      sync.Mutex // of the session
	conn    *pgx.Conn
	queries map[string]*query
	results chan result
	kept    chan kept
	reading chan struct{} // one slot: an aggregate reads its table
	running int
	group   sync.WaitGroup
	signAt  time.Time // when a sign of life is due; zero if none is
	signed  time.Time // the newest
	lost    chan error
}

// result is what became of a run.
type result struct {
	query *query
	began time.Time
	value []byte
	asOf  int64
	err   error
}

func newHolder(r *Runner, conn *pgx.Conn) *holder {
	return &holder{Runner: r, conn: conn, results: make(chan result, maxRuns), kept: make(chan kept), reading: make(chan struct{}, 1), lost: make(chan error, 1)}
}

// run runs live queries until the session or ctx ends, or none is left.
func (h *holder) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer h.group.Wait()
	defer cancel()
	h.notes.take() // whatever it is: all run once now
	if err := h.define(ctx); err != nil {
		return err
	}
	h.log.Info("running live queries", "queries", len(h.queries))
	defer h.log.Info("not running live queries any more")
	defer h.notes.follow(nil, nil, nil)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for len(h.queries) > 0 {
		if next := h.start(ctx); !next.IsZero() {
			timer.Reset(time.Until(next))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-h.lost:
			return err
		case <-timer.C:
		case <-h.notes.wake:
			if err := h.look(ctx); err != nil {
				return err
			}
		case done := <-h.results:
			if err := h.finish(ctx, done); err != nil {
				return err
			}
		case k := <-h.kept:
			if err := h.take(ctx, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// take publishes what a keeper has.
func (h *holder) take(ctx context.Context, k kept) error {
	switch {
	case h.queries[k.query.Name] != k.query:
		return nil
	case k.err != nil:
		return h.failed(ctx, k.query, k.err)
	}
	return h.publish(ctx, k.query, k.value, k.asOf)
}

// ask asks on the session that has the duty. An error is its end.
func (h *holder) ask(ctx context.Context, ask func(ctx context.Context, conn *pgx.Conn) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return ask(ctx, h.conn)
}

// define reads the definitions. Queries that are as they were go on.
func (h *holder) define(ctx context.Context) error {
	var defined map[string]*query
	if err := h.ask(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		defined, err = readDefinitions(ctx, conn)
		return err
	}); err != nil {
		return err
	}
	for name, old := range h.queries {
		if now := defined[name]; now != nil && now.Version == old.Version {
			defined[name] = old
			continue
		}
		old.end()
	}
	h.queries = defined
	topics, versions, feeds := []string{}, make(map[string]int64), make(map[string][]*feed)
	for _, q := range defined {
		topics = append(topics, q.DependsOn...)
		versions[q.Name] = q.Version
		if q.Query == "" {
			h.keep(q, feeds)
		}
	}
	h.notes.follow(topics, versions, feeds)
	for _, q := range defined {
		if q.keeper != nil && q.cancel == nil {
			var keeping context.Context
			keeping, q.cancel = context.WithCancel(ctx)
			h.group.Go(func() { q.keeper.run(keeping) })
		}
	}
	h.signed = time.Now()
	return nil
}

// end breaks off what runs of a query that is no more.
func (q *query) end() {
	if q.cancel != nil {
		q.cancel()
	}
}

// look takes what was noted.
func (h *holder) look(ctx context.Context) error {
	now := h.notes.take()
	if now.look {
		if err := h.define(ctx); err != nil {
			return err
		}
	}
	for _, q := range h.queries {
		if now.unsure {
			q.forced, q.changed, q.ran, q.again = true, 0, 0, q.running
		}
		for _, topic := range q.DependsOn {
			q.changed = max(q.changed, now.topics[topic])
		}
	}
	if now.free {
		h.signAt, h.signed = time.Time{}, time.Now()
		return h.sign(ctx) // a heartbeat doubts that this session is alive
	}
	if now.changed && h.signAt.IsZero() {
		h.signAt = h.signed.Add(signInterval)
	}
	return nil
}

// sign gives a sign of life: to others, who watch for it, and of the session to this worker.
func (h *holder) sign(ctx context.Context) error {
	return h.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, "select 1"); err != nil {
			return fmt.Errorf("session of the live duty: %w", err)
		}
		return nil
	})
}

// start starts what is due and may run now. It returns when to look again: zero for not before
// something happens.
func (h *holder) start(ctx context.Context) (next time.Time) {
	now := time.Now()
	sooner := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if !h.signAt.IsZero() {
		if !h.signAt.After(now) {
			h.signAt, h.signed = time.Time{}, now
			h.group.Go(func() {
				if err := h.sign(ctx); err != nil {
					h.lose(err)
				}
			})
		} else {
			sooner(h.signAt)
		}
	}
	for _, q := range h.queries {
		due, at := q.due()
		if q.keeper != nil && q.refused != nil {
			if q.retryAt.After(now) {
				sooner(q.retryAt)
				continue
			}
			again := *q.refused
			q.refused = nil
			h.group.Go(func() {
				select {
				case h.kept <- again:
				case <-ctx.Done():
				}
			})
		}
		switch {
		case !due:
		case at.After(now):
			sooner(at)
		case h.running < maxRuns:
			h.launch(ctx, q, now)
		} // else the end of a run comes first
	}
	return next
}

// lose says that the session is of no use any more.
func (h *holder) lose(err error) {
	select {
	case h.lost <- err:
	default:
	}
}

func (h *holder) launch(ctx context.Context, q *query, now time.Time) {
	q.forced, q.running, q.retryAt = false, true, time.Time{}
	q.ran = q.changed // if it fails, it is tried again for itself
	q.notBefore = now.Add(q.MinInterval)
	h.running++
	h.runs.Add(1)
	ctx, q.cancel = context.WithCancel(ctx)
	h.group.Go(func() {
		done := result{query: q, began: now}
		done.value, done.asOf, done.err = q.runQuery(ctx, h.bus)
		h.results <- done // there is room for all that run
	})
}

// finish publishes what a run brought, if it is new.
func (h *holder) finish(ctx context.Context, done result) error {
	q := done.query
	q.cancel()
	h.running--
	q.running = false
	// A query that takes longer than its interval runs half of the time at most.
	if end := time.Now(); q.notBefore.Before(end.Add(end.Sub(done.began))) {
		q.notBefore = end.Add(end.Sub(done.began))
	}
	if h.queries[q.Name] != q || ctx.Err() != nil {
		return nil
	}
	if q.again {
		q.again = false
		return nil
	}
	if done.err != nil {
		return h.failed(ctx, q, done.err)
	}
	q.ran = max(q.ran, done.asOf)
	return h.publish(ctx, q, done.value, done.asOf)
}
