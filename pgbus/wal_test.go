package pgbus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

// walBus makes a database with these tables, and a worker that reads its WAL.
func walBus(t *testing.T, tables string) (url string, conn *pgx.Conn, bus *pgbus.Bus, r *recorder) {
	t.Helper()
	return readWAL(t, pgtest.MigratedForWAL(t), tables)
}

// ownWALBus does so on a server of its own, for what looks at all its slots.
func ownWALBus(t *testing.T, settings map[string]string, tables string) (url string, conn *pgx.Conn, bus *pgbus.Bus, r *recorder) {
	t.Helper()
	_, url = pgtest.StartMigrated(t, settings)
	return readWAL(t, url, tables)
}

func readWAL(t *testing.T, url, tables string) (_ string, conn *pgx.Conn, bus *pgbus.Bus, r *recorder) {
	t.Helper()
	conn = pgtest.Connect(t, url)
	pgtest.Exec(t, conn, tables)
	bus, r, _ = start(t, url, "w1", nil)
	waitForSlot(t, conn)
	return url, conn, bus, r
}

// end waits until everything that was committed has come, and returns the events without the bulk ones
// with which a slot begins, and without this end.
func (r *recorder) end(t *testing.T, conn *pgx.Conn) []trumpet.Event {
	t.Helper()
	token := fmt.Sprintf(`"end %d"`, rand.Uint64())
	pgtest.Exec(t, conn, "select trumpet.broadcast('end', $1::text::jsonb)", token)
	events := r.waitData(t, token)
	return slices.DeleteFunc(slices.Clone(events), func(e trumpet.Event) bool {
		return e.Topic == "end" || e.Op == trumpet.OpBulk && e.Statement == ""
	})
}

func TestWALEveryKindOfEvent(t *testing.T) {
	t.Parallel()
	_, conn, _, r := walBus(t, `create table jobs (id int primary key, version int not null default 0, note text);
		select trumpet.watch('jobs', capture => 'wal')`)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1), (2)")
	pgtest.Exec(t, conn, "begin; update jobs set note = 'x'; delete from jobs where id = 2; commit")
	pgtest.Exec(t, conn, "insert into jobs (id) select g from generate_series(100, 1200) g")
	pgtest.Exec(t, conn, "begin; savepoint s; insert into jobs values (50); rollback to s; insert into jobs values (51); commit")
	pgtest.Exec(t, conn, "begin; insert into jobs values (52); rollback")
	pgtest.Exec(t, conn, "begin; insert into jobs values (53); prepare transaction 'two'")
	pgtest.Exec(t, conn, "commit prepared 'two'")
	pgtest.Exec(t, conn, "truncate jobs")
	pgtest.Exec(t, conn, "insert into jobs (id, note) values (7, repeat('é\n\t\"', 250000))")
	events := r.end(t, conn)
	want := []string{
		`insert {"id":1} more`, `insert {"id":2}`, `update {"id":1} more`, `update {"id":2} more`, `delete {"id":2}`,
		"bulk insert 1101", `insert {"id":51}`, `insert {"id":53}`, "truncate", `insert {"id":7}`,
	}
	if got := describe(events); !slices.Equal(got, want) {
		t.Fatalf("got %q\nwant %q", got, want)
	}
	var row struct{ Note string }
	if err := json.Unmarshal(events[9].New, &row); err != nil || len(row.Note) != 250000*5 || !strings.HasPrefix(row.Note, "é\n\t\"é") {
		t.Errorf("a row of 1 MB came with a note of %d bytes, %v", len(row.Note), err)
	}
}

// What is known of a row before its change: all of it, or what identifies it. A large value that was not
// changed is never shown as null.
func TestWALRowsBefore(t *testing.T) {
	t.Parallel()
	_, conn, bus, r := walBus(t, `
		create table brief (id int primary key, a int, big text);
		create table whole (id int primary key, a int, big text);
		alter table brief alter big set storage external; alter table whole alter big set storage external;
		alter table whole replica identity full;
		select trumpet.watch('brief', capture => 'wal'), trumpet.watch('whole', capture => 'wal', columns => '{a,big}')`)
	big := strings.Repeat("x", 5000)
	for _, table := range []string{"brief", "whole"} {
		for _, statement := range []string{
			"insert into %s values (1, 1, repeat('x', 5000))", "update %s set a = 2", "update %s set a = 2", "update %s set id = 3", "delete from %s",
		} {
			pgtest.Exec(t, conn, fmt.Sprintf(statement, table))
		}
	}
	var got []string
	for _, e := range r.end(t, conn) {
		got = append(got, fmt.Sprintf("%s %s new %s old %s known %s", e.Op, e.Key, e.New, e.Old, e.Known))
	}
	want := []string{
		`insert {"id":1} new {"id":1,"a":1,"big":"` + big + `"} old  known `,
		`update {"id":1} new {"id":1,"a":2} old  known {"id":1}`,
		`update {"id":1} new {"id":1,"a":2} old  known {"id":1}`, // nobody can know that nothing changed
		`update {"id":3} new {"id":3,"a":2} old {"id":1} known {"id":1}`,
		`delete {"id":3} new  old {"id":3} known `,
		`insert {"id":1} new {"id":1,"a":1,"big":"` + big + `"} old  known `,
		`update {"id":1} new {"id":1,"a":2,"big":"` + big + `"} old {"a":1} known `,
		`update {"id":3} new {"id":3,"a":2,"big":"` + big + `"} old {"id":1} known `,
		`delete {"id":3} new  old {"id":3,"a":2,"big":"` + big + `"} known `,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %s\nwant %s", strings.ReplaceAll(strings.Join(got, "\n"), big, "…"), strings.ReplaceAll(strings.Join(want, "\n"), big, "…"))
	}

	// So rows can be filtered by what is known.
	for subscription, refused := range map[string]bool{"brief?a=eq.1": true, "brief?id=eq.1": false, "whole?a=eq.1": false} {
		s, err := trumpet.ParseSubscription(subscription)
		if err != nil {
			t.Fatal(err)
		}
		table, _, err := bus.Table(t.Context(), s.Topic)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Compile(table); (err != nil) != refused {
			t.Errorf("%s: %v", subscription, err)
		} else if refused && !strings.Contains(err.Error(), "alter table public.brief replica identity full") {
			t.Errorf("%s: %v says not what to do", subscription, err)
		}
	}
}

// A transaction is whole and in its own order, whatever captures its tables have; its broadcasts
// stand where they were sent.
func TestWALAndTriggersInOneTransaction(t *testing.T) {
	t.Parallel()
	_, conn, _, r := walBus(t, `create table jobs (id int primary key); create table parts (id int primary key);
		select trumpet.watch('jobs', capture => 'wal'), trumpet.watch('parts')`)
	pgtest.Exec(t, conn, `begin; insert into jobs values (1); select trumpet.broadcast('dispatch', '"a"'); insert into jobs values (2);
		insert into parts values (3); select trumpet.broadcast('dispatch', '"b"'); insert into jobs values (4), (5); insert into parts values (4);
		insert into jobs values (6); delete from jobs where id < 3; delete from parts; commit`)
	pgtest.Exec(t, conn, "insert into parts values (6)")
	pgtest.Exec(t, conn, "insert into jobs values (7)")
	pgtest.Exec(t, conn, "insert into parts values (7)")
	got := describe(r.end(t, conn))
	want := []string{
		`insert {"id":1} more`, `broadcast "a" more`, `insert {"id":2} more`, `insert {"id":3} more`, `broadcast "b" more`,
		`insert {"id":4} more`, `insert {"id":5} more`, `insert {"id":4} more`, `insert {"id":6} more`, `delete {"id":1} more`, `delete {"id":2} more`,
		`delete {"id":3} more`, `delete {"id":4}`,
		`insert {"id":6}`, `insert {"id":7}`, `insert {"id":7}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// A row that goes back and forth between a table of each capture, moved by many: whoever follows the topics has it
// in exactly one of them at each place between two transactions.
func TestWALOrderBetweenCaptures(t *testing.T) {
	t.Parallel()
	url, conn, _, r := walBus(t, `create table here (id int primary key, n int); create table there (id int primary key, n int);
		select trumpet.watch('here', capture => 'wal'), trumpet.watch('there')`)
	pgtest.Exec(t, conn, "insert into here select g, 0 from generate_series(1, 8) g")
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			ctx := context.WithoutCancel(t.Context())
			conn, err := pgx.Connect(ctx, url)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(ctx)
			random := rand.New(rand.NewPCG(1, uint64(w)))
			for range 100 {
				from, to := "here", "there"
				if random.IntN(2) == 0 {
					from, to = to, from
				}
				// One transaction takes it, another one puts it there: it saw what the first one did.
				id := 1 + random.IntN(8)
				var n int
				if conn.QueryRow(ctx, "delete from "+from+" where id = $1 returning n + 1", id).Scan(&n) != nil {
					continue
				}
				if _, err := conn.Exec(ctx, "insert into "+to+" values ($1, $2)", id, n); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	place := map[string]string{}
	moves := 0
	for _, e := range r.end(t, conn) {
		key := string(e.Key)
		switch e.Op {
		case trumpet.OpInsert:
			if place[key] != "" {
				t.Errorf("at %v row %s comes to %s, and is in %s", e.ID, key, e.Topic, place[key])
			}
			place[key] = e.Topic
			moves++
		case trumpet.OpDelete:
			if place[key] != e.Topic {
				t.Errorf("at %v row %s goes from %s, and is in %q", e.ID, key, e.Topic, place[key])
			}
			place[key] = ""
		}
	}
	if moves < 50 {
		t.Errorf("only %d moves: this proves little", moves)
	}
}

// A table goes from one capture to the other, again and again, while many write: each row's versions come one
// by one.
func TestSwitchBetweenCaptures(t *testing.T) {
	t.Parallel()
	url, conn, _, r := walBus(t, `create table other (id int primary key); select trumpet.watch('other', capture => 'wal');
		create table jobs (id int primary key, version int not null default 0, note text); alter table jobs replica identity full;
		select trumpet.watch('jobs'); insert into jobs (id) select g from generate_series(1, 20) g`)
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() { write(t, url, rand.New(rand.NewPCG(2, uint64(w)))) })
	}
	done := make(chan struct{})
	go func() {
		writers.Wait()
		close(done)
	}()
	switches := 0
	for writing := true; writing; {
		select {
		case <-done:
			writing = false
		default:
			pgtest.Exec(t, conn, "select trumpet.watch('jobs', capture => $1)", []string{"wal", "triggers"}[switches%2])
			switches++
		}
	}
	checkVersions(t, conn, r.end(t, conn))
	if switches < 5 {
		t.Errorf("only %d switches: this proves little", switches)
	}
}

// checkVersions checks that each row's version goes up by one from event to event, and ends where the table is.
func checkVersions(t *testing.T, conn *pgx.Conn, events []trumpet.Event) {
	t.Helper()
	versions := make(map[string]int)
	for _, e := range events {
		if e.Topic != "jobs" || e.Op != trumpet.OpUpdate {
			continue
		}
		var row struct{ Version int }
		if err := json.Unmarshal(e.New, &row); err != nil {
			t.Fatal(err)
		}
		if key := string(e.Key); row.Version != versions[key]+1 {
			t.Errorf("row %s goes from version %d to %d at %v", key, versions[key], row.Version, e.ID)
		}
		versions[string(e.Key)] = row.Version
	}
	rows, err := conn.Query(t.Context(), "select id, version from jobs order by id")
	if err != nil {
		t.Fatal(err)
	}
	var id, version int
	if _, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error {
		if got := versions[fmt.Sprintf(`{"id":%d}`, id)]; got != version {
			t.Errorf("row %d is at version %d, its events at %d", id, version, got)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// Partitions: their changes are the whole table's, also those of partitions that come later, or that were
// detached before anybody read of them. TRUNCATE of one of them is a bulk event.
func TestWALPartitions(t *testing.T) {
	t.Parallel()
	_, conn, _, r := walBus(t, `
		create table visits (id int primary key, note text) partition by range (id);
		create table visits_low partition of visits for values from (0) to (100);
		create table visits_high (note text, id int primary key);
		alter table visits attach partition visits_high for values from (100) to (200);
		select trumpet.watch('visits', capture => 'wal')`)
	for _, statement := range []string{
		"insert into visits values (1, 'a'), (101, 'b')",
		"insert into visits_high values ('c', 102)", // by itself, with its columns in another order
		"create table visits_late partition of visits for values from (200) to (300)",
		"insert into visits values (201, 'd')",
		"truncate visits_low",
		"update visits set id = 2 where id = 201", // it moves
		"",
		"begin; insert into visits values (202, 'e'); alter table visits detach partition visits_late; drop table visits_late; commit",
		"truncate visits",
	} {
		if statement == "" {
			r.end(t, conn) // the partition has been heard of before it goes
			continue
		}
		pgtest.Exec(t, conn, statement)
	}
	got := describe(r.end(t, conn))
	want := []string{
		`insert {"id":1} more`, `insert {"id":101}`, `insert {"id":102}`, `insert {"id":201}`, "bulk truncate 0",
		`delete {"id":201} more`, `insert {"id":2}`, `insert {"id":202}`, "truncate",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// Columns come, go, and get other names and types between two changes, in one transaction or in many.
func TestWALSchemaChanges(t *testing.T) {
	t.Parallel()
	_, conn, _, r := walBus(t, `create type mood as enum ('good');
		create table jobs (id int primary key, a text); select trumpet.watch('jobs', capture => 'wal')`)
	for _, statement := range []string{
		"insert into jobs values (1, 'x')",
		"alter table jobs add b mood default 'good'", "insert into jobs values (2, 'x')",
		"begin; insert into jobs values (3, 'x'); alter table jobs rename a to c; insert into jobs values (4, 'x'); alter table jobs drop b; insert into jobs values (5, 'x'); commit",
		"alter type mood add value 'better'", "alter table jobs add d mood[]", "insert into jobs values (6, 'x', '{better,good}')",
		"alter table jobs alter c type jsonb using to_jsonb(c)", "insert into jobs values (7, '{\"a\": 1}', null)",
		"alter table jobs rename to work", "insert into work values (8)",
	} {
		pgtest.Exec(t, conn, statement)
	}
	var got []string
	for _, e := range r.end(t, conn) {
		got = append(got, string(e.New))
	}
	want := []string{
		`{"id":1,"a":"x"}`, `{"id":2,"a":"x","b":"good"}`, `{"id":3,"a":"x","b":"good"}`, `{"id":4,"c":"x","b":"good"}`, `{"id":5,"c":"x"}`,
		`{"id":6,"c":"x","d":["better","good"]}`, `{"id":7,"c":{"a": 1},"d":null}`, `{"id":8,"c":null,"d":null}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// One transaction with more rows than anybody wants to hold in memory is one event, in its place.
func TestWALHugeTransaction(t *testing.T) {
	t.Parallel()
	_, conn, _, r := walBus(t, `create table jobs (id int primary key, note text); create table parts (id int primary key);
		select trumpet.watch('jobs', capture => 'wal', max_rows => 10), trumpet.watch('parts', capture => 'wal')`)
	pgtest.Exec(t, conn, `begin; insert into parts values (1); insert into jobs select g, repeat('x', 100) from generate_series(1, 50000) g;
		update jobs set note = '' where id <= 11; truncate jobs; insert into parts values (2); insert into jobs values (1), (2); commit`)
	pgtest.Exec(t, conn, "insert into jobs values (3)")
	got := describe(r.end(t, conn))
	want := []string{`insert {"id":1} more`, "truncate more", `insert {"id":2} more`, "bulk insert 50002 more", "bulk update 11", `insert {"id":3}`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// query1 returns the one value of a query.
func query1[T any](t *testing.T, conn *pgx.Conn, query string, args ...any) (value T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), query, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return value
}
