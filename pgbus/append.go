package pgbus

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/trumpet-realtime/trumpet/pgbus/wal"
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
