package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

const schema = `
	create table customers (id bigint generated always as identity primary key, name text not null);
	create table jobs (
	  id bigint generated always as identity primary key, customer_id bigint, title text not null default 'a job',
	  address text not null default '1 Mill Lane', status text not null default 'new', technician text,
	  priority int not null default 2, price numeric(10,2) not null default 12.50,
	  scheduled_for timestamptz, updated_at timestamptz not null default now());
	insert into jobs (title) select 'old ' || g from generate_series(1, 20) g;
	select trumpet.watch('customers');
	select trumpet.watch('jobs')`

// newDatabase makes a database with watched jobs and customers. Some jobs are older than that,
// and so than all events.
func newDatabase(t *testing.T) (url string, conn *pgx.Conn) {
	t.Helper()
	return newDatabaseBy(t, capture)
}

func newDatabaseBy(t *testing.T, capture string) (url string, conn *pgx.Conn) {
	t.Helper()
	url, conn = emptyDatabase(t, capture)
	prepare(t, capture, url, conn)
	return url, conn
}

func queryOne[T any](t *testing.T, conn *pgx.Conn, query string, args ...any) T {
	t.Helper()
	var value T
	if err := conn.QueryRow(t.Context(), query, args...).Scan(&value); err != nil {
		t.Fatalf("%.80s: %v", query, err)
	}
	return value
}

// broadcast sends a JSON value to the topic dispatch, in a transaction of its own.
func broadcast(t *testing.T, conn *pgx.Conn, data string) {
	t.Helper()
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', $1::text::jsonb)", data)
}

// endOfTest comes after everything else.
const endOfTest = `{"the": "end"}`

// finish ends a test's events with a last one, and returns what the log has then. The log is
// read when the first client has the last event.
func finish(t *testing.T, conn *pgx.Conn, c *client) []logged {
	t.Helper()
	broadcast(t, conn, endOfTest)
	c.waitEnd(t)
	checkContiguous(t, conn)
	return readLog(t, conn, 0)
}

// logged is an event as the log has it: the truth that clients are compared with.
type logged struct {
	id    string
	topic string
	op    string
	xid   string
}

// readLog reads the whole log after a position, without the code that workers read it with. A row
// that an update wrote and did not change is no event.
func readLog(t *testing.T, conn *pgx.Conn, after int64) []logged {
	t.Helper()
	rows, err := conn.Query(t.Context(), `
		select l.position, l.tag, l.last_ordinal, l.xid::text, r.topic, r.op,
		       array(select b.n - 1 from json_array_elements(r.before) with ordinality b(row, n)
		               join json_array_elements(r.after) with ordinality a(row, n) using (n)
		              where r.op = 'update' and b.row::text = a.row::text)
		  from trumpet.log l join trumpet.record r on r.xid = l.xid and r.id = l.id
		 where l.position > $1 order by l.position`, after)
	if err != nil {
		t.Fatal(err)
	}
	var events []logged
	var position int64
	var tag, last int32
	var xid, topic, op string
	var unchanged []int32
	_, err = pgx.ForEachRow(rows, []any{&position, &tag, &last, &xid, &topic, &op, &unchanged}, func() error {
		for ordinal := range last + 1 {
			if slices.Contains(unchanged, ordinal) {
				continue
			}
			id := trumpet.EventID{Position: position, Ordinal: ordinal, Tag: uint32(tag)}
			events = append(events, logged{id.String(), topic, op, xid})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// checkContiguous fails unless the log's positions are 1, 2, 3, … from its anchor.
func checkContiguous(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	gaps := queryOne[int64](t, conn, "select max(position) - min(position) + 1 - count(*) from trumpet.log")
	if gaps != 0 {
		t.Errorf("%d positions are missing in the log", gaps)
	}
}

// checkEvents fails unless a client's events are those of the log, each once, in its order, with
// "more" on all but the last of each transaction's. before is where the client began.
func checkEvents(t *testing.T, name, topics string, truth []logged, before string, got []message) {
	t.Helper()
	begin := mustParse(t, before)
	wanted := strings.Split(topics, ",")
	var want []logged
	for _, e := range truth {
		if slices.Contains(wanted, e.topic) && mustParse(t, e.id).Compare(begin) > 0 {
			want = append(want, e)
		}
	}
	for i := range max(len(want), len(got)) {
		if i >= len(got) {
			t.Errorf("%s: %d events of the log did not come, the first is %v", name, len(want)-i, want[i])
			return
		}
		if i >= len(want) {
			t.Errorf("%s: %d events too many came, the first is %.200s", name, len(got)-i, got[i].text)
			return
		}
		w, g := want[i], got[i]
		if g.ID != w.id || g.Topic != w.topic || g.Op != w.op {
			t.Errorf("%s: event %d of %d is %.200s, the log has %v", name, i, len(want), g.text, w)
			return
		}
		if more := i+1 < len(want) && want[i+1].xid == w.xid; more != g.More {
			t.Errorf("%s: more is %v on %s, want %v", name, g.More, g.ID, more)
			return
		}
	}
}

func mustParse(t *testing.T, id string) trumpet.EventID {
	t.Helper()
	parsed, err := trumpet.ParseEventID(id)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// view is a table as a client has it: its rows by their keys.
type view map[string]any

// selectView reads a table.
func selectView(t *testing.T, conn *pgx.Conn, table string) view {
	t.Helper()
	rows, err := conn.Query(t.Context(), "select id::text, to_jsonb(r.*)::text from "+table+" r")
	if err != nil {
		t.Fatal(err)
	}
	v := view{}
	var id, row string
	if _, err := pgx.ForEachRow(rows, []any{&id, &row}, func() error {
		v[`{"id":`+id+`}`] = decode(t, []byte(row))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return v
}

// apply does to the view what the events of a topic did to the table.
func (v view) apply(t *testing.T, topic string, events []message) {
	t.Helper()
	for _, e := range events {
		if e.Topic != topic {
			continue
		}
		key := string(e.Key)
		before, had := v[key]
		switch e.Op {
		case "insert":
			if had {
				t.Errorf("%s inserts %s, which is there", e.ID, key)
			}
			v[key] = decode(t, e.New)
		case "update":
			// old holds the former values of what changed: they must be what the view had.
			after := decode(t, e.New)
			if rowBefore, ok := before.(map[string]any); ok {
				want := map[string]any{}
				for column, value := range rowBefore {
					if !reflect.DeepEqual(value, after.(map[string]any)[column]) {
						want[column] = value
					}
				}
				if old := decode(t, e.Old); !reflect.DeepEqual(old, any(want)) {
					t.Errorf("%s: old is %v, what changed was %v", e.ID, old, want)
				}
			} else {
				t.Errorf("%s updates %s, which is not there", e.ID, key)
			}
			v[key] = after
		case "delete":
			if !had || !reflect.DeepEqual(before, decode(t, e.Old)) {
				t.Errorf("%s deletes %s, the row was %v", e.ID, e.Old, before)
			}
			delete(v, key)
		case "truncate":
			clear(v)
		}
	}
}

func (v view) compare(t *testing.T, name string, table view) {
	t.Helper()
	if reflect.DeepEqual(v, table) {
		return
	}
	for key, row := range table {
		if !reflect.DeepEqual(v[key], row) {
			t.Errorf("%s: its row %s is %v, the table has %v", name, key, v[key], row)
			return
		}
	}
	t.Errorf("%s: it has %d rows, the table %d", name, len(v), len(table))
}

func decode(t *testing.T, text []byte) any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber() // 12.50 is not 12.5
	var value any
	if err := decoder.Decode(&value); err != nil {
		t.Fatalf("%v: %.200s", err, text)
	}
	return value
}

// timeOf is the server's clock, which events carry.
func timeOf(t *testing.T, conn *pgx.Conn) time.Time {
	t.Helper()
	return queryOne[time.Time](t, conn, "select clock_timestamp()")
}

func quoted(format string, args ...any) string { return `"` + fmt.Sprintf(format, args...) + `"` }
