package pgbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/pgbus/wal"
)

// capture is the WAL capture, which belongs to whoever has the sequencer's duty. It makes the
// replication slot when tables are watched that way, reads it, and drops it when none are.
//
// Steps go on as without it, but for one condition: what a step's snapshot sees must have been read from the
// WAL. So a snapshot is taken, then the place where the WAL ends, and the stream is read up to there. What was read
// goes to trumpet.record, with the transactions' own ids, and how far to trumpet.wal_read, in
// one transaction: after a crash of anybody, reading goes on from there, each change once.
//
//	off        no table is watched by the WAL
//	making     a slot is being made, which waits for every transaction that writes now; steps go on without it
//	reading    there is a slot and a stream
//	broken     there is a slot, and no stream just now; nobody can step
//
// Where the server says that the slot is lost, it is off again at once, so that triggers' records and
// broadcasts go on, and another slot is made; its topics then get bulk events.
type capture struct {
	bus *Bus
	d   *dutyHolder

	due    bool        // the state is to be read from the database
	timer  *time.Timer // when to look again
	fails  int         // in a row
	making chan madeSlot
	made   *madeSlot // waits for trumpet.wal_begin
	told   string    // why none could be made, as it was logged last

	endMaking func() // and wait; nil: no slot is being made

	slot      string // "": none
	stream    *stream
	endStream func() // and wait

	openedAt    time.Time // the stream
	brokenSince time.Time // nothing has been read since then; zero: all is well
	busySince   time.Time // since when another session, which does not end, reads the slot
	steps       int64     // made through the present stream
	leaving     int64     // when steps is that much, the slot is not needed; 0: it is
	stale       bool      // there may be slots that are not needed any more

	read    pglogrepl.LSN // as in trumpet.wal_read
	durable pglogrepl.LSN // what is read up to here survives a crash
}

const (
	// captureTick is how often a reader at rest reports to the server: whoever else looks takes it for
	// stuck if it does not.
	captureTick = time.Second
	// pauses after something failed: doubled each time.
	capturePauseMin, capturePauseMax = 100 * time.Millisecond, time.Minute
	// maxBroken is how long there may be no stream, or one that fails again and again without a transaction read,
	// until the slot is given up: nobody can step meanwhile. brokenPauseMax bounds the pauses between tries.
	maxBroken      = 10 * time.Second
	brokenPauseMax = time.Second
	// flushAfter is how long the WAL's end may stay out of reach until it is flushed: some writer does not
	// wait for its commit (synchronous_commit = off), or has not ended.
	flushAfter = 2 * time.Millisecond
	// maxBusy is how long a slot may be read by a session that was told to end and does not: it is frozen.
	maxBusy = 3 * time.Second
	// signOfLife is how often the session that has the duty shows that it is at work while it only reads.
	signOfLife = 500 * time.Millisecond
	// maxAppend bounds what is written to the log in one statement, in bytes.
	maxAppend = 4 << 20
)

// errBroken is a slot without a stream.
var errBroken = errors.New("the stream of the WAL has ended")

func newCapture(b *Bus, d *dutyHolder) *capture {
	c := &capture{bus: b, d: d, due: true, timer: time.NewTimer(captureTick), making: make(chan madeSlot, 1)}
	c.timer.Stop() // it runs only while there is something to tend
	return c
}

// close ends the stream, and the making of a slot.
func (c *capture) close() {
	c.timer.Stop()
	if c.endMaking != nil {
		c.endMaking()
	}
	if c.stream != nil {
		c.endStream()
	}
}

// again lets tend look in a while.
func (c *capture) again(pause time.Duration) {
	c.due = true
	c.timer.Reset(pause)
}

// failed counts a failure and lets tend look again, later each time.
func (c *capture) failed() {
	c.fails++
	c.again(jitter(min(capturePauseMin<<min(c.fails, 20), capturePauseMax)))
}

// tick is called when the timer fires: a reader at rest reports.
func (c *capture) tick() {
	if c.stream == nil {
		return
	}
	c.timer.Reset(captureTick)
	if c.stale {
		c.due = true
	}
	unread, reached := c.stream.idle()
	if !unread && c.read == c.durable {
		c.stream.confirm(reached)
	}
	if err := c.stream.report(true); err != nil {
		c.bus.log.Debug("cannot report to the server", "error", err) // the stream's end tells
	}
}

// tend brings the slot and the stream to where they should be. An error is the session's.
func (c *capture) tend(ctx context.Context) error {
	if c.stream != nil {
		if _, _, err := c.stream.state(); err != nil {
			if err := c.lose(ctx, err); err != nil {
				return err
			}
		}
	}
	select {
	case made := <-c.making:
		c.endMaking()
		c.endMaking = nil
		if made.err != nil {
			level := slog.LevelError
			if why := made.err.Error(); why == c.told {
				level = slog.LevelDebug // it goes on
			} else {
				c.told = why
			}
			c.bus.log.Log(ctx, level, "cannot make a replication slot for the WAL capture", "error", made.err)
			c.failed()
			return nil
		}
		c.made = &made
	default:
	}
	if c.made != nil {
		if err := c.begin(ctx); err != nil {
			return err
		}
	}
	if !c.due {
		return nil
	}
	c.due = false
	state, err := c.readState(ctx)
	if err != nil {
		return err
	}
	switch {
	case state.slot == "" && !state.wanted:
		return c.dropStale(ctx) // one that was left behind
	case state.slot == "":
		if c.endMaking == nil && c.made == nil {
			c.startMaking(ctx)
		}
		return nil
	case c.stream == nil:
		return c.open(ctx, state)
	case !state.wanted:
		// What was written before the last table went is read first.
		if c.leaving == 0 {
			c.leaving = c.steps + 1
		}
		if c.steps >= c.leaving {
			return c.end(ctx)
		}
		c.again(capturePauseMin)
		poke(c.bus.sequencer.soon)
		return nil
	case c.stale:
		err = c.dropStale(ctx)
	}
	c.leaving = 0
	return err
}

// walState is what trumpet.wal_state says.
type walState struct {
	wanted bool
	slot   string
	lsn    pglogrepl.LSN
	tables wal.Tables
}

func (c *capture) readState(ctx context.Context) (walState, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var (
		state             walState
		slot, lsn, tables *string
		err               error
	)
	row := c.d.conn.QueryRow(ctx, "select wanted, slot::text, lsn::text, tables::text from trumpet.wal_state()")
	if err := row.Scan(&state.wanted, &slot, &lsn, &tables); err != nil {
		return walState{}, fmt.Errorf("read state of the WAL capture: %w", err)
	}
	if slot == nil || lsn == nil || tables == nil {
		c.slot = ""
		return state, nil
	}
	state.slot, c.slot = *slot, *slot
	if state.lsn, err = pglogrepl.ParseLSN(*lsn); err != nil {
		return walState{}, fmt.Errorf("read state of the WAL capture: %w", err)
	}
	if state.tables, err = wal.ParseTables([]byte(*tables)); err != nil {
		return walState{}, fmt.Errorf("read state of the WAL capture: %w", err)
	}
	return state, nil
}

// begin notes a slot that was made.
func (c *capture) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var begun bool
	if err := c.d.conn.QueryRow(ctx, "select trumpet.wal_begin($1::text::name, $2::text::pg_lsn)", c.made.name, c.made.lsn.String()).Scan(&begun); err != nil {
		return fmt.Errorf("begin to read the WAL: %w", err)
	}
	if !begun {
		c.again(capturePauseMin) // watches are being changed
		return nil
	}
	c.bus.log.Info("reading the WAL through a new replication slot", "slot", c.made.name, "lsn", c.made.lsn.String())
	c.made, c.told = nil, ""
	c.due = true
	return nil
}

// open opens the stream of the slot that there is.
func (c *capture) open(ctx context.Context, state walState) error {
	resumeCtx, cancelResume := context.WithTimeout(ctx, stepTimeout)
	defer cancelResume()
	var moved bool
	if err := c.d.conn.QueryRow(resumeCtx, "select trumpet.wal_resume()").Scan(&moved); err != nil {
		return fmt.Errorf("resume reading the WAL: %w", err)
	}
	if moved {
		c.bus.log.Warn("reading the WAL on another timeline, after a fail-over: its topics get bulk events")
	}
	s, err := openStream(ctx, c.bus, state.slot, state.lsn, state.tables, c.bus.sequencer.soon)
	if err != nil {
		return c.lose(ctx, err)
	}
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.run(run)
	}()
	c.stream, c.endStream = s, func() {
		cancel()
		<-done
	}
	c.read, c.durable = state.lsn, state.lsn
	c.openedAt = time.Now()
	c.busySince, c.stale, c.steps, c.leaving = time.Time{}, true, 0, 0
	c.timer.Reset(captureTick)
	poke(c.bus.sequencer.soon) // steps were not possible
	return nil
}

// lose is told why there is no stream. It tries again, or gives the slot up.
func (c *capture) lose(ctx context.Context, why error) error {
	if c.stream != nil {
		c.endStream()
		c.stream = nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var said *pgconn.PgError
	if inUse := errors.As(why, &said) && said.Code == "55006"; inUse || errors.Is(why, errSilent) {
		// Whoever had the duty before is gone and the server has not noticed, or its process is frozen.
		if err := c.endReader(ctx); err != nil {
			return err
		}
		if c.busySince.IsZero() {
			c.busySince = time.Now()
		}
		if inUse && time.Since(c.busySince) < maxBusy {
			c.again(capturePauseMin)
			return nil
		}
	}
	if !c.openedAt.IsZero() && time.Since(c.openedAt) > maxBroken {
		c.brokenSince, c.fails = time.Time{}, 0 // it went well for long
	}
	c.openedAt = time.Time{}
	if c.brokenSince.IsZero() {
		c.brokenSince = time.Now()
	}
	if !slotLost(why) && time.Since(c.brokenSince) < maxBroken && (c.busySince.IsZero() || time.Since(c.busySince) < maxBusy) {
		c.bus.log.Warn("the stream of the WAL has ended, opening it again", "error", why)
		c.fails++
		c.again(jitter(min(capturePauseMin<<min(c.fails, 20), brokenPauseMax)))
		return nil
	}
	c.bus.log.Error("giving up the replication slot: clients of its topics are told by bulk events", "slot", c.slot, "error", why)
	sqlCtx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if _, err := c.d.conn.Exec(sqlCtx, "select trumpet.wal_end(true)"); err != nil {
		return fmt.Errorf("give up the slot: %w", err)
	}
	c.slot, c.busySince, c.brokenSince = "", time.Time{}, time.Time{}
	c.failed()
	poke(c.bus.sequencer.soon) // steps are possible again
	return nil
}

// end ends reading, because no table is watched by the WAL any more.
func (c *capture) end(ctx context.Context) error {
	sqlCtx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var ended bool
	if err := c.d.conn.QueryRow(sqlCtx, "select trumpet.wal_end(false)").Scan(&ended); err != nil {
		return fmt.Errorf("end reading the WAL: %w", err)
	}
	if !ended {
		c.again(capturePauseMin)
		return nil
	}
	c.endStream()
	c.bus.log.Info("no table is watched by the WAL any more", "slot", c.slot)
	c.stream, c.slot = nil, ""
	return c.dropStale(ctx)
}
