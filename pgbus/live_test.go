package pgbus_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

const jobsByNote = `select note, count(*) as jobs from jobs group by note order by note`

func defineLive(t *testing.T, conn *pgx.Conn, name, query string, more ...string) {
	t.Helper()
	pgtest.Exec(t, conn, fmt.Sprintf("select trumpet.live_query('%s', $q$%s$q$, depends_on => '{jobs}'%s)", name, query, strings.Join(append([]string{""}, more...), ", ")))
}

// waitResult waits for a result of a live query that is as wanted.
func (r *recorder) waitResult(t *testing.T, name, what string, ok func(e trumpet.Event) bool) trumpet.Event {
	t.Helper()
	var found trumpet.Event
	r.wait(t, name+" to be "+what, func(r *recorder) bool {
		for _, e := range r.events {
			if e.Topic == name && e.Op == trumpet.OpResult && ok(e) {
				found = e
			}
		}
		return found.Topic != ""
	})
	return found
}

func is(data string) func(trumpet.Event) bool {
	return func(e trumpet.Event) bool { return string(e.Data) == data && !e.Stale }
}

func (r *recorder) results(name string) (all []trumpet.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Topic == name && e.Op == trumpet.OpResult {
			all = append(all, e)
		}
	}
	return all
}

func TestALiveQueryIsRunByOneWorkerForAll(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	one, r1, _ := start(t, url, "w1", nil)
	two, r2, _ := start(t, url, "w2", nil)
	defineLive(t, conn, "notes", jobsByNote, "min_interval => '1 s'")
	r1.waitResult(t, "notes", "run first", is(`[]`))
	first := r1.results("notes")[0]
	if !first.Stale || first.Data != nil || first.Error != "not run yet" {
		t.Errorf("the definition is told as %+v", first)
	}
	// A burst: it runs at once, and once more for what came meanwhile.
	for i := range 50 {
		pgtest.Exec(t, conn, "insert into jobs (id, note) values ($1, 'a')", i)
	}
	want := `[{"note":"a","jobs":50}]`
	e1, e2 := r1.waitResult(t, "notes", want, is(want)), r2.waitResult(t, "notes", want, is(want))
	if e1.ID != e2.ID || e1.AsOf >= e1.ID.Position || e1.AsOf == 0 {
		t.Errorf("the result is %v as of %d, and %v", e1.ID, e1.AsOf, e2.ID)
	}
	pgtest.Exec(t, conn, "update jobs set version = version + 1 where id = 1") // the result stays the same
	waitUntil(t, "a run whose result is the same", func() bool { return one.Status().LiveUnchanged+two.Status().LiveUnchanged == 1 })
	a, b := one.Status(), two.Status()
	if a.LiveRunning == b.LiveRunning || min(a.LiveRuns, b.LiveRuns) != 0 {
		t.Errorf("both run it: %+v, %+v", a, b)
	}
	if runs := a.LiveRuns + b.LiveRuns; runs > 4 {
		t.Errorf("%d runs for a definition, a burst of 50 and one change; want at most 4", runs)
	}
	pgtest.Exec(t, conn, "select trumpet.drop_live_query('notes')")
	r2.waitResult(t, "notes", "dropped", func(e trumpet.Event) bool { return e.Error == "dropped" })
	waitUntil(t, "nobody to have the duty", func() bool { return !one.Status().LiveRunning && !two.Status().LiveRunning })
}

// A worker that starts gives its clients the newest results, wherever the log begins by now.
func TestNewestResultsAreRetained(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	defineLive(t, conn, "total", "select count(*) as n from jobs")
	_, r, stop := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)")
	published := r.waitResult(t, "total", "1", is(`[{"n":1}]`))
	stop()
	_, r, _ = start(t, url, "w2", nil)
	r.check(t)
	if len(r.retained) != 1 || r.retained[0].ID != published.ID || string(r.retained[0].Data) != `[{"n":1}]` || r.retained[0].AsOf != published.AsOf {
		t.Errorf("retained %+v, want %+v", r.retained, published)
	}
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '1')") // the head's row in the log is never pruned
	r.waitData(t, "1")
	waitUntil(t, "the log to be pruned", func() bool {
		pgtest.Exec(t, conn, "select trumpet.prune('0', 1 << 40)")
		var n int
		if err := conn.QueryRow(t.Context(), "select count(*) from trumpet.record").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
	_, r, _ = start(t, url, "w3", nil)
	if len(r.retained) != 1 || !r.retained[0].ID.IsZero() || string(r.retained[0].Data) != `[{"n":1}]` {
		t.Errorf("retained %+v", r.retained)
	}
}

const liveSession = "application_name like 'trumpet live %' and datname = current_database()"

func TestTheLiveDutyMoves(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	defineLive(t, conn, "total", "select count(*) as n from jobs")
	one, _, stop := start(t, url, "w1", nil)
	two, r, _ := start(t, url, "w2", nil)
	n := 0
	change := func() string {
		n++
		pgtest.Exec(t, conn, "insert into jobs (id) values ($1)", n)
		return fmt.Sprintf(`[{"n":%d}]`, n)
	}
	want := change()
	r.waitResult(t, "total", want, is(want))
	for range 3 { // its session dies: it, or the other, takes the duty again
		pgtest.Exec(t, conn, "select pg_terminate_backend(pid) from pg_stat_activity where "+liveSession)
		want = change()
		r.waitResult(t, "total", want, is(want))
	}
	stop() // the other one goes on, if it was not that already
	want = change()
	r.waitResult(t, "total", want, is(want))
	waitUntil(t, "who is left to have the duty", func() bool { return !one.Status().LiveRunning && two.Status().LiveRunning })
}

// A worker that is frozen while it has the duty: its session is ended after some seconds.
func TestAFrozenHolderOfTheLiveDutyIsReplaced(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	defineLive(t, conn, "total", "select count(*) as n from jobs")
	frozen := pgtest.Connect(t, url)
	pgtest.Exec(t, frozen, "select pg_advisory_lock(1953656176, 6)")
	bus, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)")
	began := time.Now()
	waitUntil(t, "the worker to have the duty", func() bool {
		pgtest.Exec(t, conn, "update jobs set version = version + 1")
		return bus.Status().LiveRunning
	})
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	r.waitResult(t, "total", "1", is(`[{"n":1}]`))
	if err := frozen.Ping(t.Context()); err == nil {
		t.Error("the session that did nothing is still there")
	}
}

func TestAFailingLiveQueryIsStaleAndHarmless(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	defineLive(t, conn, "ratio", "select 100 / count(*) as n from jobs", "min_interval => '50 ms'")
	defineLive(t, conn, "slow", "select count(*) as n from jobs, pg_sleep(case when (select count(*) from jobs) = 2 then 60 else 0 end)", "timeout => '200 ms'")
	defineLive(t, conn, "total", "select count(*) as n from jobs")
	stale := r.waitResult(t, "ratio", "stale", func(e trumpet.Event) bool { return e.Stale && e.Error != "not run yet" })
	if stale.Error != "failed with SQLSTATE 22012" || stale.Data != nil || stale.AsOf != 0 {
		t.Errorf("told as %+v", stale)
	}
	r.waitResult(t, "slow", "0", is(`[{"n":0}]`))
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)")
	r.waitResult(t, "ratio", "100", is(`[{"n":100}]`))
	before := r.waitResult(t, "slow", "1", is(`[{"n":1}]`))
	pgtest.Exec(t, conn, "insert into jobs (id) values (2)")
	stale = r.waitResult(t, "slow", "stale", func(e trumpet.Event) bool { return e.Stale && e.Error != "not run yet" })
	if stale.Error != "took longer than 200ms" || string(stale.Data) != `[{"n":1}]` || stale.AsOf != before.AsOf {
		t.Errorf("told as %+v", stale)
	}
	r.waitResult(t, "total", "2, while another one fails", is(`[{"n":2}]`))
	waitUntil(t, "it to be tried again", func() bool { return bus.Status().LiveFailures >= 4 })
	told := 0
	for _, e := range r.results("slow") {
		if e.Stale && e.Error != "not run yet" {
			told++
		}
	}
	if told != 1 {
		t.Errorf("that it is stale was told %d times", told)
	}
	var detail string
	if err := conn.QueryRow(t.Context(), "select error from trumpet.live_queries where name = 'slow' and stale").Scan(&detail); err != nil || detail != "took longer than its timeout of 200ms" {
		t.Errorf("operators see %q, %v", detail, err)
	}
	pgtest.Exec(t, conn, "delete from jobs where id = 2")
	r.waitResult(t, "slow", "good again", func(e trumpet.Event) bool { return e.AsOf > stale.AsOf && is(`[{"n":1}]`)(e) })
}

// The result is what the log's changes up to as_of make of the table: no more, no less.
func TestAResultIsTrueOfItsPosition(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", nil)
	defineLive(t, conn, "ids", "select id, version from jobs order by id", "min_interval => '50 ms'")
	writers := make(chan error)
	for w := range 3 {
		go func() {
			writers <- func() error {
				conn, err := pgx.Connect(t.Context(), url)
				if err != nil {
					return err
				}
				defer conn.Close(t.Context())
				for i := range 300 {
					statement := fmt.Sprintf("begin; insert into jobs (id) values (%d); savepoint s; delete from jobs where id %% 7 = 3; rollback to s; "+
						"update jobs set version = version + 1 where id = (select id from jobs where id %% 3 = %d order by id limit 1); %s", 3*i+w, w, []string{"commit", "commit", "rollback"}[i%3])
					if _, err := conn.Exec(t.Context(), statement); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range 3 {
		if err := <-writers; err != nil {
			t.Fatal(err)
		}
	}
	var final string
	if err := conn.QueryRow(t.Context(), "select json_agg(row_to_json(q)) from (select id, version from jobs order by id) q").Scan(&final); err != nil {
		t.Fatal(err)
	}
	compact := strings.NewReplacer(" ", "", "\n", "")
	r.waitResult(t, "ids", "as the table is", func(e trumpet.Event) bool { return compact.Replace(string(e.Data)) == compact.Replace(final) })
	r.mu.Lock()
	defer r.mu.Unlock()
	checked := 0
	for _, result := range r.events {
		if result.Op != trumpet.OpResult || result.Stale {
			continue
		}
		rows := newReplay()
		for _, e := range r.events {
			if e.Topic == "jobs" && e.ID.Position <= result.AsOf {
				rows.apply(t, e)
			}
		}
		if got := rows.json("id", "version"); got != compact.Replace(string(result.Data)) {
			t.Fatalf("as of %d the result is\n%s\nbut the log makes\n%s", result.AsOf, result.Data, got)
		}
		checked++
	}
	if checked < 3 {
		t.Errorf("only %d results", checked)
	}
}

func TestLiveQueryRunsAsItsRole(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", nil)
	role := "reports_" + strings.ReplaceAll(databaseName(t, conn), "-", "_")
	pgtest.Exec(t, conn, "create role "+role+"; create table secrets (id int)")
	t.Cleanup(func() {
		// Roles belong to the server, which other tests share.
		if _, err := conn.Exec(context.Background(), "drop owned by "+role+"; drop role "+role); err != nil {
			t.Error(err)
		}
	})
	define := fmt.Sprintf("select trumpet.live_query('total', 'select count(*) as n, current_user = ''%s'' as own, current_setting(''transaction_read_only'') as ro from public.jobs;', '{public.jobs}', run_as => '%s')", role, role)
	if _, err := conn.Exec(t.Context(), define); err == nil || !strings.Contains(err.Error(), "permission denied for table jobs") {
		t.Errorf("without rights: %v", err)
	}
	pgtest.Exec(t, conn, "grant select on jobs to "+role)
	pgtest.Exec(t, conn, define)
	r.waitResult(t, "total", "run as its role", is(`[{"n":0,"own":true,"ro":"on"}]`))
	pgtest.Exec(t, conn, "revoke select on jobs from "+role)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)")
	stale := r.waitResult(t, "total", "refused", func(e trumpet.Event) bool { return e.Stale && e.Error != "not run yet" })
	if stale.Error != "its role may not read what it reads" {
		t.Errorf("told as %q", stale.Error)
	}
}

func databaseName(t *testing.T, conn *pgx.Conn) (name string) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "select current_database()").Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLiveRunsAtMostOnceInAnInterval(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	defineLive(t, conn, "total", "select count(*) as n from jobs", "min_interval => '400 ms'")
	r.waitResult(t, "total", "run first", is(`[{"n":0}]`))
	began, runs := time.Now(), bus.Status().LiveRuns
	n := 0
	for time.Since(began) < 2*time.Second {
		n++
		pgtest.Exec(t, conn, "insert into jobs (id) values ($1)", n)
	}
	want := fmt.Sprintf(`[{"n":%d}]`, n)
	r.waitResult(t, "total", want, is(want))
	took := time.Since(began)
	if ran, most := bus.Status().LiveRuns-runs, int64(took/(400*time.Millisecond))+2; ran > most {
		t.Errorf("%d runs in %v for %d changes, want at most %d", ran, took, n, most)
	}
}

// Somebody who replaces a definition and does not commit keeps others from nothing.
func TestAnOpenDefinitionBlocksNothing(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", nil)
	defineLive(t, conn, "held", "select count(*) as n from jobs")
	defineLive(t, conn, "total", "select count(*) as n from jobs")
	pgtest.Exec(t, conn, "select trumpet.live_aggregate('kept', 'jobs')")
	for _, name := range []string{"held", "total"} {
		r.waitResult(t, name, "0", is(`[{"n":0}]`))
	}
	r.waitResult(t, "kept", "0", is(`[{"count":0}]`))
	other := pgtest.Connect(t, url)
	pgtest.Exec(t, other, "begin; select trumpet.drop_live_query('held'), trumpet.drop_live_query('kept')")
	for n := 1; n < 4; n++ {
		pgtest.Exec(t, conn, "insert into jobs (id) values ($1)", n)
		want := fmt.Sprintf(`[{"n":%d}]`, n)
		r.waitResult(t, "total", want, is(want))
	}
	pgtest.Exec(t, other, "rollback")
	r.waitResult(t, "held", "3", is(`[{"n":3}]`))
	r.waitResult(t, "kept", "3", is(`[{"count":3}]`))
}
