package pgbus

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// dutyHolder is the session that has the duty.
type dutyHolder struct {
	bus      *Bus
	conn     *pgx.Conn
	polling  bool            // wake-ups are off: it looks again soon in any case
	holding  bool            // the wake-up lock
	xmax     uint64          // of the newest snapshot
	capture  *capture        // nil: this session only steps in place of whoever has the duty
	outlived map[uint64]bool // transactions that were in progress through a whole watch
}

// stepUntilQuiet steps until there is nothing to sequence and nothing that may be committing
// unheard. It reports whether any record got a position.
func (d *dutyHolder) stepUntilQuiet(ctx context.Context, soon <-chan struct{}) (stepped bool, err error) {
	turnPause := stepPauseMin
	looked := false
	var newest []uint64
	for {
		began := time.Now()
		sequenced, seen, err := d.step(ctx)
		if err != nil {
			return stepped, err
		}
		if sequenced < 0 { // somebody else is at it, and may have looked before the newest commit
			timer := time.NewTimer(turnPause)
			select {
			case <-ctx.Done():
			case <-soon: // a cut waits for the WAL to be read
			case <-timer.C:
			}
			timer.Stop()
			if ctx.Err() != nil {
				return stepped, ctx.Err()
			}
			turnPause = min(2*turnPause, turnPauseMax)
			continue
		}
		turnPause = stepPauseMin
		if sequenced > 0 {
			stepped, looked = true, false
			if err := sleep(ctx, min(max(d.pause(sequenced, time.Since(began)), stepPauseMin), stepPauseMax)); err != nil {
				return stepped, err
			}
			continue
		}
		if !looked && (d.holding || !d.polling) {
			if newest, err = d.letGo(ctx); err != nil {
				return stepped, err
			}
			looked = true
			continue // with a snapshot from after that
		}
		again, err := d.watch(ctx, seen.running(append(newest, seen.inProgress...)), soon)
		if err != nil || !again {
			return stepped, err
		}
		looked = false
	}
}

// pause is how long to wait after a step that took so long. A step by the WAL has parts that cost the same however
// much there is to do, on both sides: under load it waits for more. When little comes, nobody is to wait for it.
func (d *dutyHolder) pause(sequenced int64, took time.Duration) time.Duration {
	switch {
	case d.capture == nil || d.capture.slot == "":
		return took
	case sequenced >= manyRecords:
		return 3 * took
	default:
		return 0
	}
}

// manyRecords is what a step finds under load.
const manyRecords = 16

// watch steps while any of the transactions is in progress, for a bounded time, and reports
// whether it has to go on: it found records, or somebody else was at a step.
func (d *dutyHolder) watch(ctx context.Context, transactions []uint64, soon <-chan struct{}) (again bool, err error) {
	bound := watchLongFor
	for _, xid := range transactions {
		if !d.outlived[xid] {
			bound = watchFor
		}
	}
	began := time.Now()
	pause := time.Millisecond
	for len(transactions) > 0 && time.Since(began) < bound {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false, ctx.Err()
		case <-soon:
			timer.Stop()
		case <-timer.C:
		}
		pause = min(2*pause, 250*time.Millisecond)
		sequenced, seen, err := d.step(ctx)
		if err != nil {
			return false, err
		}
		if sequenced != 0 {
			return true, nil
		}
		transactions = seen.running(transactions)
	}
	clear(d.outlived)
	for _, xid := range transactions {
		d.outlived[xid] = true
	}
	return false, nil
}

// step makes one step. One that gives positions takes the wake-up lock before it commits, if it is
// free, and keeps it: a writer that notified would have to wait for that commit, because of
// NOTIFY's own lock. Without anything to sequence it does not take it, even for a moment: a writer
// that failed to get it just then would not be looked for any more.
func (d *dutyHolder) step(ctx context.Context) (sequenced int64, seen snapshot, err error) {
	if d.capture != nil && d.capture.slot != "" {
		var held bool
		if sequenced, seen, held, err = d.capture.step(ctx); err != nil {
			return 0, snapshot{}, err
		}
		d.stepped(sequenced, seen, held)
		return sequenced, seen, nil
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	query := "select sequenced, snapshot::text, sequenced > 0 and pg_try_advisory_lock(1953656176, 1) from trumpet.sequence()"
	if d.holding {
		query = "select sequenced, snapshot::text, false from trumpet.sequence()"
	}
	var (
		text string
		held bool
	)
	if err := d.conn.QueryRow(ctx, query).Scan(&sequenced, &text, &held); err != nil {
		return 0, snapshot{}, fmt.Errorf("sequence: %w", err)
	}
	if seen, err = parseSnapshot(text); err != nil {
		return 0, snapshot{}, err
	}
	d.stepped(sequenced, seen, held)
	return sequenced, seen, nil
}

// stepped notes a step.
func (d *dutyHolder) stepped(sequenced int64, seen snapshot, held bool) {
	d.holding = d.holding || held
	d.xmax = seen.xmax
	d.bus.status.steps.Add(1)
	if sequenced > 0 {
		d.bus.status.sequenced.Add(sequenced)
	}
}

// handOver lets the duty go, at this worker's end, and wakes the others: writers of tables that are watched by
// the WAL wake nobody. If it cannot be done, a heartbeat finds that the duty is free.
func (d *dutyHolder) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = d.conn.Exec(ctx, "select pg_advisory_unlock(1953656176, 3), pg_notify('"+channelWake+"', '')") // the session may be lost
}

// letGo lets the wake-up lock go, if it is held, and then returns the transactions in progress that
// are too new to be in the list of the newest snapshot. Each has a lock on its own id.
func (d *dutyHolder) letGo(ctx context.Context) (newest []uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	// Two statements, so that the second one looks after the first is done. Ids have 32 bits there.
	low := d.xmax & math.MaxUint32
	query := fmt.Sprintf(`select (transactionid::text::bigint - %d) & 4294967295 from pg_locks
		where locktype = 'transactionid' and mode = 'ExclusiveLock' and granted
		  and (transactionid::text::bigint - %[1]d) & 4294967295 < 2147483648`, low)
	if d.holding {
		query = "select pg_advisory_unlock(1953656176, 1); " + query
	}
	results, err := d.conn.PgConn().Exec(ctx, query).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("let wake-up lock go: %w", err)
	}
	d.holding = false
	for _, row := range results[len(results)-1].Rows {
		above, err := strconv.ParseUint(string(row[0]), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read locks on transactions: %w", err)
		}
		newest = append(newest, d.xmax+above)
	}
	return newest, nil
}

// snapshot is a pg_snapshot.
type snapshot struct {
	xmax       uint64   // everything from here on is in progress, or has not begun
	inProgress []uint64 // below xmax
}

// running returns those of the transactions, all of which have begun, that the snapshot does not
// see as finished.
func (s snapshot) running(transactions []uint64) []uint64 {
	var running []uint64
	for _, xid := range transactions {
		if xid >= s.xmax || slices.Contains(s.inProgress, xid) {
			running = append(running, xid)
		}
	}
	return running
}

// parseSnapshot reads a pg_snapshot's text, xmin:xmax:xip,… (PostgreSQL manual, 9.27.8).
func parseSnapshot(text string) (snapshot, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return snapshot{}, fmt.Errorf("snapshot %q is not xmin:xmax:xip", text)
	}
	xmax, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil {
		return snapshot{}, fmt.Errorf("snapshot %q: %w", text, err)
	}
	s := snapshot{xmax: xmax}
	if parts[2] == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(parts[2], ",") {
		xid, err := strconv.ParseUint(part, 10, 64)
		if err != nil {
			return snapshot{}, fmt.Errorf("snapshot %q: %w", text, err)
		}
		s.inProgress = append(s.inProgress, xid)
	}
	return s, nil
}
