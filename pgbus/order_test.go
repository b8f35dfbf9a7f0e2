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
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

// slowHeartbeat takes the heartbeat out of a test: what comes, comes by a wake-up.
func slowHeartbeat(c *pgbus.Config) { c.Heartbeat = time.Minute }

// Sequence order, transaction id order and commit order all differ; each row's changes come in
// the order of their commits.
func TestOrderOfInterleavedTransactions(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", slowHeartbeat)
	a, b, c := pgtest.Connect(t, url), pgtest.Connect(t, url), pgtest.Connect(t, url)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1), (2), (3)")

	// A has the lowest transaction id, C the lowest record; B commits first, then A, then C.
	pgtest.Exec(t, a, "begin; select pg_current_xact_id()")
	pgtest.Exec(t, b, "begin isolation level repeatable read")
	pgtest.Exec(t, c, "begin; update jobs set note = 'c' where id = 3")
	pgtest.Exec(t, b, "update jobs set note = 'b' where id = 1; insert into jobs (id) values (10)")
	pgtest.Exec(t, b, "commit")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"b committed\"')")
	r.waitData(t, `"b committed"`)
	pgtest.Exec(t, a, "update jobs set note = 'a' where id = 1; savepoint s; update jobs set note = 'gone' where id = 2; rollback to s; commit")
	pgtest.Exec(t, c, "update jobs set note = 'c' where id = 1; commit")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	events := r.waitData(t, `"end"`)

	var notes []string
	for _, e := range events {
		if string(e.Key) == `{"id":1}` && e.Op == trumpet.OpUpdate {
			notes = append(notes, strings.Split(string(e.New), `"note":`)[1])
		}
		if strings.Contains(string(e.New), "gone") {
			t.Errorf("an update that was rolled back came: %s", e.New)
		}
	}
	if want := []string{`"b"}`, `"a"}`, `"c"}`}; !slices.Equal(notes, want) {
		t.Errorf("the row's changes came as %v, want %v", notes, want)
	}
}

// Every way in which a committing transaction can fail to wake the sequencer. The heartbeat is a minute,
// so what comes within the test's patience came without it.
func TestNoWakeUpIsLost(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	// A commit that takes its time after the decision about its wake-up: zz comes after wake.
	pgtest.Exec(t, conn, `create function dawdle() returns trigger language plpgsql as $$
		begin if new.after::text like '%dawdle%' then perform pg_sleep(0.4); end if; return null; end $$;
		create constraint trigger zz after insert on trumpet.record deferrable initially deferred for each row execute function dawdle()`)
	_, r, _ := start(t, url, "w1", slowHeartbeat)
	other, third := pgtest.Connect(t, url), pgtest.Connect(t, url)
	next := 0
	arrives := func(name string) {
		t.Helper()
		r.wait(t, name, func(r *recorder) bool {
			return slices.ContainsFunc(r.events, func(e trumpet.Event) bool { return string(e.Key) == fmt.Sprintf(`{"id":%d}`, next) })
		})
	}
	id := func() int { next++; return next }

	// One that stays open for long, with records in it, silences nobody.
	pgtest.Exec(t, other, fmt.Sprintf("begin; insert into jobs (id) values (%d)", 1000))
	for range 5 {
		pgtest.Exec(t, conn, fmt.Sprintf("insert into jobs (id) values (%d)", id()))
		arrives("a commit beside a long transaction")
	}
	pgtest.Exec(t, other, "commit")
	pgtest.Exec(t, conn, fmt.Sprintf("insert into jobs (id) values (%d)", id()))
	arrives("a commit after the long transaction")
	r.wait(t, "the long transaction's own record", func(r *recorder) bool {
		return slices.ContainsFunc(r.events, func(e trumpet.Event) bool { return string(e.Key) == `{"id":1000}` })
	})

	// A commits slowly after its wake-up was decided; B fails to get the lock meanwhile.
	slow := make(chan error, 1)
	go func() {
		_, err := other.Exec(context.WithoutCancel(t.Context()), "insert into jobs (id, note) values (1001, 'dawdle')")
		slow <- err
	}()
	const dawdling = "select exists (select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database())"
	waitFor(t, third, dawdling)
	pgtest.Exec(t, conn, fmt.Sprintf("insert into jobs (id) values (%d)", id()))
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	arrives("a commit in the shadow of a slow one")

	// B's commit dawdles while somebody else, as an awake sequencer does, holds the lock; the
	// holder lets go and is awake no more before B is visible.
	pgtest.Exec(t, other, "select pg_advisory_lock(1953656176, 1)")
	number := id()
	go func() {
		_, err := conn.Exec(context.WithoutCancel(t.Context()), fmt.Sprintf("insert into jobs (id, note) values (%d, 'dawdle')", number))
		slow <- err
	}()
	waitFor(t, third, dawdling)
	pgtest.Exec(t, other, "select pg_advisory_unlock(1953656176, 1)")
	pgtest.Exec(t, other, "notify trumpet_wake")
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	arrives("a commit that was under way when the lock was let go")

	// A rolled back after it had taken the lock early.
	pgtest.Exec(t, other, "begin; insert into jobs (id) values (1003); set constraints all immediate; rollback")
	pgtest.Exec(t, conn, fmt.Sprintf("insert into jobs (id) values (%d)", id()))
	arrives("a commit after a rollback")
}

// What no wake-up tells of comes with the heartbeat.
func TestHeartbeatFindsWhatNoWakeUpTold(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", nil)
	holder := pgtest.Connect(t, url)
	// SET CONSTRAINTS makes the wake-up at once and holds its lock till the end of the transaction.
	pgtest.Exec(t, holder, "begin; insert into jobs (id) values (1); set constraints all immediate")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"silenced\"')")
	r.waitData(t, `"silenced"`)
	pgtest.Exec(t, holder, "commit")
	r.wait(t, "the holder's record", func(r *recorder) bool { return len(r.events) == 2 })

	pgtest.Exec(t, conn, "set trumpet.wake = 'off'")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"without a wake-up\"')")
	r.waitData(t, `"without a wake-up"`)
}

// With wake-ups off for the database, two-phase commit works, and the sequencer polls.
func TestWakeUpsOff(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	pgtest.Exec(t, conn, "alter table trumpet.record disable trigger wake")
	_, r, _ := start(t, url, "w1", slowHeartbeat)
	writer := pgtest.Connect(t, url)
	pgtest.Exec(t, writer, "insert into jobs (id) values (1)")
	r.wait(t, "an event by polling", func(r *recorder) bool { return len(r.events) == 1 })
	pgtest.Exec(t, writer, "begin; insert into jobs (id) values (2)")
	if _, err := writer.Exec(t.Context(), "prepare transaction 'two'"); err != nil {
		if strings.Contains(err.Error(), "max_prepared_transactions") {
			return // the server's setting, not ours, stands in the way; the wake-up did not
		}
		t.Fatal(err)
	}
	pgtest.Exec(t, writer, "commit prepared 'two'")
	r.wait(t, "the prepared transaction's event", func(r *recorder) bool { return len(r.events) == 2 })
}

// What the database's defaults are must not matter to the bus.
func TestTransactionDefaultsOfTheDatabase(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	pgtest.Exec(t, conn, `do $$ begin
		execute format('alter database %I set default_transaction_isolation = serializable', current_database());
		execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$`)
	bus, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)") // a session from before
	if id, err := bus.Publish(t.Context(), "dispatch", json.RawMessage(`"end"`)); err != nil || id.IsZero() {
		t.Errorf("publish: %v, %v", id, err)
	}
	if got, want := describe(r.waitData(t, `"end"`)), []string{`insert {"id":1}`, `broadcast "end"`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func waitFor(t *testing.T, conn *pgx.Conn, condition string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		var ok bool
		if err := conn.QueryRow(t.Context(), condition).Scan(&ok); err != nil {
			t.Fatalf("%s: %v", condition, err)
		}
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for: %s", condition)
		}
	}
}

// Many writers, with aborts, savepoints, long transactions and all isolation levels, while listening
// sessions and sequencers are ended again and again: every worker gets every committed event once,
// in one order, each row's versions in sequence, and transactions whole.
func TestOrderUnderFire(t *testing.T) {
	t.Parallel()
	for _, capture := range []string{"triggers", "wal"} {
		t.Run(capture, func(t *testing.T) {
			t.Parallel()
			testOrderUnderFire(t, capture)
		})
	}
}

func testOrderUnderFire(t *testing.T, capture string) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	url, conn := capturedDatabase(t, capture)
	pgtest.Exec(t, conn, "insert into jobs (id) select g from generate_series(1, 20) g")
	_, r1, _ := start(t, url, "w1", nil)
	_, r2, _ := start(t, url, "w2", nil)
	if capture == "wal" {
		waitForSlot(t, conn)
	}

	var writers sync.WaitGroup
	for w := range 6 {
		writers.Go(func() { write(t, url, rand.New(rand.NewPCG(uint64(seed), uint64(w)))) })
	}
	done := make(chan struct{})
	var fire sync.WaitGroup
	fire.Go(func() {
		random := rand.New(rand.NewPCG(uint64(seed), 99))
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Duration(20+random.IntN(150)) * time.Millisecond):
			}
			victim := []string{"trumpet listen%", "trumpet sequencer%", "trumpet wal%"}[random.IntN(3)]
			_, err := conn.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
				where datname = current_database() and application_name like $1 order by random() limit 1`, victim)
			if err != nil {
				t.Errorf("terminate: %v", err)
			}
		}
	})
	writers.Wait()
	close(done)
	fire.Wait()
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	one, two := r1.waitData(t, `"end"`), r2.waitData(t, `"end"`)

	// Worker 2 may have begun to read later than worker 1; from there on they are equal.
	common := slices.IndexFunc(one, func(e trumpet.Event) bool { return e.ID == two[0].ID })
	if common < 0 {
		one, two, common = two, one, slices.IndexFunc(two, func(e trumpet.Event) bool { return e.ID == one[0].ID })
	}
	for i := range two {
		if common+i >= len(one) || one[common+i].ID != two[i].ID || one[common+i].More != two[i].More {
			t.Fatalf("seed %d: the workers differ at event %d", seed, i)
		}
	}

	checkVersions(t, conn, one)
	var gaps int
	if err := conn.QueryRow(t.Context(), "select max(position) - min(position) + 1 - count(*) from trumpet.log").Scan(&gaps); err != nil || gaps != 0 {
		t.Errorf("%d positions are missing in the log, %v", gaps, err)
	}
	t.Logf("%d events, %d and %d times stale", len(one), r1.stales, r2.stales)
}

// write makes random transactions that raise versions of rows.
func write(t *testing.T, url string, random *rand.Rand) {
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(ctx)
	for range 60 {
		level := []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}[random.IntN(3)]
		tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
		if err != nil {
			t.Error(err)
			return
		}
		var failed error
		update := func() {
			// Always in the order of ids within a statement; deadlocks and serialization failures
			// between statements abort a transaction, which is one more thing to get right.
			from := 1 + random.IntN(20)
			if _, err := tx.Exec(ctx, "update jobs set version = version + 1 where id between $1 and $2", from, from+random.IntN(3)); err != nil {
				failed = err
			}
		}
		for range 1 + random.IntN(4) {
			if failed != nil {
				break
			}
			switch random.IntN(5) {
			case 0:
				if _, err := tx.Exec(ctx, "savepoint s"); err != nil {
					failed = err
					break
				}
				update()
				if _, err := tx.Exec(ctx, "rollback to s"); err == nil {
					failed = nil
				}
			case 1:
				if _, err := tx.Exec(ctx, "select pg_sleep($1::float / 1000)", random.IntN(8)); err != nil {
					failed = err
				}
			default:
				update()
			}
		}
		if failed != nil || random.IntN(4) == 0 {
			_ = tx.Rollback(ctx)
			continue
		}
		_ = tx.Commit(ctx) // a serialization failure here rolls back too
	}
}
