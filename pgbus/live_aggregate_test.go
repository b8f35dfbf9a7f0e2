package pgbus_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

const salesTable = `create table sales (id int primary key, status text collate "C", region int, amount numeric(12, 2), free numeric, qty int,
	at timestamptz, weight float8); create index on sales (status, at)`

// salesAggregates are live aggregates and the queries that say the same.
var salesAggregates = map[string]struct{ define, query string }{
	"all": {
		`'{count,count(qty),sum(qty),avg(qty),sum(amount),avg(amount),min(qty),max(amount),max(weight)}'`,
		`select count(*) as count, count(qty) as count_qty, sum(qty) as sum_qty, avg(qty) as avg_qty, sum(amount) as sum_amount, avg(amount) as avg_amount,
			min(qty) as min_qty, max(amount) as max_amount, max(weight) as max_weight from sales`,
	},
	"by_status": {
		`'{count as n,sum(amount) as revenue,min(at),max(at)}', group_by => '{status,region}'`,
		`select status, region, count(*) as n, sum(amount) as revenue, min(at) as min_at, max(at) as max_at from sales group by 1, 2 order by 1, 2`,
	},
	"filtered": {
		`'{count,sum(free),avg(free),max(qty)}', group_by => '{region}', filter => 'status=in.(open,done)&qty=gt.3'`,
		`select region, count(*) as count, trim_scale(sum(free)) as sum_free, trim_scale(avg(free)) as avg_free, max(qty) as max_qty
			from sales where status in ('open', 'done') and qty > 3 group by 1 order by 1`,
	},
	"prices": {
		`'{count}', group_by => '{free}', filter => 'free=not.is.null'`,
		`select trim_scale(free) as free, count(*) as count from sales where free is not null group by 1 order by 1`,
	},
}

func defineSales(t *testing.T, conn *pgx.Conn, more string) {
	t.Helper()
	pgtest.Exec(t, conn, salesTable)
	pgtest.Exec(t, conn, "select trumpet.watch('sales', max_rows => 20)")
	for name, a := range salesAggregates {
		pgtest.Exec(t, conn, fmt.Sprintf("select trumpet.live_aggregate('%s', 'sales', %s, min_interval => '50 ms'%s)", name, a.define, more))
	}
}

// queried is what a query gives, in a live query's form.
func queried(t *testing.T, conn *pgx.Conn, query string) string {
	t.Helper()
	var rows string
	if err := conn.QueryRow(t.Context(), `select coalesce(string_agg(row_to_json(q)::text, ','), '') from (`+query+`) q`).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	return "[" + rows + "]"
}

// waitAggregates waits until every aggregate is what its query says, in every digit.
func waitAggregates(t *testing.T, conn *pgx.Conn, r *recorder) {
	t.Helper()
	for name, a := range salesAggregates {
		want, last := queried(t, conn, a.query), ""
		deadline := time.After(patience)
		for {
			r.mu.Lock()
			changed := r.changed
			for _, e := range append(append([]trumpet.Event{}, r.retained...), r.events...) {
				if e.Topic == name && e.Op == trumpet.OpResult && !e.Stale {
					last = string(e.Data)
				}
			}
			r.mu.Unlock()
			if last == want {
				break
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("%s is\n%s\nwant\n%s", name, last, want)
			}
		}
	}
}

// randomSale makes one random change of sales.
func randomSale(rng *rand.Rand) string {
	value := func(f func() string) string {
		if rng.IntN(8) == 0 {
			return "null"
		}
		return f()
	}
	status := func() string { return []string{"'open'", "'done'", "'é \"quoted\"'"}[rng.IntN(3)] }
	region := func() string { return strconv.Itoa(rng.IntN(3)) }
	amount := func() string { return fmt.Sprintf("%d.%02d", rng.IntN(2000)-500, rng.IntN(100)) }
	free := func() string {
		return []string{"1", "1.0", "1.50", "-0.0001", "100000.5", "0", "7.25"}[rng.IntN(7)]
	}
	qty := func() string { return strconv.Itoa(rng.IntN(12)) }
	at := func() string { return fmt.Sprintf("'2026-11-01'::timestamptz + interval '%d hours'", rng.IntN(500)) }
	weight := func() string { return []string{"0.1", "1e300", "'-infinity'", "2.5"}[rng.IntN(4)] }
	row := func(id string) string {
		return strings.Join([]string{id, value(status), value(region), value(amount), value(free), value(qty), value(at), value(weight)}, ", ")
	}
	id := strconv.Itoa(rng.IntN(60))
	switch n := rng.IntN(100); {
	case n < 40:
		return "insert into sales values (" + row(id) + ") on conflict (id) do nothing"
	case n < 60:
		return "insert into sales values (" + row(id) + ") on conflict (id) do update set status = excluded.status, region = excluded.region, amount = excluded.amount, free = excluded.free, qty = excluded.qty, at = excluded.at"
	case n < 75:
		return "update sales set qty = qty + 1, amount = amount / 3 where id % 7 = " + strconv.Itoa(rng.IntN(7))
	case n < 88:
		return "delete from sales where id % 9 = " + strconv.Itoa(rng.IntN(9))
	case n < 92:
		return "delete from sales where at = (select max(at) from sales where status = 'open')"
	case n < 95:
		return "update sales set region = null, free = free * 10 where id < " + id
	case n < 98:
		return "insert into sales select g, 'done', 1, g, g, g, '2026-11-20', 1 from generate_series(1000, 1040) g on conflict do nothing" // bulk
	case n < 99:
		return "delete from sales where id >= 1000" // bulk
	default:
		return "truncate sales"
	}
}

// randomTransaction is a transaction that may abort, or take back a savepoint.
func randomTransaction(rng *rand.Rand) string {
	var b strings.Builder
	b.WriteString("begin; ")
	for range 1 + rng.IntN(4) {
		if rng.IntN(4) == 0 {
			b.WriteString("savepoint s; " + randomSale(rng) + "; rollback to s; ")
		}
		b.WriteString(randomSale(rng) + "; ")
	}
	return b.String() + []string{"commit", "commit", "commit", "rollback"}[rng.IntN(4)]
}

// Whatever is done to the table, the aggregates are what the query says, in every digit: with aborts,
// savepoints, bulk statements, TRUNCATE, and changes of the worker that keeps them.
func TestLiveAggregatesAreExact(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("TRUMPET_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TRUMPET_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	url := pgtest.Migrated(t)
	conn := pgtest.Connect(t, url)
	defineSales(t, conn, "")
	pgtest.Exec(t, conn, "insert into sales select g, 'open', g % 4, g * 1.1, g, g, now(), 1 from generate_series(1, 30) g")
	check := func(c *pgbus.Config) { c.LiveCheck = 300 * time.Millisecond }
	one, r, stop := start(t, url, "w1", check)
	two, _, _ := start(t, url, "w2", check)
	for round := range 8 {
		done := make(chan error)
		for w := range 3 {
			own := rand.New(rand.NewPCG(rng.Uint64(), uint64(w)))
			go func() {
				done <- func() error {
					conn, err := pgx.Connect(t.Context(), url)
					if err != nil {
						return err
					}
					defer conn.Close(t.Context())
					for range 40 {
						// A deadlock, or a key that two insert at once, is an abort like any other.
						if _, err := conn.Exec(t.Context(), randomTransaction(own)); err != nil && conn.PgConn().TxStatus() != 'I' {
							if _, err := conn.Exec(t.Context(), "rollback"); err != nil {
								return err
							}
						}
					}
					return nil
				}()
			}()
		}
		if round%3 == 1 {
			pgtest.Exec(t, conn, "select pg_terminate_backend(pid) from pg_stat_activity where "+liveSession)
		}
		for range 3 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		waitAggregates(t, conn, r)
		if round == 4 {
			stop()
			if one.Status().LiveRepairs > 0 {
				t.Errorf("repaired: %+v", one.Status())
			}
			one, r, stop = start(t, url, "w3", check)
		}
	}
	for _, status := range []pgbus.Status{one.Status(), two.Status()} {
		t.Logf("runs %d, published %d, unchanged %d, recomputes %d, failures %d", status.LiveRuns, status.LivePublished, status.LiveUnchanged, status.LiveRecomputes, status.LiveFailures)
		if status.LiveRepairs > 0 {
			t.Errorf("%d repairs", status.LiveRepairs)
		}
	}
}

// A change of one row reads nothing from the table, and each result is true of its position.
func TestAnAggregateFollowsTheLog(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "select trumpet.live_aggregate('sums', 'jobs', '{count,sum(version) as sum,max(id)}', min_interval => '50 ms')")
	r.waitResult(t, "sums", "read first", is(`[{"count":0,"sum":null,"max_id":null}]`))
	for i := range 200 {
		pgtest.Exec(t, conn, "insert into jobs (id, version) values ($1, $1 % 13)", i)
		if i%5 == 4 {
			pgtest.Exec(t, conn, "update jobs set version = version + 1 where id = $1", i/2)
			pgtest.Exec(t, conn, "delete from jobs where id = $1", i/3)
		}
	}
	want := queried(t, conn, `select count(*) as count, sum(version) as sum, max(id) as max_id from jobs`)
	r.waitResult(t, "sums", want, is(want))
	if status := bus.Status(); status.LiveRuns != 1 || status.LiveRecomputes != 0 {
		t.Errorf("%d reads of the table, want 1", status.LiveRuns)
	}
	checked := 0
	for _, result := range r.results("sums") {
		if result.Stale {
			continue
		}
		rows := newReplay()
		r.mu.Lock()
		for _, e := range r.events {
			if e.Topic == "jobs" && e.ID.Position <= result.AsOf {
				rows.apply(t, e)
			}
		}
		r.mu.Unlock()
		sum, last := 0, -1
		for _, row := range rows {
			version, _ := strconv.Atoi(string(row["version"]))
			id, _ := strconv.Atoi(string(row["id"]))
			sum, last = sum+version, max(last, id)
		}
		want := fmt.Sprintf(`[{"count":%d,"sum":%d,"max_id":%d}]`, len(rows), sum, last)
		if len(rows) == 0 {
			want = `[{"count":0,"sum":null,"max_id":null}]`
		}
		if string(result.Data) != want {
			t.Fatalf("as of %d it is %s, but the log makes %s", result.AsOf, result.Data, want)
		}
		checked++
	}
	if checked < 3 {
		t.Errorf("only %d results", checked)
	}
}

// What nobody told the log of is found by comparing, and repaired.
func TestAnAggregateThatDiffersIsRepaired(t *testing.T) {
	t.Parallel()
	url := pgtest.Migrated(t)
	conn := pgtest.Connect(t, url)
	defineSales(t, conn, "")
	bus, r, _ := start(t, url, "w1", func(c *pgbus.Config) { c.LiveCheck = 300 * time.Millisecond })
	waitAggregates(t, conn, r)
	pgtest.Exec(t, conn, "begin; set local session_replication_role = replica; insert into sales values (1, 'open', 1, 2, 3, 4, now(), 1); commit")
	pgtest.Exec(t, conn, "insert into sales values (2, 'open', 1, 2, 3, 4, now(), 1)")
	waitAggregates(t, conn, r)
	if n := bus.Status().LiveRepairs; n != int64(len(salesAggregates)) {
		t.Errorf("%d repairs, want one of each", n)
	}
}

// A column that an aggregate needs goes, and comes back.
func TestAnAggregateWhoseColumnGoesIsStale(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "select trumpet.live_aggregate('sums', 'jobs', '{sum(version)}', min_interval => '50 ms')")
	pgtest.Exec(t, conn, "insert into jobs values (1, 5)")
	r.waitResult(t, "sums", "5", is(`[{"sum_version":5}]`))
	pgtest.Exec(t, conn, "alter table jobs rename version to edition")
	pgtest.Exec(t, conn, "insert into jobs values (2, 6)")
	stale := r.waitResult(t, "sums", "stale", func(e trumpet.Event) bool { return e.Stale && e.Error != "not run yet" })
	if !strings.Contains(stale.Error, `no column "version"`) && !strings.Contains(stale.Error, "42703") || string(stale.Data) != `[{"sum_version":5}]` {
		t.Errorf("told as %+v, %s", stale, stale.Data)
	}
	pgtest.Exec(t, conn, "alter table jobs rename edition to version")
	pgtest.Exec(t, conn, "insert into jobs values (3, 7)")
	r.waitResult(t, "sums", "18", is(`[{"sum_version":18}]`))
}

// Events tell of all rows, so a role that does not see all cannot be who reads them.
func TestAnAggregateIsNotReadThroughRowSecurity(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", nil)
	role := "clerk_" + databaseName(t, conn)
	pgtest.Exec(t, conn, "create role "+role+"; grant select on jobs to "+role+"; alter table jobs enable row level security; create policy few on jobs using (id < 5)")
	t.Cleanup(func() {
		// Roles belong to the server, which other tests share.
		if _, err := conn.Exec(context.Background(), "drop owned by "+role+"; drop role "+role); err != nil {
			t.Error(err)
		}
	})
	pgtest.Exec(t, conn, "select trumpet.live_aggregate('n', 'jobs', run_as => '"+role+"')")
	stale := r.waitResult(t, "n", "refused", func(e trumpet.Event) bool { return e.Stale && e.Error != "not run yet" })
	if !strings.Contains(stale.Error, "row-level security hides rows of jobs") {
		t.Errorf("told as %q", stale.Error)
	}
	pgtest.Exec(t, conn, "alter table jobs disable row level security; insert into jobs (id) values (7)")
	r.waitResult(t, "n", "1", is(`[{"count":1}]`))
}
