package oracle

import (
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
)

// sum stands for a row or a value: the beginning of its text's MD5, which Postgres can compute too.
type sum uint64

func sumOf(text []byte) sum {
	all := md5.Sum(text)
	return sum(binary.BigEndian.Uint64(all[:8]))
}

func parseSum(hexadecimal string) (sum, error) {
	all, err := hex.DecodeString(hexadecimal)
	if err != nil || len(all) != md5.Size {
		return 0, fmt.Errorf("%q is no MD5", hexadecimal)
	}
	return sum(binary.BigEndian.Uint64(all)), nil
}

// logged is an event as the log has it.
type logged struct {
	id    trumpet.EventID
	topic string
	op    trumpet.Op
	xid   string
	sum   sum // of new, of a deleted row, of data, or of a bulk's statement and rows
	size  int64
	post  string // the token of a broadcast over HTTP, which has no row in committed

	rows    int    // that a bulk event tells of
	step    int    // which statement of its transaction wrote it; -1: that does not stand in it
	before  sum    // of the row before an update
	was, is uint64 // which filters take the row before, and after
	asOf    int64  // of a result
}

// place is one position of the log.
type place struct {
	tag  uint32
	last int32 // ordinal
}

// truth is the log, as SQL tells it: read without the code that workers read it with. It keeps what
// was pruned for as long as a client may still be compared with it.
type truth struct {
	mu     sync.Mutex
	events []logged
	first  int64   // the position of places[0]
	places []place // every position, also those without events
	pruned int64   // up to here the log was pruned

	slotLost bool // in the last storm: transactions may lack events of tables that are watched by the WAL
}

var errRewritten = errors.New("the log was rewritten")

// read adds what the log has gained. To miss nothing that is then pruned, tx has one snapshot for both.
func (t *truth) read(ctx context.Context, tx pgx.Tx) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	after := int64(-1)
	if n := len(t.places); n > 0 {
		after = t.first + int64(n) - 2 // the last one again, to see whether it stands
	}
	rows, err := tx.Query(ctx, `
		select l.position, l.tag, l.last_ordinal, coalesce(l.xid::text, ''), coalesce(r.topic, ''), coalesce(r.op, ''),
		       case when r.op in ('insert', 'update') then array(select md5(a.row::text) from json_array_elements(r.after) with ordinality a(row, n) order by n)
		            when r.op = 'delete' then array(select md5(b.row::text) from json_array_elements(r.before) with ordinality b(row, n) order by n)
		            when r.op = 'broadcast' then array[md5(r.data::text)]
		            when r.op = 'result' then array[md5((r.data->>'as_of') || ' ' || coalesce(r.data->>'stale', 'false') || ' '
		                                                || coalesce(translate(r.after::text, E'\t\n\r', '   '), ''))]
		            when r.op is null then null
		            when r.op = 'bulk' then array[md5(coalesce(r.statement, '') || ' ' || r.rows)]
		            else array[md5('')] end,
		       array(select b.n::int - 1 from json_array_elements(r.before) with ordinality b(row, n)
		               join json_array_elements(r.after) with ordinality a(row, n) using (n)
		              where r.op = 'update' and b.row::text = a.row::text),
		       case when r.op = 'update' then array(select md5(b.row::text) from json_array_elements(r.before) with ordinality b(row, n) order by n) end,
		       case r.topic when 'jobs' then array(select marks_jobs(b.row) from json_array_elements(r.before) with ordinality b(row, n) order by n)
		                    when 'customers' then array(select marks_customers(b.row) from json_array_elements(r.before) with ordinality b(row, n) order by n) end,
		       case r.topic when 'jobs' then array(select marks_jobs(a.row) from json_array_elements(r.after) with ordinality a(row, n) order by n)
		                    when 'customers' then array(select marks_customers(a.row) from json_array_elements(r.after) with ordinality a(row, n) order by n) end,
		       case when r.op in ('insert', 'update') then array(select coalesce(substring(coalesce(a.row->>'title', a.row->>'name') from '^w[0-9]+-[0-9]+[.]([0-9]+)')::int, -1)
		                                                             from json_array_elements(r.after) with ordinality a(row, n) order by n)
		            when r.op = 'broadcast' then array[coalesce(substring(r.data->>'token' from '[.]([0-9]+)$')::int, -1)] end,
		       coalesce(case when r.op = 'bulk' then r.rows end, 0),
		       coalesce(case when r.op = 'result' then (r.data->>'as_of')::bigint end, 0),
		       coalesce(octet_length(r.before::text), 0) + coalesce(octet_length(r.after::text), 0) + coalesce(octet_length(r.data::text), 0),
		       coalesce(case when r.op = 'broadcast' and jsonb_typeof(r.data) = 'object' then r.data->>'post' end, '')
		  from trumpet.log l left join trumpet.record r on r.xid = l.xid and r.id = l.id
		 where l.position > $1 order by l.position`, after)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	var position, size int64
	var tag, last int32
	var xid, topic, op, post string
	var sums, befores []string
	var unchanged, steps []int32
	var was, is []int64
	var asOf, bulkRows int64
	_, err = pgx.ForEachRow(rows, []any{&position, &tag, &last, &xid, &topic, &op, &sums, &unchanged, &befores, &was, &is, &steps, &bulkRows, &asOf, &size, &post}, func() error {
		here := place{uint32(tag), last}
		if len(t.places) == 0 {
			t.first = position
		} else if next := t.first + int64(len(t.places)); position == next-1 {
			if t.places[position-t.first] != here {
				return fmt.Errorf("%w: position %d has another tag", errRewritten, position)
			}
			return nil
		} else if position != next {
			return fmt.Errorf("position %d follows %d in the log", position, next-1)
		}
		t.places = append(t.places, here)
		if op == "" {
			return nil // the row that begins a log
		}
		if len(sums) != int(last)+1 {
			return fmt.Errorf("position %d has %d events, and its last ordinal is %d", position, len(sums), last)
		}
		for ordinal := range last + 1 {
			if slices.Contains(unchanged, ordinal) {
				continue // a row that an update wrote and did not change is no event
			}
			s, err := parseSum(sums[ordinal])
			if err != nil {
				return err
			}
			e := logged{
				id:    trumpet.EventID{Position: position, Ordinal: ordinal, Tag: uint32(tag)},
				topic: topic, op: trumpet.Op(op), xid: xid, sum: s, size: size, post: post, asOf: asOf,
				step: -1, rows: int(bulkRows),
			}
			size = 0 // it is the record's, and counted once
			if len(steps) > 0 {
				e.step = int(steps[ordinal])
			}
			if len(was) > 0 {
				e.was = uint64(was[ordinal])
			}
			if len(is) > 0 {
				e.is = uint64(is[ordinal])
			}
			if len(befores) > 0 {
				if e.before, err = parseSum(befores[ordinal]); err != nil {
					return err
				}
			}
			t.events = append(t.events, e)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}

// has reports whether the log has, or had, an event with this id.
func (t *truth) has(id trumpet.EventID) bool {
	i := id.Position - t.first
	if i < 0 || i >= int64(len(t.places)) {
		return false
	}
	return t.places[i].tag == id.Tag && id.Ordinal >= 0 && id.Ordinal <= t.places[i].last
}

// after is the events after an id.
func (t *truth) after(id trumpet.EventID) []logged {
	return t.events[sort.Search(len(t.events), func(i int) bool { return t.events[i].id.Compare(id) > 0 }):]
}

// at is the event with an id.
func (t *truth) at(id trumpet.EventID) (logged, bool) {
	i := sort.Search(len(t.events), func(i int) bool { return t.events[i].id.Compare(id) >= 0 })
	if i == len(t.events) || t.events[i].id != id {
		return logged{}, false
	}
	return t.events[i], true
}

// head is the newest position that was read.
func (t *truth) head() int64 { return t.first + int64(len(t.places)) - 1 }

// forget drops events that nobody will be compared with any more.
func (t *truth) forget(upTo trumpet.EventID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = slices.Clone(t.after(upTo))
}
