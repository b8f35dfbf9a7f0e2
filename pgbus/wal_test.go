package pgbus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

// walBus starts a server with these tables, and a worker that reads its WAL.
func walBus(t *testing.T, settings map[string]string, tables string) (url string, conn *pgx.Conn, bus *pgbus.Bus, r *recorder) {
	t.Helper()
	_, url = pgtest.StartMigrated(t, settings)
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
	_, conn, _, r := walBus(t, nil, `create table jobs (id int primary key, version int not null default 0, note text);
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
	_, conn, bus, r := walBus(t, nil, `
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
	_, conn, _, r := walBus(t, nil, `create table jobs (id int primary key); create table parts (id int primary key);
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
	url, conn, _, r := walBus(t, nil, `create table here (id int primary key, n int); create table there (id int primary key, n int);
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
	url, conn, _, r := walBus(t, nil, `create table other (id int primary key); select trumpet.watch('other', capture => 'wal');
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
	_, conn, _, r := walBus(t, nil, `
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
	_, conn, _, r := walBus(t, nil, `create type mood as enum ('good');
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

// A slot that is dropped, or that the server gave up because it retained too much: another one is made, and the
// topics are told. What triggers record goes on.
func TestLostSlot(t *testing.T) {
	t.Parallel()
	tables := `create table jobs (id int primary key, note text); create table parts (id int primary key);
		select trumpet.watch('jobs', capture => 'wal'), trumpet.watch('parts')`
	for name, lose := range map[string]func(t *testing.T, conn *pgx.Conn){
		"dropped": func(t *testing.T, conn *pgx.Conn) {
			waitUntil(t, "the slot to be dropped", func() bool {
				_, err := conn.Exec(t.Context(), `select pg_terminate_backend(active_pid) from pg_replication_slots where active;
					select pg_drop_replication_slot(slot_name) from pg_replication_slots`)
				return err == nil
			})
		},
		"invalidated": func(t *testing.T, conn *pgx.Conn) {
			// The walsender is frozen, and the WAL goes on.
			pid := query1[int](t, conn, "select active_pid from pg_replication_slots")
			freeze(t, pid)
			pgtest.Exec(t, conn, "insert into jobs select g, repeat('x', 1000) from generate_series(10, 30000) g")
			pgtest.Exec(t, conn, "select pg_switch_wal()")
			pgtest.Exec(t, conn, "insert into jobs select g, repeat('x', 1000) from generate_series(40000, 60000) g")
			checkpointed := make(chan error, 1)
			go func() {
				// It ends the walsender, and waits for it.
				other, err := pgx.ConnectConfig(context.WithoutCancel(t.Context()), conn.Config())
				if err == nil {
					_, err = other.Exec(context.WithoutCancel(t.Context()), "checkpoint")
					other.Close(context.WithoutCancel(t.Context()))
				}
				checkpointed <- err
			}()
			waitFor(t, conn, "select exists (select from pg_stat_activity where backend_type = 'checkpointer' and wait_event = 'ReplicationSlotDrop')"+
				" or not exists (select from pg_replication_slots where wal_status <> 'lost')")
			thaw(t, pid)
			if err := <-checkpointed; err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, conn, bus, r := walBus(t, map[string]string{"max_slot_wal_keep_size": "32MB", "min_wal_size": "32MB", "max_wal_size": "48MB"}, tables)
			pgtest.Exec(t, conn, "insert into jobs values (1)")
			if got := describe(r.end(t, conn)); !slices.Equal(got, []string{`insert {"id":1}`}) {
				t.Fatal(got)
			}
			lose(t, conn)
			pgtest.Exec(t, conn, "insert into parts values (1)")
			bulks := func() int {
				n := 0
				r.change(func() {
					for _, e := range r.events {
						if e.Topic == "jobs" && e.Op == trumpet.OpBulk && e.Statement == "" {
							n++
						}
					}
				})
				return n
			}
			waitUntil(t, "the topic to be told", func() bool { return bulks() == 2 })
			waitUntil(t, "the heartbeat to know of the slot", func() bool { return bus.Status().WALSlot != "" && bus.Status().WALState == "reserved" })
			pgtest.Exec(t, conn, "insert into jobs values (2)")
			got := describe(r.end(t, conn))
			got = slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "bulk insert") })
			if want := []string{`insert {"id":1}`, `insert {"id":1}`, `insert {"id":2}`}; !slices.Equal(got, want) {
				t.Errorf("got %q\nwant %q", got, want)
			}
			if n := bulks(); n != 2 {
				t.Errorf("%d bulk events, want one for each slot", n)
			}
		})
	}
}

// The slot goes when no table needs it, and another one comes when one does.
func TestSlotComesAndGoes(t *testing.T) {
	t.Parallel()
	_, conn, bus, r := walBus(t, nil, `create table jobs (id int primary key); create table parts (id int primary key);
		select trumpet.watch('jobs', capture => 'wal'), trumpet.watch('parts', capture => 'wal')`)
	pgtest.Exec(t, conn, "insert into jobs values (1); select trumpet.unwatch('jobs'); insert into jobs values (2); insert into parts values (3)")
	pgtest.Exec(t, conn, "insert into parts values (4)")
	pgtest.Exec(t, conn, "select trumpet.unwatch('parts')")
	waitFor(t, conn, "select not exists (select from pg_replication_slots) and not exists (select from trumpet.wal_slot)")
	pgtest.Exec(t, conn, "insert into parts values (5)")
	pgtest.Exec(t, conn, "create table gone (id int primary key); select trumpet.watch('gone', capture => 'wal')")
	waitForSlot(t, conn)
	pgtest.Exec(t, conn, "begin; insert into gone values (9); drop table gone; commit")
	waitFor(t, conn, "select not exists (select from pg_replication_slots) and not exists (select from trumpet.wal_slot)")
	waitUntil(t, "the heartbeat to see that it is gone", func() bool { return bus.Status().WALSlot == "" })
	pgtest.Exec(t, conn, "select trumpet.watch('parts', capture => 'wal')")
	waitForSlot(t, conn)
	pgtest.Exec(t, conn, "insert into parts values (6)")
	got := describe(r.end(t, conn))
	if want := []string{`insert {"id":1} more`, `insert {"id":3}`, `insert {"id":4}`, `insert {"id":9}`, `insert {"id":6}`}; !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// The server's process of the session that has the duty is frozen: the lock cannot be freed. Another worker gives
// the slot up, so that everything else goes on; when the process goes, the topics are told.
func TestFrozenDuty(t *testing.T) {
	t.Parallel()
	url, conn, one, r := walBus(t, nil, "create table jobs (id int primary key); select trumpet.watch('jobs', capture => 'wal')")
	if !one.Status().Sequencing {
		t.Fatal("the worker does not have the duty")
	}
	start(t, url, "w2", nil)
	pid := query1[int](t, conn, "select pid from pg_stat_activity where application_name = 'trumpet sequencer w1'")
	freeze(t, pid)
	pgtest.Exec(t, conn, "insert into jobs values (1)")
	r.end(t, conn)
	thaw(t, pid)
	waitForSlot(t, conn)
	pgtest.Exec(t, conn, "insert into jobs values (2)")
	if got := describe(r.end(t, conn)); !slices.Equal(got, []string{`insert {"id":2}`}) {
		t.Errorf("got %q", got)
	}
}

// The server's process that sends the WAL is frozen: it cannot even be ended. Everything else goes on after a
// while, by another slot; the one of the frozen process goes when that does.
func TestFrozenSender(t *testing.T) {
	t.Parallel()
	_, conn, _, r := walBus(t, nil, "create table jobs (id int primary key); select trumpet.watch('jobs', capture => 'wal')")
	pid := query1[int](t, conn, "select active_pid from pg_replication_slots")
	freeze(t, pid)
	pgtest.Exec(t, conn, "insert into jobs values (1)")
	r.end(t, conn)
	waitForSlot(t, conn)
	pgtest.Exec(t, conn, "insert into jobs values (2)")
	if got := describe(r.end(t, conn)); !slices.Equal(got, []string{`insert {"id":2}`}) {
		t.Errorf("got %q", got)
	}
	if n := query1[int](t, conn, "select count(*)::int from pg_replication_slots"); n != 2 {
		t.Errorf("%d slots, want the frozen one and the new one", n)
	}
	thaw(t, pid)
	waitFor(t, conn, "select count(*) = 1 from pg_replication_slots")
	pgtest.Exec(t, conn, "insert into jobs values (3)")
	if got := describe(r.end(t, conn)); !slices.Equal(got, []string{`insert {"id":2}`, `insert {"id":3}`}) {
		t.Errorf("got %q", got)
	}
}

// The duty goes to another worker when the one that has it ends, or dies: its sessions are gone then. On
// PostgreSQL 17 and newer the slot is one that standbys can keep.
func TestWALDutyMoves(t *testing.T) {
	t.Parallel()
	url, conn := capturedDatabase(t, "wal")
	one, _, stopOne := start(t, url, "w1", nil)
	waitForSlot(t, conn)
	if query1[int](t, conn, "select current_setting('server_version_num')::int") >= 170000 && !query1[bool](t, conn, "select failover from pg_replication_slots") {
		t.Error("the slot would not be there after a fail-over")
	}
	two, r, _ := start(t, url, "w2", nil)
	pgtest.Exec(t, conn, "insert into jobs values (1)")
	r.wait(t, "the first row", func(r *recorder) bool { return slices.Contains(describe(r.events), `insert {"id":1}`) })
	if !one.Status().Sequencing || two.Status().Sequencing {
		t.Fatal("the first worker does not have the duty")
	}
	stopOne()
	pgtest.Exec(t, conn, "insert into jobs values (2)")
	r.wait(t, "the second row", func(r *recorder) bool { return slices.Contains(describe(r.events), `insert {"id":2}`) })
	if !two.Status().Sequencing {
		t.Error("the second worker does not have the duty")
	}
	_, r3, _ := start(t, url, "w3", nil)
	pgtest.Exec(t, conn, "select pg_terminate_backend(pid) from pg_stat_activity where application_name ~ '^trumpet (wal|sequencer|listen) w2'")
	pgtest.Exec(t, conn, "insert into jobs values (3)")
	r3.wait(t, "the third row", func(r *recorder) bool { return slices.Contains(describe(r.events), `insert {"id":3}`) })
	if got := describe(r.end(t, conn)); !slices.Equal(got, []string{`insert {"id":1}`, `insert {"id":2}`, `insert {"id":3}`}) {
		t.Errorf("got %q", got)
	}
}

// A slot that was lost, and then its table goes to triggers before there is another one: the topic is told, because
// nobody knows what was missed. And so is a table's that leaves before its first slot.
func TestUnreadTopicsAreTold(t *testing.T) {
	t.Parallel()
	_, conn, _, r := walBus(t, nil, `create table jobs (id int primary key); create table parts (id int primary key);
		select trumpet.watch('jobs', capture => 'wal'), trumpet.watch('parts', capture => 'wal')`)
	r.end(t, conn)
	bulks := func(topic string) (n int) {
		r.change(func() {
			for _, e := range r.events {
				if e.Topic == topic && e.Op == trumpet.OpBulk && e.Statement == "" {
					n++
				}
			}
		})
		return n
	}
	pgtest.Exec(t, conn, "select trumpet.watch('jobs')") // it was read up to here: nothing to tell
	pgtest.Exec(t, conn, "insert into jobs values (1)")
	r.end(t, conn)
	if n := bulks("jobs"); n != 1 {
		t.Errorf("%d bulk events for jobs, want the slot's", n)
	}
	pgtest.Exec(t, conn, "begin; select trumpet.wal_end(true); select trumpet.watch('parts'); commit")
	r.end(t, conn)
	if n := bulks("parts"); n != 2 {
		t.Errorf("%d bulk events for parts, want the slot's and one for what is lost", n)
	}
}

// A worker whose role may not replicate says so, and does everything else.
func TestWALWithoutTheRight(t *testing.T) {
	t.Parallel()
	url, conn := capturedDatabase(t, "wal")
	pgtest.Exec(t, conn, `create table parts (id int primary key); select trumpet.watch('parts');
		create role worker login password 'w' in role pg_read_all_data; select trumpet.grant_worker('worker')`)
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	_, r, _ := start(t, fmt.Sprintf("postgres://worker:w@%s:%d/%s", config.Host, config.Port, config.Database), "w1", nil)
	pgtest.Exec(t, conn, "insert into parts values (1); insert into jobs values (1)")
	if got := describe(r.end(t, conn)); !slices.Equal(got, []string{`insert {"id":1}`}) {
		t.Fatal(got)
	}
	pgtest.Exec(t, conn, "alter role worker replication")
	waitForSlot(t, conn)
	pgtest.Exec(t, conn, "insert into jobs values (2)")
	if got := describe(r.end(t, conn)); !slices.Equal(got, []string{`insert {"id":1}`, `insert {"id":2}`}) {
		t.Fatal(got)
	}
}

// At rest nothing is written because of the slot, and it does not keep the WAL that others write.
func TestWALAtRest(t *testing.T) {
	t.Parallel()
	url, conn, bus, r := walBus(t, map[string]string{"autovacuum": "off", "checkpoint_timeout": "1h"}, `create table jobs (id int primary key);
		select trumpet.watch('jobs', capture => 'wal')`)
	pgtest.Exec(t, conn, "insert into jobs values (1)")
	r.end(t, conn)
	confirmed := func() bool {
		return query1[bool](t, conn, "select confirmed_flush_lsn >= pg_current_wal_flush_lsn() from pg_replication_slots")
	}
	waitUntil(t, "the slot to be confirmed", confirmed)
	before, steps := query1[string](t, conn, "select pg_current_wal_insert_lsn()::text"), bus.Status().Steps
	heard := bus.Status().LastHeard
	waitUntil(t, "some heartbeats", func() bool { return bus.Status().LastHeard.Sub(heard) > 5*time.Second })
	if after := query1[string](t, conn, "select pg_current_wal_insert_lsn()::text"); after != before || bus.Status().Steps > steps {
		t.Errorf("at rest the WAL went from %s to %s, and %d steps were made", before, after, bus.Status().Steps-steps)
	}

	// Another database of the server is busy. This one writes nothing.
	pgtest.Exec(t, conn, "create database busy")
	busy := pgtest.Connect(t, strings.Replace(url, "/app", "/busy", 1))
	pgtest.Exec(t, busy, "create table t (a text)")
	start := query1[string](t, conn, "select restart_lsn::text from pg_replication_slots")
	waitUntil(t, "the slot to let the WAL go", func() bool {
		pgtest.Exec(t, busy, "insert into t select repeat('x', 1000) from generate_series(1, 1000); checkpoint")
		return query1[bool](t, conn, "select restart_lsn > $1::text::pg_lsn + 1000000 from pg_replication_slots", start)
	})
	waitUntil(t, "the slot to be confirmed", confirmed)
	if n := query1[int](t, conn, "select count(*)::int from trumpet.wal_read"); n != 1 {
		t.Errorf("%d rows say how far the WAL was read", n)
	}
}

// Postgres is killed under load, more than once: each change comes once.
func TestWALPostgresKilled(t *testing.T) {
	t.Parallel()
	server, url := pgtest.StartMigrated(t, map[string]string{"fsync": "on"})
	conn := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, `create table jobs (id int primary key, version int not null default 0, note text);
		alter table jobs replica identity full; select trumpet.watch('jobs', capture => 'wal')`)
	_, r, _ := start(t, url, "w1", nil)
	start(t, url, "w2", nil)
	waitForSlot(t, conn)
	pgtest.Exec(t, conn, "insert into jobs (id) select g from generate_series(1, 4) g")
	for round := range 3 {
		var writers sync.WaitGroup
		dead := make(chan struct{})
		for w := range 4 {
			writers.Go(func() {
				ctx := context.WithoutCancel(t.Context())
				for conn, err := pgx.Connect(ctx, url); err == nil; {
					_, err = conn.Exec(ctx, "update jobs set version = version + 1 where id = $1", w+1)
				}
				<-dead
			})
		}
		waitFor(t, conn, fmt.Sprintf("select count(*) filter (where version > %d) > 0 from jobs", 50*(round+1)))
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		close(dead)
		writers.Wait()
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		conn = pgtest.Connect(t, url)
	}
	checkVersions(t, conn, r.end(t, conn))
}

// A server that is shut down as usual waits until its WAL's readers have everything, or are gone: ours do not keep it.
func TestWALShutdown(t *testing.T) {
	t.Parallel()
	server, url := pgtest.StartMigrated(t, nil)
	conn := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, "create table jobs (id int primary key); select trumpet.watch('jobs', capture => 'wal')")
	_, r, _ := start(t, url, "w1", nil)
	waitForSlot(t, conn)
	for i := range 3 {
		pgtest.Exec(t, conn, "insert into jobs values ($1)", i)
		r.end(t, conn)
		began := time.Now()
		if err := server.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("the server took %v to shut down", time.Since(began)) // 10 s, if the reader keeps it
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		conn = pgtest.Connect(t, url)
		waitForSlot(t, conn)
	}
	if got := describe(r.end(t, conn)); !slices.Equal(got, []string{`insert {"id":0}`, `insert {"id":1}`, `insert {"id":2}`}) {
		t.Errorf("got %q", got)
	}
}

// One transaction with more rows than anybody wants to hold in memory is one event, in its place.
func TestWALHugeTransaction(t *testing.T) {
	t.Parallel()
	_, conn, _, r := walBus(t, nil, `create table jobs (id int primary key, note text); create table parts (id int primary key);
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

// Whoever has the duty is frozen, and so is its reader: another worker notices, though no record waits.
func TestAFrozenReaderIsPassedBy(t *testing.T) {
	t.Parallel()
	url, conn := capturedDatabase(t, "wal")
	frozen := pgtest.Connect(t, url)
	pgtest.Exec(t, frozen, "select pg_advisory_lock(1953656176, 3)")
	// Its slot, which it does not read.
	pgtest.Exec(t, frozen, "select pg_create_logical_replication_slot('trumpet_' || oid, 'pgoutput') from pg_database where datname = current_database()")
	pgtest.Exec(t, frozen, "select trumpet.wal_begin(slot_name, confirmed_flush_lsn) from pg_replication_slots")
	_, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs values (1)")
	if got := describe(r.end(t, conn)); !slices.Equal(got, []string{`insert {"id":1}`}) {
		t.Errorf("got %q", got)
	}
	if err := frozen.Ping(t.Context()); err == nil {
		t.Error("the session that did nothing is still there")
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

// freeze stops a process of a test's own server until thaw, or the test's end.
func freeze(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
}

func thaw(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}
