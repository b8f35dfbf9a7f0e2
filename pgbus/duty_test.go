package pgbus_test

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

func TestOneWorkerAtATimeSequences(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	one, _, stopOne := start(t, url, "w1", nil)
	two, r2, _ := start(t, url, "w2", nil)
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '1')")
	r2.waitData(t, "1")
	waitUntil(t, "the record to be counted", func() bool { return one.Status().Sequenced+two.Status().Sequenced == 1 })
	if one.Status().Sequencing == two.Status().Sequencing {
		t.Errorf("one sequences: %v, two: %v", one.Status().Sequencing, two.Status().Sequencing)
	}
	stopOne()
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '2')")
	r2.waitData(t, "2")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '3')")
	r2.waitData(t, "3")
	waitUntil(t, "the second worker to have the duty", func() bool { return two.Status().Sequencing })
}

// A worker that is frozen while it has the duty and holds the wake-up lock: records go on, at the
// heartbeat's pace.
func TestAFrozenSequencerIsPassedBy(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	frozen := pgtest.Connect(t, url)
	pgtest.Exec(t, frozen, "select pg_advisory_lock(1953656176, 3), pg_advisory_lock(1953656176, 1)")
	bus, r, _ := start(t, url, "w1", nil)
	for _, data := range []string{"1", "2", "3"} {
		pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', $1::text::jsonb)", data)
		r.waitData(t, data)
	}
	if bus.Status().Sequencing {
		t.Error("the worker has a duty that another session holds")
	}
	// It is not passed by for ever: its session is ended, and the duty is free.
	waitUntil(t, "the worker to have the duty", func() bool {
		pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '4')")
		return bus.Status().Sequencing
	})
	if err := frozen.Ping(t.Context()); err == nil {
		t.Error("the session that did nothing is still there")
	}
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestAWorkerThatWasAwayCatchesUp(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"before\"')")
	r.waitData(t, `"before"`)
	for range 3 {
		pgtest.Exec(t, conn, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'trumpet listen%'")
		pgtest.Exec(t, conn, "insert into jobs (id) select coalesce(max(id), 0) + 1 from jobs")
		pgtest.Exec(t, conn, "notify dispatch, 'raw ones are not replayed'")
	}
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"after\"')")
	events := r.waitData(t, `"after"`)
	inserts := 0
	for _, e := range events {
		if e.Topic == "jobs" {
			inserts++
		}
	}
	if inserts != 3 || len(r.resets) != 1 {
		t.Errorf("%d inserts and %d resets, want 3 and 1", inserts, len(r.resets))
	}
	waitUntil(t, "live", func() bool { return bus.Status().Connected })
	if r.stales == 0 || bus.Status().Reconnects == 0 {
		t.Errorf("stale %d times, %d reconnects", r.stales, bus.Status().Reconnects)
	}
}

// A log that lost its tail, as after fail-over to a standby that lagged: the positions are given
// again with other tags. What the worker gave of the tail is void, and what stands before it stays.
func TestALostTailIsARewind(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	for _, data := range []string{"1", "2", "3"} {
		pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', $1::text::jsonb)", data)
	}
	r.waitData(t, "3")
	pgtest.Exec(t, conn, `begin; delete from trumpet.record where data <> '1'; delete from trumpet.log where position > 1;
		update trumpet.log set snapshot = pg_current_snapshot() where position = 1; commit`)
	pgtest.Exec(t, conn, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'trumpet%'")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"new history\"')")
	events := r.waitData(t, `"new history"`)
	if id := events[len(events)-1].ID; id.Position != 2 || id == events[1].ID {
		t.Errorf("the new history's event is %v, the lost one was %v", id, events[1].ID)
	}
	if len(r.rewinds) != 1 || r.rewinds[0] != events[0].ID || len(r.resets) != 1 {
		t.Errorf("rewinds %v, resets %v; want a rewind to %v", r.rewinds, r.resets, events[0].ID)
	}
	if n := bus.Status().Rewinds; n != 1 {
		t.Errorf("%d rewinds counted, want 1", n)
	}
}

// A log that has nothing in common with what a worker gave.
func TestAnotherLogIsAReset(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '1')")
	r.waitData(t, "1")
	pgtest.Exec(t, conn, "update trumpet.log set tag = tag # 1")
	pgtest.Exec(t, conn, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'trumpet%'")
	r.wait(t, "a second reset", func(r *recorder) bool { return len(r.resets) == 2 })
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '2')")
	r.waitData(t, "2")
	if len(r.rewinds) > 0 {
		t.Errorf("rewinds %v", r.rewinds)
	}
}

// Somebody deleted from the middle of the log: what follows is never given as if nothing were
// missing.
func TestAHoleInTheLogIsAReset(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"a record":   "delete from trumpet.record where data = '2'",
		"a position": "delete from trumpet.log where position = 2",
		"the next":   "delete from trumpet.log where position = 1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, conn := database(t)
			pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', to_jsonb(n)) from generate_series(1, 3) n")
			pgtest.Exec(t, conn, "select trumpet.sequence()")
			pgtest.Exec(t, conn, statement)
			bus, r, _ := start(t, url, "w1", nil) // it begins at position 0
			pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '4')")
			for _, e := range r.waitData(t, "4") {
				if string(e.Data) == "3" {
					t.Errorf("%v came after a hole, without a reset", e.ID)
				}
			}
			if len(r.resets) != 2 {
				t.Errorf("resets %v, want one more than at the start", r.resets)
			}
			if _, _, err := bus.ReadLog(t.Context(), r.resets[0], r.resets[1]); !isPruned(err) {
				t.Errorf("reading over the hole: %v", err)
			}
		})
	}
}

// A database that was restored into another cluster counts transactions anew.
func TestARestoredDatabaseBeginsAgain(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)")
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	pgtest.Exec(t, conn, "update trumpet.cluster set system_identifier = 1")
	// As if the other cluster had been further on.
	pgtest.Exec(t, conn, "update trumpet.log set snapshot = '9000000:9000000:' where snapshot is not null; update trumpet.record set xid = '8999999'; update trumpet.log set xid = '8999999' where xid is not null")
	_, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs (id) values (2)")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	events := r.waitData(t, `"end"`)
	got := describe(events)
	if n := len(got); n < 2 || got[n-2] != `insert {"id":2}` {
		t.Errorf("got %q", got)
	}
}

func TestPruning(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	pgtest.Exec(t, conn, "do $$ begin for i in 1..50 loop perform trumpet.broadcast('dispatch', to_jsonb(i)); end loop; end $$")
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	pgtest.Exec(t, conn, "update trumpet.record set at = now() - interval '2 hours' where data::text::int <= 40")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"not sequenced yet\"')")
	bus, r, _ := start(t, url, "w1", func(c *pgbus.Config) { c.Retention = time.Hour })
	r.waitData(t, `"not sequenced yet"`)
	waitUntil(t, "pruning", func() bool { return bus.Status().Pruned == 40 })
	var low, rows, records int
	err := conn.QueryRow(t.Context(), "select min(position), count(*), (select count(*) from trumpet.record) from trumpet.log").Scan(&low, &rows, &records)
	if err != nil || low != 40 || rows != 12 || records != 11 {
		t.Errorf("the log begins at %d with %d rows and %d records, %v", low, rows, records, err)
	}
	// By size: about ten broadcasts fit.
	pgtest.Exec(t, conn, "select trumpet.prune('1 day', 1100)")
	if err := conn.QueryRow(t.Context(), "select count(*) from trumpet.record").Scan(&records); err != nil || records < 5 || records > 10 {
		t.Errorf("%d records are left, %v", records, err)
	}
}

// At rest nothing is written, and nothing is asked but one heartbeat a worker, live queries or not.
func TestAtRest(t *testing.T) {
	t.Parallel()
	server, url := pgtest.StartMigrated(t, map[string]string{
		"log_statement": "all", "log_line_prefix": "%a|", "autovacuum": "off",
		"checkpoint_timeout": "1h", "wal_level": "minimal", "max_wal_senders": "0",
	})
	conn := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, "create table jobs (id int primary key); select trumpet.watch('jobs')")
	one, _, _ := start(t, url, "w1", nil)
	two, r2, _ := start(t, url, "w2", nil)
	defineLive(t, conn, "queried", "select max(id) as last from jobs")
	pgtest.Exec(t, conn, "select trumpet.live_aggregate('kept', 'jobs', '{max(id) as last}'); insert into jobs values (7)")
	for _, name := range []string{"queried", "kept"} {
		r2.waitResult(t, name, "7", is(`[{"last":7}]`))
	}
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '1')")
	r2.waitData(t, "1")
	if _, _, err := one.Ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Some seconds after a change whoever has not the live duty looks, once, whether the other one lives: if
	// it knows of the live queries by then.
	looks := func() int {
		logged, err := os.ReadFile(server.Log())
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(logged, []byte("a.state_change < clock_timestamp()"))
	}
	polls := 0
	waitUntil(t, "the look at whoever has the live duty", func() bool {
		if polls++; polls%50 == 1 {
			pgtest.Exec(t, conn, "insert into jobs select max(id) + 1 from jobs")
		}
		return looks() > 0
	})
	// Whoever is still busy with its start, or with those changes, has steps to make, or a look.
	busy, quiet := int64(-1), time.Now()
	waitUntil(t, "the workers to sleep", func() bool {
		if now := one.Status().Steps + two.Status().Steps + int64(looks()); now != busy {
			busy, quiet = now, time.Now()
		}
		return time.Since(quiet) > 5*time.Second // longer than it takes until a look
	})

	wal := func() string {
		var lsn string
		if err := conn.QueryRow(t.Context(), "select pg_current_wal_insert_lsn()::text").Scan(&lsn); err != nil {
			t.Fatal(err)
		}
		return lsn
	}
	before := wal()
	logged, err := os.ReadFile(server.Log())
	if err != nil {
		t.Fatal(err)
	}
	skip := len(logged)
	heartbeat := regexp.MustCompile(`(?m)^trumpet listen w([12])\|LOG:  statement: select position, last_ordinal, tag, pending, pg_notification_queue_usage\(\), s.state, s.state not like '0:%' and pg_try_advisory_xact_lock_shared\(1953656176, 6\), w\..* from trumpet.head\(\), trumpet.live_state\(\) s\(state\) left join trumpet.wal_pulse\(\) w on true$`)
	waitUntil(t, "six heartbeats of each worker", func() bool {
		if logged, err = os.ReadFile(server.Log()); err != nil {
			t.Fatal(err)
		}
		beats := map[string]int{}
		for _, match := range heartbeat.FindAllSubmatch(logged[skip:], -1) {
			beats[string(match[1])]++
		}
		return beats["1"] >= 6 && beats["2"] >= 6
	})
	if after := wal(); after != before {
		t.Errorf("at rest the WAL went from %s to %s", before, after)
	}
	for line := range strings.Lines(string(logged[skip:])) {
		if strings.Contains(line, "statement:") && !heartbeat.MatchString(line) && !strings.Contains(line, "pg_current_wal_insert_lsn") {
			t.Errorf("at rest somebody asked: %s", line)
		}
		if strings.Contains(line, "execute") && strings.HasPrefix(line, "trumpet") {
			t.Errorf("at rest somebody asked: %s", line)
		}
	}
}

// The bus goes on when Postgres is killed and comes back.
func TestPostgresKilledAndRestarted(t *testing.T) {
	t.Parallel()
	server, url := pgtest.StartMigrated(t, nil)
	conn := pgtest.Connect(t, url)
	_, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '1')")
	r.waitData(t, "1")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	r.wait(t, "stale", func(r *recorder) bool { return r.stales == 1 })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close(context.WithoutCancel(t.Context()))
	pgtest.Exec(t, again, "select trumpet.broadcast('dispatch', '2')")
	r.waitData(t, "2")
	r.waitLive(t)
}

// A writer decides at commit that it need not wake anybody, because the sequencer holds the wake-up
// lock; and it has the newest transaction id of all, which no snapshot shows as in progress. The
// sequencer looks for the last time before that commit, and has to find it all the same.
func TestTheNewestTransactionIsWatchedToo(t *testing.T) {
	t.Parallel()
	// A server of its own: a transaction that ends anywhere in it would make the writer's one of the
	// older ones. And a heartbeat that comes too late to help.
	_, url := pgtest.StartMigrated(t, map[string]string{"autovacuum": "off"})
	conn, inserting, locking, writing := pgtest.Connect(t, url), pgtest.Connect(t, url), pgtest.Connect(t, url), pgtest.Connect(t, url)
	bus, r, _ := start(t, url, "w1", func(c *pgbus.Config) { c.Heartbeat = time.Minute })
	waitUntil(t, "the worker to have the duty", func() bool { return bus.Status().Sequencing })
	isTrue := func(query string) func() bool {
		return func() bool {
			var yes bool
			if err := conn.QueryRow(t.Context(), query).Scan(&yes); err != nil {
				t.Fatal(err)
			}
			return yes
		}
	}

	// The step that takes the first record waits for whoever has its position; then a lock on the log
	// waits for that step, and keeps the sequencer from its next one.
	pgtest.Exec(t, inserting, "begin; insert into trumpet.log select position + 1, 0, null, null, 0, false, 0, null from trumpet.log")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '1')")
	waitUntil(t, "the step to wait", isTrue("select exists (select from pg_locks where locktype = 'transactionid' and not granted)"))
	locked := make(chan error, 1)
	go func() {
		_, err := locking.Exec(context.WithoutCancel(t.Context()), "begin; lock table trumpet.log in access exclusive mode")
		locked <- err
	}()
	waitUntil(t, "the lock to wait", isTrue("select exists (select from pg_locks where mode = 'AccessExclusiveLock' and not granted)"))
	pgtest.Exec(t, inserting, "rollback")
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the sequencer to wait, with the wake-up lock", isTrue(`select exists (select from pg_locks l join pg_locks a using (pid)
		where l.relation = 'trumpet.log'::regclass and not l.granted and a.locktype = 'advisory' and a.objid = 1 and a.granted)`))

	pgtest.Exec(t, writing, "begin; select trumpet.broadcast('dispatch', '2'); set constraints all immediate")
	steps := bus.Status().Steps
	pgtest.Exec(t, locking, "rollback")
	waitUntil(t, "the step before letting go, and the one after", func() bool { return bus.Status().Steps >= steps+2 })
	pgtest.Exec(t, writing, "commit")
	r.waitData(t, "2")
}
