package integration

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// What is large, much or uncommon: each is seen the same by a WebSocket and an SSE client on each
// of two workers.
func TestBigThings(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	pgtest.Exec(t, conn, watching(`
		create table documents (id int primary key, body text, note text);
		create table many (id int primary key, n int not null default 0);
		insert into many select g from generate_series(1, 100000) g;
		create table readings (id int, area text not null, value int, primary key (id, area)) partition by list (area);
		create table readings_north partition of readings for values in ('north');
		create table readings_south partition of readings for values in ('south');
		select trumpet.watch('documents'), trumpet.watch('many'), trumpet.watch('readings')`))
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}
	const topics = "documents,many,readings,dispatch"
	var clients []*client
	for _, w := range workers {
		for _, transport := range transports {
			clients = append(clients, dial(t, w, dialling{transport: transport, topics: topics}))
		}
	}
	var begin string
	for _, c := range clients {
		begin = c.ready(t).ID
	}

	// step does something and returns the events that it gave, the same to all clients.
	steps, seen := 0, 0
	step := func(t *testing.T, do func()) []message {
		t.Helper()
		do()
		steps++
		broadcast(t, conn, fmt.Sprint(steps))
		var first []message
		for i, c := range clients {
			c.waitData(t, fmt.Sprint(steps))
			events := c.events()[seen:]
			if i == 0 {
				first = events
			}
			if len(events) != len(first) {
				t.Fatalf("%s got %d events, another one %d", c.name, len(events), len(first))
			}
			for j := range events {
				if events[j].text != first[j].text {
					t.Fatalf("%s got %.200s, another one %.200s", c.name, events[j].text, first[j].text)
				}
			}
		}
		seen += len(first)
		return first[:len(first)-1]
	}

	t.Run("a row of 1 MB", func(t *testing.T) {
		// Text that does not compress to next to nothing.
		const body = "select string_agg(md5(g::text), '') from generate_series(1, 32768) g"
		events := step(t, func() { pgtest.Exec(t, conn, "insert into documents values (1, ("+body+"), 'first')") })
		want := queryOne[string](t, conn, body)
		if len(events) != 1 || len(want) != 1<<20 {
			t.Fatalf("%d events, the text has %d bytes", len(events), len(want))
		}
		if row := decode(t, events[0].New).(map[string]any); row["body"] != want {
			t.Error("the row came changed")
		}
		events = step(t, func() { pgtest.Exec(t, conn, "update documents set note = 'second' where id = 1") })
		if len(events) != 1 || string(events[0].Old) != `{"note":"first"}` || len(events[0].New) < 1<<20 {
			t.Errorf("after an update of another column: %d events", len(events))
		}
	})

	t.Run("a transaction of 5000 statements", func(t *testing.T) {
		const statements = 5000
		if byWAL(capture, "many") { // there max_rows bounds what a transaction does
			pgtest.Exec(t, conn, watching("select trumpet.watch('many', max_rows => 5000)"))
			defer pgtest.Exec(t, conn, watching("select trumpet.watch('many')"))
		}
		events := step(t, func() {
			err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
				var batch pgx.Batch
				for i := range statements {
					batch.Queue("update many set n = $1 where id = $2", i+1, i%100+1)
				}
				return tx.SendBatch(t.Context(), &batch).Close()
			})
			if err != nil {
				t.Fatal(err)
			}
		})
		if len(events) != statements {
			t.Fatalf("%d events, want %d", len(events), statements)
		}
		for i, e := range events {
			want := fmt.Sprintf(`{"id":%d,"n":%d}`, i%100+1, i+1)
			if string(e.New) != want || e.More != (i < statements-1) {
				t.Fatalf("event %d is %s, want new %s and more on all but the last", i, e.text, want)
			}
		}
	})

	t.Run("a statement of 100000 rows", func(t *testing.T) {
		events := step(t, func() { pgtest.Exec(t, conn, "update many set n = -1") })
		if len(events) != 1 {
			t.Fatalf("%d events, want one", len(events))
		}
		e := events[0]
		if e.Op != "bulk" || e.Statement != "update" || e.Rows != 100000 || e.Topic != "many" || e.New != nil || e.Key != nil {
			t.Errorf("%s", e.text)
		}
	})

	t.Run("as many rows as are told one by one", func(t *testing.T) {
		events := step(t, func() { pgtest.Exec(t, conn, "update many set n = 7 where id <= 1000") })
		if len(events) != 1000 {
			t.Fatalf("%d events, want 1000", len(events))
		}
		for i, e := range events {
			if e.Op != "update" || e.More != (i < 999) || string(e.Old) != `{"n":-1}` {
				t.Fatalf("event %d is %s", i, e.text)
			}
		}
	})

	t.Run("truncate", func(t *testing.T) {
		events := step(t, func() { pgtest.Exec(t, conn, "truncate many, documents") })
		if got := describe(events); !reflect.DeepEqual(got, []string{"truncate documents +", "truncate many"}) &&
			!reflect.DeepEqual(got, []string{"truncate many +", "truncate documents"}) {
			t.Errorf("%q", got)
		}
	})

	t.Run("a partitioned table", func(t *testing.T) {
		events := step(t, func() {
			pgtest.Exec(t, conn, "insert into readings values (1, 'north', 10), (2, 'south', 20)")
			pgtest.Exec(t, conn, "insert into readings_north values (3, 'north', 30)")
			pgtest.Exec(t, conn, "update readings set value = 11 where id = 1")
			pgtest.Exec(t, conn, "update readings set area = 'south' where id = 3")
			pgtest.Exec(t, conn, "delete from readings_south where id = 2")
			pgtest.Exec(t, conn, "truncate readings_north")
			pgtest.Exec(t, conn, "truncate readings")
		})
		want := []string{
			`insert readings {"id":1,"area":"north"} +`, `insert readings {"id":2,"area":"south"}`,
			`insert readings {"id":3,"area":"north"}`,
			`update readings {"id":1,"area":"north"}`,
			`update readings {"id":3,"area":"south"}`,
			`delete readings {"id":2,"area":"south"}`,
			"bulk readings", "truncate readings",
		}
		if byWAL(capture, "readings") { // a row that goes to another partition is deleted here and inserted there
			want = slices.Replace(want, 4, 5, `delete readings {"id":3,"area":"north"} +`, `insert readings {"id":3,"area":"south"}`)
		}
		if got := describe(events); !reflect.DeepEqual(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})

	truth := readLog(t, conn, mustParse(t, begin).Position)
	checkContiguous(t, conn)
	for _, c := range clients {
		c.check(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
	}
}

// describe tells events by their operation, topic and key, with a plus where more follow.
func describe(events []message) []string {
	var lines []string
	for _, e := range events {
		line := e.Op + " " + e.Topic
		if e.Key != nil {
			line += " " + string(e.Key)
		}
		if e.More {
			line += " +"
		}
		lines = append(lines, line)
	}
	return lines
}
