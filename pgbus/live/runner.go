package live

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
)

// Bus is what a Runner needs of the bus.
type Bus interface {
	// Cut runs read in a transaction that sees exactly what the log holds up to at.
	Cut(ctx context.Context, read func(ctx context.Context, tx pgx.Tx, at trumpet.EventID) error) error
	// Table tells of a watched table.
	Table(ctx context.Context, topic string) (trumpet.Table, bool, error)
	// Condition appends a filter as SQL, and its values to args.
	Condition(dst []byte, m *trumpet.Matcher, args []any) ([]byte, []any)
	// Session opens a session of its own, which no time-out ends while it waits.
	Session(ctx context.Context) (*pgx.Conn, error)
	// Ask lends a session for a question.
	Ask(ctx context.Context, ask func(ctx context.Context, conn *pgx.Conn) error) error
}

// Config is what a Runner needs to know. Zero values mean the defaults.
type Config struct {
	// CheckInterval is how often an aggregate that changed is compared with the table. Default 5 min.
	CheckInterval time.Duration
	Logger        *slog.Logger
}

const (
	// dutyTries is how often the duty is tried for, because another worker's heartbeat
	// may just be looking whether it is free.
	dutyTries = 3
	dutyPause = 50 * time.Millisecond
	// askTimeout bounds what is asked beside the queries.
	askTimeout = 10 * time.Second
	// signInterval is how soon after a change whoever has the duty gives a sign of life, at the
	// latest; frozenAfter is how long others wait for it, and frozenAge how old the newest one then is.
	signInterval = time.Second
	frozenAfter  = 4 * time.Second
	frozenAge    = frozenAfter + signInterval + signInterval/2
)

// Status counts what a Runner did.
type Status struct {
	Running    bool  // it has the duty
	Runs       int64 // of queries, and reads of aggregates
	Failures   int64 // of these
	Published  int64 // results
	Unchanged  int64 // results that were not published, because they were what was published before
	Recomputes int64 // aggregates read anew, because what changed could not be followed
	Repairs    int64 // aggregates that were found to differ from their table
}

// Runner runs live queries while it has the duty. Its methods but Run and Status are called by the bus, and
// never wait.
type Runner struct {
	bus    Bus
	config Config
	log    *slog.Logger
	notes  *notes
	any    bool                   // there are live queries, as far as the one that stands by knows
	state  atomic.Pointer[string] // of the definitions, as of the newest heartbeat

	duty                                                      atomic.Bool
	runs, failures, published, unchanged, recomputes, repairs atomic.Int64
}

// New makes a Runner.
func New(bus Bus, config Config) *Runner {
	if config.CheckInterval == 0 {
		config.CheckInterval = 5 * time.Minute
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	return &Runner{bus: bus, config: config, log: config.Logger, notes: newNotes()}
}

// Append takes the events up to head. whole says that they end where a transaction does.
func (r *Runner) Append(events []trumpet.Event, head trumpet.EventID, whole bool) {
	r.notes.append(events, head, whole)
}

// Again says that the log began again, or lost events that were given.
func (r *Runner) Again() { r.notes.again() }

// Result tells of which version of a live query's definition a result is; 0 says that it was dropped.
func (r *Runner) Result(name string, version int64) { r.notes.result(name, version) }

// Free says that nobody is likely to have the duty.
func (r *Runner) Free() { r.notes.note(&r.notes.free) }

// Heartbeat tells what a heartbeat saw: the definitions' state, and whether the duty is free.
func (r *Runner) Heartbeat(state string, free bool) {
	if before := r.state.Swap(&state); before == nil || *before != state {
		r.notes.note(&r.notes.look)
	}
	if free {
		r.Free()
	}
}

// Status returns the present counts.
func (r *Runner) Status() Status {
	return Status{
		Running: r.duty.Load(), Runs: r.runs.Load(), Failures: r.failures.Load(), Published: r.published.Load(),
		Unchanged: r.unchanged.Load(), Recomputes: r.recomputes.Load(), Repairs: r.repairs.Load(),
	}
}

// Run has the duty whenever it can get it, until ctx ends.
func (r *Runner) Run(ctx context.Context) error {
	for {
		if err := r.standBy(ctx); err != nil {
			return err
		}
		for again := true; again; {
			err := r.serve(ctx)
			again = r.duty.Swap(false) && err != nil
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				r.log.Warn("cannot run live queries", "error", err)
				if err := sleep(ctx, jitter(signInterval/4)); err != nil {
					return err
				}
			}
		}
	}
}

// standBy waits until there are live queries and nobody seems to run them.
func (r *Runner) standBy(ctx context.Context) error {
	watch := time.NewTimer(0)
	defer watch.Stop()
	// What there is of interest is read first; when the worker starts, when the first heartbeat came.
	read, watching, failed := r.state.Load() != nil, false, false
	for {
		expired := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.notes.wake:
		case <-watch.C:
			expired, watching = watching, false
		}
		now := r.notes.take()
		if read = read || now.look; read {
			before := r.any
			if err := r.readInterest(ctx); err != nil {
				if !failed && ctx.Err() == nil {
					r.log.Warn("cannot read live queries, trying again", "error", err)
				}
				failed = true
				watch.Reset(jitter(signInterval))
				continue
			}
			read, failed = false, false
			if r.any && !before {
				return nil
			}
		}
		switch {
		case !r.any:
			continue
		case now.free, expired && r.endFrozen(ctx):
			return nil
		case now.changed && !watching:
			watch.Reset(frozenAfter)
			watching = true
		}
	}
}

// readInterest reads what live queries depend on, and notes whether there are any.
func (r *Runner) readInterest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return r.bus.Ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		topics, known, err := readTopics(ctx, conn)
		if err == nil {
			r.notes.follow(topics, known, nil)
			r.any = len(known) > 0
		}
		return err
	})
}

// endFrozen ends the session that has the duty, if it gave no sign of life since a change: its process is
// frozen, or its machine is gone. It reports whether the duty is free.
func (r *Runner) endFrozen(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var held, ended int
	err := r.bus.Ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
			select count(*), count(*) filter (where case when (a.state in ('idle', 'idle in transaction') or a.wait_event = 'ClientWrite')
			                and a.state_change < clock_timestamp() - make_interval(secs => $1) then pg_terminate_backend(l.pid) end)
			  from pg_locks l left join pg_stat_activity a on a.pid = l.pid
			 where l.locktype = 'advisory' and l.database = (select oid from pg_database where datname = current_database())
			   and l.classid = 1953656176 and l.objid = 6 and l.objsubid = 2 and l.granted and l.mode = 'ExclusiveLock'`,
			frozenAge.Seconds()).Scan(&held, &ended)
	})
	switch {
	case err != nil:
		r.log.Warn("cannot see whether live queries are run, or end the session that should", "error", err)
	case ended > 0:
		r.log.Warn("ended the session that had the live duty and did nothing")
	}
	return held == ended && err == nil
}

// serve tries to get the duty and, if it does, has it until its session ends, or there is no live query
// any more.
func (r *Runner) serve(ctx context.Context) error {
	conn, err := r.bus.Session(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // nobody is left who could act on it
	}()
	for try := 1; ; try++ {
		var duty bool
		askCtx, cancel := context.WithTimeout(ctx, askTimeout)
		err := conn.QueryRow(askCtx, "select pg_try_advisory_lock(1953656176, 6)").Scan(&duty)
		cancel()
		if err != nil {
			return fmt.Errorf("take duty: %w", err)
		}
		if duty {
			break
		}
		if try == dutyTries {
			return nil
		}
		if err := sleep(ctx, jitter(dutyPause)); err != nil {
			return err
		}
	}
	r.duty.Store(true)
	return newHolder(r, conn).run(ctx)
}

// jitter spreads d by a half to either side, so that workers do not try together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
