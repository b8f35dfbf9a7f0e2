package pgbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet"
)

const (
	// pageRecords and pageBytes bound one page of the log, the latter as stored.
	pageRecords = 1000
	pageBytes   = 4 << 20
	// maxTransactionBytes is how much of one transaction is collected before a part of it is
	// given on as if it were whole.
	maxTransactionBytes = 16 << 20
)

// errHole is a log in which somebody deleted what stands between other records.
var errHole = fmt.Errorf("positions are missing inside the log: %w", trumpet.ErrPruned)

// ReadLog returns the events after one id and not after another, in order: a page that ends
// where a transaction does. Up to upTo the page is complete; it equals until once all was read,
// and after if there is nothing more: also where after is newer than until, because another
// worker was ahead of this one. The error wraps trumpet.ErrPruned or trumpet.ErrUnknownID if the
// log cannot go on from after.
func (b *Bus) ReadLog(ctx context.Context, after, until trumpet.EventID) (events []trumpet.Event, upTo trumpet.EventID, err error) {
	upTo = after
	collected := newCollector(func(whole []trumpet.Event, head trumpet.EventID) {
		events = append(events, whole...)
		upTo = head
	})
	from := after
	for {
		records, err := b.readRecords(ctx, from, until.Position)
		if err != nil {
			return nil, trumpet.EventID{}, err
		}
		for i := range records {
			b.noteMalformed(collected.add(&records[i], after))
			from = records[i].lastID()
		}
		collected.flush()
		if len(records) == 0 || !collected.partial() {
			break
		}
	}
	collected.flushAll()
	return events, upTo, nil
}

// noteMalformed counts and logs a record that could not be understood.
func (b *Bus) noteMalformed(err error) {
	if err != nil {
		b.status.malformed.Add(1)
		b.log.Error("a record's rows cannot be understood, clients get a bulk event instead", "error", err)
	}
}

// readRecords reads one page of the log.
func (b *Bus) readRecords(ctx context.Context, after trumpet.EventID, until int64) ([]record, error) {
	b.status.logReads.Add(1)
	conn, err := b.acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, "select trumpet.read_log($1, $2::int, $3::int, $4, $5::int, $6)",
		after.Position, after.Ordinal, int32(after.Tag), until, pageRecords, int64(pageBytes))
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	next := int64(0)
	records, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (record, error) {
		line := row.RawValues()[0]
		if line == nil {
			return record{}, errHole
		}
		r, err := parseLine(line)
		if err == nil && r.position != cmp.Or(next, after.Position+1) && (next > 0 || r.position != after.Position) {
			return record{}, errHole
		}
		next = r.position + 1
		return r, err
	})
	if err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) {
			switch pg.Code { // raised by trumpet.read_log
			case "TRM01":
				return nil, fmt.Errorf("read log: %w", trumpet.ErrPruned)
			case "TRM02":
				return nil, fmt.Errorf("read log: %w", trumpet.ErrUnknownID)
			case "TRM03":
				return nil, fmt.Errorf("read log: %w", errHole)
			}
		}
		return nil, fmt.Errorf("read log: %w", err)
	}
	return records, nil
}

// collector makes whole transactions out of records. It is one goroutine's.
type collector struct {
	give func(events []trumpet.Event, head trumpet.EventID)

	ready     []trumpet.Event // whole transactions
	readyHead trumpet.EventID
	open      []trumpet.Event // the transaction whose end has not come
	openHead  trumpet.EventID
	openBytes int
	torn      bool // what was closed last is a part of a transaction whose rest is still to come
}

func newCollector(give func([]trumpet.Event, trumpet.EventID)) *collector {
	return &collector{give: give}
}

// add takes the next record. Of its events those up to after are left out: they were seen. The
// rows of a record that cannot be understood become one bulk event, so that clients know that
// they missed something; the error says what was wrong, and the record is taken all the same.
func (c *collector) add(r *record, after trumpet.EventID) error {
	events, err := r.events()
	if err != nil {
		err = fmt.Errorf("position %d: %w", r.position, err)
		events = []trumpet.Event{{
			ID: r.lastID(), Topic: r.topic, Op: trumpet.OpBulk, At: r.at, Statement: r.op, Rows: r.rows,
		}}
	}
	for _, event := range events {
		if event.ID.Compare(after) <= 0 {
			continue
		}
		event.More = true
		c.open = append(c.open, event)
	}
	c.openHead = r.lastID()
	c.openBytes += len(r.before) + len(r.after) + len(r.data)
	if !r.more || c.openBytes > maxTransactionBytes {
		c.torn = r.more
		c.closeTransaction()
	}
	return err
}

// closeTransaction makes the open transaction, or the part of it that has come, a whole one.
func (c *collector) closeTransaction() {
	if len(c.open) > 0 {
		c.open[len(c.open)-1].More = false
	}
	c.ready = append(c.ready, c.open...)
	c.readyHead = c.openHead
	c.open, c.openHead, c.openBytes = nil, trumpet.EventID{}, 0
}

// partial reports whether a transaction's end is still to come.
func (c *collector) partial() bool { return c.openHead != trumpet.EventID{} }

// flush gives the whole transactions on.
func (c *collector) flush() {
	if c.readyHead == (trumpet.EventID{}) {
		return
	}
	events, head := c.ready, c.readyHead
	c.ready, c.readyHead = nil, trumpet.EventID{}
	c.give(events, head)
}

// flushAll gives on the open transaction too: its rest is not to be had.
func (c *collector) flushAll() {
	if c.partial() {
		c.closeTransaction()
	}
	c.flush()
}

// drop forgets what was not given on.
func (c *collector) drop() { *c = collector{give: c.give} }
