package wal

import (
	"slices"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
)

// Record is one row of trumpet.record.
type Record struct {
	LSN       pglogrepl.LSN // of the first change that it tells of
	Topic     string
	Op        string // insert, update, delete, truncate, bulk
	Statement string // for bulk; "" if it is not known
	Rows      int64
	Key       []string
	Before    []byte // a JSON array of rows; nil: none
	After     []byte
}

// Transaction is one committed transaction.
type Transaction struct {
	XID       uint32        // its last 32 bits
	Committed pglogrepl.LSN // where the commit stands
	End       pglogrepl.LSN // and where it ends
	At        time.Time     // of the commit
	Records   []Record
	Tables    Tables // the settings after it, if it changed them
	Malformed int    // rows that could not be understood; their topics have bulk events
}

// Bytes is about how much memory it takes.
func (t *Transaction) Bytes() int {
	bytes := 0
	for i := range t.Records {
		bytes += recordBytes + len(t.Records[i].Before) + len(t.Records[i].After)
	}
	return bytes
}

const recordBytes = 200

// maxTransactionBytes bounds the rows that are held for one transaction, all tables taken together.
const maxTransactionBytes = 64 << 20

// builder collects the records of one transaction. What it holds of each topic is bounded by the table's
// settings: past that, rows are only counted, and the topic gets bulk events.
type builder struct {
	records []Record
	open    *relation // whose rows the newest record takes more of; nil: none
	topics  map[string]*tally
	bytes   int
}

// tally is what one transaction did to one topic.
type tally struct {
	rows   map[string]int64 // by operation
	total  int
	bytes  int
	last   pglogrepl.LSN // of the newest change
	isBulk bool
}

func (b *builder) reset() {
	*b = builder{topics: map[string]*tally{}}
}

func (b *builder) tally(topic string) *tally {
	t := b.topics[topic]
	if t == nil {
		t = &tally{rows: map[string]int64{}}
		b.topics[topic] = t
	}
	return t
}

// count notes one row, and reports whether it is wanted: the topic is not past its bound.
func (b *builder) count(r *relation, op string, at pglogrepl.LSN) bool {
	t := b.tally(r.table.Topic)
	t.rows[op]++
	t.total++
	t.last = at
	if !t.isBulk && t.total > r.table.MaxRows {
		b.makeBulk(r.table.Topic)
	}
	return !t.isBulk
}

// makeBulk gives up what is held of a topic. Its bulk events stand where its last change does: after a
// truncate, who fetches the rows anew must not empty them once more.
func (b *builder) makeBulk(topic string) {
	t := b.tally(topic)
	if t.isBulk {
		return
	}
	t.isBulk = true
	b.bytes -= t.bytes
	t.bytes = 0
	b.open = nil
	b.records = slices.DeleteFunc(b.records, func(r Record) bool { return r.Topic == topic && r.Op != "truncate" })
}

// add adds a row that was counted: as JSON before and after the change, either of which may be nil.
func (b *builder) add(r *relation, op string, at pglogrepl.LSN, before, after []byte) {
	t := b.tally(r.table.Topic)
	size := len(before) + len(after)
	t.bytes += size
	b.bytes += size
	if t.bytes > r.table.MaxBytes {
		b.makeBulk(r.table.Topic)
		return
	}
	last := len(b.records) - 1
	if b.open != r || b.records[last].Op != op {
		b.records = append(b.records, Record{LSN: at, Topic: r.table.Topic, Op: op, Key: r.table.Key})
		b.open = r
		last++
	}
	record := &b.records[last]
	record.Rows++
	record.Before = appendRow(record.Before, before)
	record.After = appendRow(record.After, after)
	for b.bytes > maxTransactionBytes {
		b.makeBulk(b.largest())
	}
}

func (b *builder) largest() (topic string) {
	most := -1
	for name, t := range b.topics {
		if t.bytes > most {
			topic, most = name, t.bytes
		}
	}
	return topic
}

func appendRow(rows, row []byte) []byte {
	switch {
	case row == nil:
		return rows
	case rows == nil:
		rows = append(rows, '[')
	default:
		rows[len(rows)-1] = ',' // in place of the bracket
	}
	return append(append(rows, row...), ']')
}

// cut ends the newest record: what comes next is another one.
func (b *builder) cut() { b.open = nil }

// truncate notes that a topic was emptied, or, in part, that some of its rows went.
func (b *builder) truncate(topic string, at pglogrepl.LSN, inPart bool) {
	b.cut()
	record := Record{LSN: at, Topic: topic, Op: "truncate"}
	if inPart {
		record.Op, record.Statement = "bulk", "truncate"
	}
	b.records = append(b.records, record)
}

// unknown notes that something about a topic changed that cannot be told.
func (b *builder) unknown(topic string, at pglogrepl.LSN) {
	t := b.tally(topic)
	t.last = at
	b.makeBulk(topic)
}

// operations in the order of their bulk events.
var operations = []string{"insert", "update", "delete"}

// finish returns the records, in their order.
func (b *builder) finish() []Record {
	for topic, t := range b.topics {
		if !t.isBulk {
			continue
		}
		told := false
		for _, op := range operations {
			if n := t.rows[op]; n > 0 {
				b.records = append(b.records, Record{LSN: t.last, Topic: topic, Op: "bulk", Statement: op, Rows: n})
				told = true
			}
		}
		if !told {
			b.records = append(b.records, Record{LSN: t.last, Topic: topic, Op: "bulk"})
		}
	}
	slices.SortStableFunc(b.records, func(x, y Record) int {
		switch {
		case x.LSN < y.LSN:
			return -1
		case x.LSN > y.LSN:
			return 1
		}
		return strings.Compare(x.Topic, y.Topic)
	})
	return b.records
}
