package pgbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// sequencer runs trumpet.sequence() on one worker of all: the one whose session holds the
// duty lock. Postgres frees the lock as soon as that session ends, however it ends.
//
// It sleeps until it is told to look: by a wake-up (a committing writer notified, because
// nobody held the wake-up lock), or by a heartbeat that saw records without a position.
//
// When may it sleep? A writer B that did not notify failed to get the wake-up lock, so it had
// its transaction id by then. Either another writer A held the lock, whose notification comes
// after B's try; or this sequencer held it, and lets it go after B's try. So a snapshot taken
// after the notification, or after letting go, shows B as finished, and then this step
// takes its record, or as in progress. In the latter case B is committing right now; the
// sequencer goes on stepping, with growing pauses, until those transactions are gone or a
// second has passed. What is still not found then (a commit that waits for a synchronous
// replica) is found by a heartbeat.
//
// A snapshot lists what is in progress below its xmax only, which follows the newest transaction
// that has ended. The newest ones of all, B perhaps, stand in no list. So before the snapshot
// the sequencer asks once which locks on transactions there are: B is among them, or has
// finished before the snapshot.
//
// While it is awake it holds the wake-up lock itself, and no writer notifies at all.
type sequencer struct {
	bus  *Bus
	soon chan struct{} // one slot: a wake-up was heard
	now  chan struct{} // one slot: records are known to wait

	// passes counts how often this worker, without the duty, stepped in a row while whoever has it
	// did nothing: passed is what Postgres showed of that session's last statement, or, to a role that
	// may not see it, where the log ended after the newest of these steps.
	passes int
	passed string
	// told is the session that was told to end, and by that did nothing still: its process is frozen.
	told string

	// walChanged: tables began or ceased to be watched by the WAL, or the slot is another.
	walChanged atomic.Bool
	// walStalled: whoever has the duty does not read the WAL.
	walStalled atomic.Bool

	// steps counts the sequencer's notifications that the listening session heard, and wokenAt is
	// that count when it heard the newest wake-up: if it grew since, somebody sequences.
	steps, wokenAt atomic.Int64
}

const (
	// graceForHolder is how long a worker without duty waits, after a wake-up, for whoever has it.
	graceForHolder = 150 * time.Millisecond
	// maxPasses is how often whoever has the duty is passed by before its session is ended.
	maxPasses = 3
	// dutyRetry is the shortest time between two attempts to take the duty.
	dutyRetry = time.Second
	// watchFor and watchLongFor bound how long transactions in progress keep the sequencer
	// awake; the latter is for those that outlived a watch already.
	watchFor     = time.Second
	watchLongFor = 100 * time.Millisecond
	// stepPauseMin and stepPauseMax bound the pause between steps under load. It is as long as
	// the step before took, so sequencing takes half of one processor at most.
	stepPauseMin = time.Millisecond
	stepPauseMax = 10 * time.Millisecond
	// turnPauseMax bounds the pause between tries while another session steps, which the making of a
	// cut takes a millisecond for, or two seconds if its worker is frozen in between.
	turnPauseMax = 100 * time.Millisecond
	// pollInterval is for databases where wake-ups are off.
	pollInterval = 50 * time.Millisecond
	// stepTimeout bounds one step; a backlog of a million records takes some ten seconds.
	stepTimeout = 5 * time.Minute
)

func newSequencer(b *Bus) *sequencer {
	return &sequencer{bus: b, soon: make(chan struct{}, 1), now: make(chan struct{}, 1)}
}

func (s *sequencer) lookSoon() {
	s.wokenAt.Store(s.steps.Load())
	poke(s.soon)
}

func (s *sequencer) lookNow() { poke(s.now) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *sequencer) run(ctx context.Context) error {
	var lastTry time.Time
	for {
		if err := s.standBy(ctx, lastTry); err != nil {
			return err
		}
		for retry := true; retry; {
			lastTry = time.Now()
			err := s.serve(ctx)
			if err != nil && ctx.Err() == nil {
				s.bus.log.Warn("sequencer's session lost", "error", err)
			}
			// Whoever had the duty is the first to know that nobody has it now.
			retry = s.bus.status.duty.Swap(false)
			if retry {
				if err := sleep(ctx, jitter(graceForHolder)); err != nil {
					return err
				}
			}
		}
	}
}

// standBy waits until it seems that nobody has the duty: a listening session has just begun, records
// are known to wait, or a wake-up was heard and brought nothing.
func (s *sequencer) standBy(ctx context.Context, lastTry time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.now:
		case <-s.soon:
			if err := sleep(ctx, jitter(graceForHolder)); err != nil {
				return err
			}
			if s.steps.Load() != s.wokenAt.Load() {
				continue
			}
		}
		return sleep(ctx, jitter(dutyRetry)-time.Since(lastTry))
	}
}

// serve tries to get the duty and, if it does, has it until its session ends. Without the duty it
// makes one step all the same: whoever has it may be frozen.
func (s *sequencer) serve(ctx context.Context) error {
	config := s.bus.connConfig("sequencer", s.bus.places.follow)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer closeConn(conn.PgConn())
	connectCtx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	if _, err := conn.PgConn().Exec(connectCtx, longLived).ReadAll(); err != nil {
		return fmt.Errorf("set up session: %w", err)
	}
	var polling, duty bool
	row := conn.QueryRow(connectCtx, `select exists (select from pg_trigger where tgrelid = 'trumpet.record'::regclass and tgname = 'wake' and tgenabled = 'D')
		or coalesce(current_setting('trumpet.wake', true) = 'off', false),
		pg_try_advisory_lock(1953656176, 3)`)
	if err := row.Scan(&polling, &duty); err != nil {
		return fmt.Errorf("take duty: %w", err)
	}
	d := &dutyHolder{bus: s.bus, conn: conn, polling: polling, outlived: make(map[uint64]bool)}
	if !duty {
		return s.passBy(ctx, d)
	}
	s.passes = 0
	s.bus.log.Info("sequencing", "polling", polling)
	s.bus.status.duty.Store(true)
	if s.bus.live != nil {
		s.bus.live.Free() // who had the one duty before may have had the other too
	}
	err = s.hold(ctx, d)
	if ctx.Err() != nil && d.capture.slot != "" {
		d.handOver()
	}
	return err
}

// passBy steps in place of whoever has the duty. If that session did nothing for some rounds though
// there was something to do, its process is frozen or its machine is gone: Postgres is asked to end it,
// so that the duty is free. With the WAL capture nobody else can step, but for what has been read already.
func (s *sequencer) passBy(ctx context.Context, d *dutyHolder) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var (
		before int64
		holder string
	)
	// Not the log's end, if it can be helped: a cut sequences too, on any worker.
	if err := d.conn.QueryRow(ctx, `
		select position, coalesce((
		         select a.pid || ' ' || a.state_change
		           from pg_locks l join pg_stat_activity a on a.pid = l.pid
		          where l.locktype = 'advisory' and l.database = (select oid from pg_database where datname = current_database())
		            and l.classid = 1953656176 and l.objid = 3 and l.granted limit 1), '')
		  from trumpet.head()`).Scan(&before, &holder); err != nil {
		return fmt.Errorf("read head: %w", err)
	}
	sequenced, _, err := d.step(ctx)
	if err != nil {
		return err
	}
	switch {
	case sequenced == 0:
		return nil
	case s.passed != cmp.Or(holder, strconv.FormatInt(before, 10)):
		s.passes = 0
	}
	s.passes++
	s.passed = cmp.Or(holder, strconv.FormatInt(before+max(sequenced, 0), 10))
	if s.passes < maxPasses {
		if s.walStalled.Load() {
			s.lookNow()
		}
		return nil
	}
	s.passes = 0
	if sequenced < 0 && holder != "" && s.told == holder {
		return s.endReading(ctx, d)
	}
	s.told = holder
	var ended int
	// Not one that is at work, with a large batch to prune, say.
	err = d.conn.QueryRow(ctx, `
		select count(*) filter (where pg_terminate_backend(l.pid))
		  from pg_locks l join pg_stat_activity a on a.pid = l.pid
		 where l.locktype = 'advisory' and l.database = (select oid from pg_database where datname = current_database())
		   and l.classid = 1953656176 and l.objid = 3 and l.granted
		   and (a.state in ('idle', 'idle in transaction') or a.wait_event = 'ClientWrite')`).Scan(&ended)
	switch {
	case err != nil:
		s.bus.log.Warn("whoever has the sequencer's duty does nothing, and its session cannot be ended", "error", err)
	case ended > 0:
		s.bus.log.Warn("ended the session that had the sequencer's duty and did nothing")
		s.lookNow()
	}
	return nil
}

// endReading gives up the replication slot in place of whoever has the duty, whose process does not even end when it is told to:
// otherwise nobody could step. When the duty is free, another slot is made and its topics are told.
func (s *sequencer) endReading(ctx context.Context, d *dutyHolder) error {
	if _, err := d.conn.Exec(ctx, "select trumpet.wal_end(true)"); err != nil {
		return fmt.Errorf("give up the slot: %w", err)
	}
	s.bus.log.Error("gave up the replication slot: the session that has the sequencer's duty is frozen and cannot be ended. " +
		"Changes of tables that are watched by the WAL are not heard until it goes")
	_, _, err := d.step(ctx)
	return err
}

// hold steps and sleeps until the session or ctx ends.
func (s *sequencer) hold(ctx context.Context, d *dutyHolder) error {
	poll := make(<-chan time.Time)
	if d.polling {
		ticker := time.NewTicker(pollInterval)
		defer ticker.Stop()
		poll = ticker.C
	}
	prune := pruner{bus: s.bus, conn: d.conn, due: true}
	pruneTimer := time.NewTimer(0)
	defer pruneTimer.Stop()
	d.capture = newCapture(s.bus, d)
	defer d.capture.close()
	look := true
	for {
		if s.walChanged.Swap(false) {
			d.capture.due = true
		}
		if err := d.capture.tend(ctx); err != nil {
			return err
		}
		if look {
			stepped, err := d.stepUntilQuiet(ctx, s.soon)
			if err != nil && !errors.Is(err, errBroken) { // the stream is opened again
				return err
			}
			if stepped {
				prune.sequenced(pruneTimer)
			}
		}
		look = true
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.soon:
		case <-s.now:
		case <-poll:
		case <-d.capture.timer.C:
			d.capture.tick()
			look = false
		case <-pruneTimer.C:
			if err := prune.run(ctx, pruneTimer); err != nil {
				return err
			}
		}
	}
}
