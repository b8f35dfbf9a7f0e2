package pgbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
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

type madeSlot struct {
	name string
	lsn  pglogrepl.LSN
	err  error
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
			c.bus.log.Error("cannot make a replication slot for the WAL capture", "error", made.err)
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
	c.made = nil
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

// slotLost reports whether the server said that a slot, or what it publishes, is not there any more, or
// may not be read.
func slotLost(err error) bool {
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		return false
	}
	switch said.Code {
	case "42704", // undefined object: no such slot, no such publication
		"55000", // not in prerequisite state: invalidated, or wal_level
		"42501", // insufficient privilege
		"58P01": // undefined file: its WAL has been removed
		return true
	}
	return false
}

// endReader ends the session that reads the slot.
func (c *capture) endReader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if _, err := c.d.conn.Exec(ctx, "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1::text and active_pid is not null", c.slot); err != nil {
		var refused *pgconn.PgError
		if errors.As(err, &refused) {
			c.bus.log.Warn("cannot end the session that reads the replication slot", "error", err)
			return nil
		}
		return fmt.Errorf("end the slot's reader: %w", err)
	}
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

// dropStale drops this database's slots but for the one that is used, and looks again as long as one of them
// is still read: the server may take a moment to notice that its reader is gone.
func (c *capture) dropStale(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var left int
	const stale = " from pg_replication_slots s where " + slotNames + " and s.slot_name is distinct from (select w.slot from trumpet.wal_state() w)"
	_, err := c.d.conn.Exec(ctx, "select pg_drop_replication_slot(s.slot_name)"+stale+" and not s.active")
	if err == nil {
		// Also one whose reader ended between the two statements.
		err = c.d.conn.QueryRow(ctx, "select count(*) + 0 * count(pg_terminate_backend(s.active_pid))"+stale).Scan(&left)
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		c.bus.log.Warn("cannot drop a replication slot that is not needed any more", "error", err)
		c.stale = false
		return nil
	}
	if err != nil {
		return fmt.Errorf("drop slots: %w", err)
	}
	c.stale = left > 0
	if c.stale {
		c.again(captureTick)
	}
	return nil
}

// slotName is SQL: names of slots are the cluster's, so this one has the database in it. Another one is made
// beside a slot whose reader is frozen: slotNames is the condition for all of them.
const (
	slotName  = "(select 'trumpet_' || oid from pg_database where datname = current_database())"
	slotNames = "s.slot_name ~ ('^' || " + slotName + " || '(_[1-9])?$')"
)

// step makes one step of the sequencer with what it sees read from the WAL.
func (c *capture) step(ctx context.Context) (sequenced int64, seen snapshot, held bool, err error) {
	if c.stream == nil {
		return 0, snapshot{}, false, errBroken
	}
	appended := c.read
	var upto, end, flushed string
	queryCtx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	row := c.d.conn.QueryRow(queryCtx, "select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text")
	if err := row.Scan(&upto, &end, &flushed); err != nil {
		return 0, snapshot{}, false, fmt.Errorf("take snapshot: %w", err)
	}
	if seen, err = parseSnapshot(upto); err != nil {
		return 0, snapshot{}, false, err
	}
	endLSN, err := pglogrepl.ParseLSN(end)
	if err != nil {
		return 0, snapshot{}, false, fmt.Errorf("take snapshot: %w", err)
	}
	flushedLSN, err := pglogrepl.ParseLSN(flushed)
	if err != nil {
		return 0, snapshot{}, false, fmt.Errorf("take snapshot: %w", err)
	}
	reached, err := c.readUpTo(ctx, endLSN, flushedLSN < endLSN, seen.xmax)
	if err != nil {
		return 0, snapshot{}, false, err
	}
	// The server sends what is on disk only: what was appended before the WAL ended there is safe.
	c.durable = max(c.durable, appended)
	query := "select sequenced, sequenced > 0 and pg_try_advisory_lock(1953656176, 1) from trumpet.sequence_until($1::text::pg_snapshot)"
	if c.d.holding {
		query = "select sequenced, false from trumpet.sequence_until($1::text::pg_snapshot)"
	}
	stepCtx, cancelStep := context.WithTimeout(ctx, stepTimeout)
	defer cancelStep()
	if err := c.d.conn.QueryRow(stepCtx, query, upto).Scan(&sequenced, &held); err != nil {
		return 0, snapshot{}, false, fmt.Errorf("sequence: %w", err)
	}
	switch {
	case sequenced > 0:
		c.durable = c.read // its commit was waited for, and comes after
	case sequenced < 0 && c.read < reached:
		// Somebody makes a cut, and waits for this.
		if err := c.write(ctx, &walRows{}, reached, false); err != nil {
			return 0, snapshot{}, false, err
		}
	}
	if c.durable == c.read {
		c.stream.confirm(max(c.read, min(reached, endLSN)))
	} else {
		c.stream.confirm(c.durable)
	}
	c.steps++
	return sequenced, seen, held, nil
}

// readUpTo reads until everything that was committed before end has been read, and appends it. It returns
// how far it came. However long that takes: the server has to say something now and then.
func (c *capture) readUpTo(ctx context.Context, end pglogrepl.LSN, unflushed bool, xmax uint64) (reached pglogrepl.LSN, err error) {
	began := time.Now()
	alive := began
	pause := 500 * time.Microsecond
	c.stream.await(end)
	defer c.stream.await(0)
	for {
		reached, full, err := c.stream.state()
		switch {
		case err != nil:
			return 0, errBroken
		case full || reached >= end:
			transactions, taken, err := c.stream.takeUnread()
			if err != nil {
				return 0, errBroken
			}
			if err := c.append(ctx, transactions, xmax, full); err != nil {
				return 0, err
			}
			if taken >= end {
				return taken, nil
			}
			// A backlog: the server need not keep what is done of it.
			c.durable = c.read
			c.stream.confirm(c.durable)
			if err := c.stream.report(false); err != nil {
				return 0, errBroken
			}
			continue
		}
		if unflushed && time.Since(began) > flushAfter {
			// A transaction that writes something: its commit flushes what is before.
			if err := c.exec(ctx, "select pg_logical_emit_message(true, 'trumpet flush', '')"); err != nil {
				return 0, fmt.Errorf("flush the WAL: %w", err)
			}
			unflushed = false
		}
		if time.Since(alive) > signOfLife {
			if err := c.exec(ctx, "select 1"); err != nil {
				return 0, fmt.Errorf("show a sign of life: %w", err)
			}
			alive = time.Now()
		}
		if err := c.stream.report(true); err != nil {
			return 0, errBroken
		}
		timer := time.NewTimer(pause)
		pause = min(2*pause, 20*time.Millisecond)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				timer.Stop()
				return 0, ctx.Err()
			case <-timer.C:
				waiting = false
			case <-c.stream.moved:
				reached, full, err := c.stream.state()
				waiting = err == nil && !full && reached < end
			}
		}
		timer.Stop()
	}
}

func (c *capture) exec(ctx context.Context, query string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	_, err := c.d.conn.Exec(ctx, query)
	return err
}

// append writes transactions to trumpet.record, and how far they go; with wait, onto disk.
func (c *capture) append(ctx context.Context, transactions []*wal.Transaction, xmax uint64, wait bool) error {
	var rows walRows
	for i, t := range transactions {
		if t.Malformed > 0 {
			c.bus.status.malformed.Add(int64(t.Malformed))
			c.bus.log.Warn("rows from the WAL could not be understood: their topics get bulk events", "rows", t.Malformed)
		}
		rows.add(t, xmax)
		if rows.bytes > maxAppend || i == len(transactions)-1 {
			if err := c.write(ctx, &rows, t.End, wait); err != nil {
				return err
			}
			rows = walRows{}
		}
	}
	return nil
}

func (c *capture) write(ctx context.Context, rows *walRows, reached pglogrepl.LSN, wait bool) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var tables *string
	if rows.tables != nil {
		text := rows.tables.String()
		tables = &text
	}
	var late []string
	err := c.d.conn.QueryRow(ctx, "select late from trumpet.wal_append($1::text::pg_lsn, $2::text::json, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
		reached.String(), tables, rows.committed, rows.lsns, rows.xids, rows.at, rows.topics, rows.ops, rows.statements,
		rows.counts, rows.keys, rows.befores, rows.afters, wait).Scan(&late)
	if err != nil {
		return fmt.Errorf("append what was read from the WAL: %w", err)
	}
	c.read = reached
	c.fails, c.brokenSince = 0, time.Time{}
	if rows.tables != nil {
		c.again(0) // perhaps none is watched any more
	}
	if len(late) > 0 {
		c.bus.log.Warn("changes came too late from the WAL: their topics get bulk events", "topics", late)
	}
	return nil
}

// walRows are the arguments of trumpet.wal_append: one element for each record.
type walRows struct {
	committed, lsns, xids, topics, ops, statements, keys, befores, afters []string
	at, counts                                                            []int64
	tables                                                                wal.Tables
	bytes                                                                 int
}

func (a *walRows) add(t *wal.Transaction, xmax uint64) {
	committed := t.Committed.String()
	xid := strconv.FormatUint(fullXID(t.XID, xmax), 10)
	for i := range t.Records {
		r := &t.Records[i]
		a.committed = append(a.committed, committed)
		a.lsns = append(a.lsns, r.LSN.String())
		a.xids = append(a.xids, xid)
		a.at = append(a.at, t.At.UnixMicro())
		a.topics = append(a.topics, r.Topic)
		a.ops = append(a.ops, r.Op)
		a.statements = append(a.statements, r.Statement)
		a.counts = append(a.counts, r.Rows)
		a.keys = append(a.keys, textArray(r.Key))
		a.befores = append(a.befores, string(r.Before))
		a.afters = append(a.afters, string(r.After))
	}
	a.bytes += t.Bytes()
	if t.Tables != nil {
		a.tables = t.Tables
	}
}

// fullXID finds the 64 bits of a transaction id, of which 32 are known: it is less than 2^31 transactions
// away from another one.
func fullXID(xid uint32, near uint64) uint64 {
	return uint64(int64(near) + int64(int32(xid-uint32(near))))
}

// textArray writes names as array_in reads them; nil as "".
func textArray(names []string) string {
	if names == nil {
		return ""
	}
	var b strings.Builder
	b.WriteByte('{')
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		b.WriteString(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name))
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// startMaking makes a slot beside everything else.
func (c *capture) startMaking(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	c.endMaking = func() {
		cancel()
		<-done
	}
	go func() {
		defer close(done)
		c.making <- c.bus.makeSlot(ctx) // it has room for the one
		poke(c.bus.sequencer.now)
	}()
}

// makeSlot makes this database's replication slot, anew if there is one. It waits until every transaction
// that writes now has ended (PostgreSQL manual, 47.2), however long that takes.
func (b *Bus) makeSlot(ctx context.Context) madeSlot {
	fail := func(err error) madeSlot { return madeSlot{err: err} }
	began := time.Now()
	conn, err := b.connectReplication(ctx)
	if err != nil {
		return fail(err)
	}
	defer closeConn(conn)
	row, err := askRow(ctx, conn, "select "+slotName+`, current_setting('wal_level'), current_setting('server_version_num'),
		exists (select from pg_publication where pubname = 'trumpet'),
		(select count(pg_terminate_backend(s.active_pid)) from pg_replication_slots s where `+slotNames+" and s.active)")
	if err != nil {
		return fail(err)
	}
	switch {
	case row[1] != "logical":
		return fail(fmt.Errorf("wal_level is %s; alter system set wal_level = logical; and restart Postgres", row[1]))
	case row[3] != "t":
		return fail(errors.New("there is no publication trumpet; watch the tables again: select trumpet.watch('…', capture => 'wal')"))
	}
	name := row[0]
	if _, err := conn.Exec(ctx, "select pg_drop_replication_slot(s.slot_name) from pg_replication_slots s where not s.active and "+slotNames).ReadAll(); err != nil {
		return fail(fmt.Errorf("drop the slot that was there: %w", err))
	}
	// One that is left is read by a process that does not end.
	taken, err := askRow(ctx, conn, "select coalesce(max(substr(s.slot_name, length("+slotName+") + 2)), '-') from pg_replication_slots s where "+slotNames)
	if err != nil {
		return fail(err)
	}
	if taken[0] != "-" {
		number, _ := strconv.Atoi(taken[0]) // nothing: the first
		name += "_" + strconv.Itoa(number%9+1)
	}
	options := "NOEXPORT_SNAPSHOT"
	if version, _ := strconv.Atoi(row[2]); version >= 170000 {
		options = "(SNAPSHOT 'nothing', FAILOVER true)" // it is there after a fail-over, if standbys synchronize slots
	}
	b.log.Info("making a replication slot for the WAL capture: it waits for every transaction that writes now", "slot", name)
	results, err := conn.Exec(ctx, "CREATE_REPLICATION_SLOT "+pgx.Identifier{name}.Sanitize()+" LOGICAL pgoutput "+options).ReadAll()
	if err != nil {
		return fail(explainSlot(err))
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) < 2 {
		return fail(errors.New("make slot: unexpected answer"))
	}
	lsn, err := pglogrepl.ParseLSN(string(results[0].Rows[0][1]))
	if err != nil {
		return fail(fmt.Errorf("make slot: %w", err))
	}
	b.log.Debug("made a replication slot", "slot", name, "took", time.Since(began))
	return madeSlot{name: name, lsn: lsn}
}

// explainSlot adds what to do.
func explainSlot(err error) error {
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		return err
	}
	return fmt.Errorf("%w%s", err, cmp.Or(map[string]string{
		"42501": "; the workers' role needs the attribute REPLICATION: alter role … replication",
		"53400": "; max_replication_slots is reached",
		"53300": "; max_wal_senders is reached",
	}[said.Code]))
}
