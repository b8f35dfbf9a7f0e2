package pgbus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

// ids reads jobs' ids in a cut.
func ids(t *testing.T, bus *pgbus.Bus, in func()) (all []int, at trumpet.EventID) {
	t.Helper()
	err := bus.Cut(t.Context(), func(ctx context.Context, tx pgx.Tx, where trumpet.EventID) error {
		at = where
		if in != nil {
			in()
		}
		rows, err := tx.Query(ctx, "select id from jobs order by id")
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, pgx.RowTo[int])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, at
}

func TestCut(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	if all, at := ids(t, bus, nil); len(all) != 0 || at.Position != 0 {
		t.Errorf("empty: %v at %v", all, at)
	}
	pgtest.Exec(t, conn, "insert into jobs (id) values (1), (2), (3)")
	all, at := ids(t, bus, func() { pgtest.Exec(t, conn, "insert into jobs (id) values (4)") })
	if len(all) != 3 || at.Position != 1 || at.Ordinal != 2 {
		t.Errorf("got %v at %v, want 3 rows at 1.2", all, at)
	}
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	events := r.waitData(t, `"end"`)
	if id := events[2].ID; id != at {
		t.Errorf("the cut is at %v, the event there is %v", at, id)
	}
	rest, _, err := bus.ReadLog(t.Context(), at, events[len(events)-1].ID)
	if got := describe(rest); err != nil || len(got) != 2 || got[0] != `insert {"id":4}` {
		t.Errorf("after the cut: %q, %v", got, err)
	}
}

// A worker is frozen after it has begun a cut and before it has committed: nobody can step for two
// seconds. Then its session is ended, and what waited comes, though no heartbeat helps.
func TestAFrozenCutKeepsNobodyOutForLong(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", slowHeartbeat)
	waitUntil(t, "the worker to have the duty", func() bool { return bus.Status().Sequencing })
	frozen := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)")
	r.wait(t, "the first row", func(r *recorder) bool { return len(r.events) == 1 })

	began := time.Now()
	pgtest.Exec(t, frozen, "begin; select * from trumpet.cut()")
	pgtest.Exec(t, conn, "insert into jobs (id) values (2)")
	r.wait(t, "the row", func(r *recorder) bool { return len(r.events) == 2 })
	took := time.Since(began)
	if took < time.Second {
		t.Errorf("after %v: the cut kept nobody out, so this shows nothing", took)
	}
	if took > 10*time.Second {
		t.Errorf("the cut kept the sequencer out for %v", took)
	}
	t.Logf("the row came after %v", took)
	if err := frozen.Ping(t.Context()); err == nil {
		t.Error("the frozen session is still there")
	}
	if all, at := ids(t, bus, nil); len(all) != 2 || at.Position != 2 {
		t.Errorf("then: %v at %v", all, at)
	}
}

// The worker with the duty takes a wake-up while somebody else is at a step that began before the commit.
func TestASequencerThatIsKeptOutTriesAgain(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", slowHeartbeat)
	waitUntil(t, "the worker to have the duty", func() bool { return bus.Status().Sequencing })
	other := pgtest.Connect(t, url)
	pgtest.Exec(t, other, "begin; select * from trumpet.sequence()")
	steps := bus.Status().Steps
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '1')")
	waitUntil(t, "a step in vain", func() bool { return bus.Status().Steps > steps+1 })
	pgtest.Exec(t, other, "commit")
	r.waitData(t, "1")
}

// Where the step's commit fails its positions do not exist, and nothing is read.
func TestACutThatDoesNotCommitIsNotUsed(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	pgtest.Exec(t, conn, `create function refuse() returns trigger language plpgsql as $$ begin raise 'no commit today'; end $$;
		create constraint trigger refuse after insert on trumpet.log deferrable initially deferred for each row execute function refuse()`)
	// Nobody but the cut sequences: the duty is taken, and the worker's one try to step was made.
	pgtest.Exec(t, conn, "select pg_advisory_lock(1953656176, 3); set trumpet.wake = 'off'")
	bus, _, _ := start(t, url, "w1", slowHeartbeat)
	waitUntil(t, "the worker's step", func() bool { return bus.Status().Steps == 1 })
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)")
	err := bus.Cut(t.Context(), func(context.Context, pgx.Tx, trumpet.EventID) error {
		t.Error("a cut that was not committed was read")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "no commit today") {
		t.Errorf("got %v", err)
	}
	pgtest.Exec(t, conn, "drop function refuse() cascade")
	if all, at := ids(t, bus, nil); len(all) != 1 || at.Position != 1 {
		t.Errorf("then: %v at %v", all, at)
	}
}

// ALTER TABLE rewrites a table between the snapshot and its reading, as does TRUNCATE: to the
// snapshot it looks empty then.
func TestACutReadsAgainAfterARewrite(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, _, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, `insert into jobs (id) values (1), (2);
		create table visits (id int primary key) partition by range (id); create table visits_1 partition of visits for values from (0) to (100); insert into visits values (1)`)
	for table, statement := range map[string]string{
		"jobs":   "alter table jobs alter version type bigint",
		"visits": "truncate visits_1; insert into visits values (2)",
	} {
		reads, count := 0, 0
		err := bus.Cut(t.Context(), func(ctx context.Context, tx pgx.Tx, _ trumpet.EventID) error {
			if reads++; reads == 1 {
				pgtest.Exec(t, conn, statement)
			}
			return tx.QueryRow(ctx, "select count(*) from "+table).Scan(&count)
		})
		if err != nil || reads != 2 || count == 0 {
			t.Errorf("%s: %d reads, %d rows, %v", table, reads, count, err)
		}
	}
}

// Many cuts at once, more than there are sessions, with reads of the log and broadcasts beside them;
// some are given up. None waits for ever.
func TestManyCutsAtOnce(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)")
	var all errgroup.Group
	for n := range 40 {
		all.Go(func() error {
			ctx := context.WithoutCancel(t.Context())
			if n%5 == 0 {
				given, cancel := context.WithTimeout(ctx, time.Duration(n)*time.Millisecond)
				defer cancel()
				_ = bus.Cut(given, func(ctx context.Context, tx pgx.Tx, _ trumpet.EventID) error {
					_, err := tx.Exec(ctx, "select pg_sleep(10)")
					return err
				})
				return nil
			}
			if _, err := bus.Publish(ctx, "dispatch", json.RawMessage("1")); err != nil {
				return err
			}
			return bus.Cut(ctx, func(ctx context.Context, tx pgx.Tx, at trumpet.EventID) error {
				if _, _, err := bus.ReadLog(ctx, r.resets[0], at); err != nil {
					return err
				}
				var count int
				return tx.QueryRow(ctx, "select count(*) from jobs").Scan(&count)
			})
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}

// A worker that is frozen while it has the duty is ended, though cuts sequence beside those who pass it by.
func TestCutsDoNotHideAFrozenSequencer(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	frozen := pgtest.Connect(t, url)
	pgtest.Exec(t, frozen, "select pg_advisory_lock(1953656176, 3), pg_advisory_lock(1953656176, 1)")
	bus, r, _ := start(t, url, "w1", nil)
	for n := 1; !bus.Status().Sequencing; n++ {
		if n > 10 {
			t.Fatal("passed by ten times, and still there")
		}
		pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', to_jsonb($1::int))", n)
		r.waitData(t, fmt.Sprint(n))
		pgtest.Exec(t, conn, "insert into jobs (id) values ($1)", n)
		ids(t, bus, nil)
	}
}
