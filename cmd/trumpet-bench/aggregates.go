package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// aggregates is what measureAggregates measures.
type aggregates struct {
	rows   []int
	rate   int
	length time.Duration
	poll   time.Duration
}

// bytesPerRow is what a row and its entry in the primary key's index take, rounded up.
const bytesPerRow = 110

const (
	// One change is a new payment; the table is bigger by one then, and each way sees it as a
	// count that has grown.
	paymentChange = `insert into payments (id, status, paid_on, amount) values (-$1::bigint, 'paid', date '2026-01-01' + ($1 % 30)::int, 10 + $1 % 90)`
	paymentQuery  = `select status, count(*), sum(amount) as sum_amount from payments group by status order by status`
	paymentPoll   = `select sum(n)::bigint, sum(total)::float8 from (select status, count(*) n, sum(amount) total from payments group by status) g`
)

// trial is one way to have the numbers of one table.
type trial struct {
	rows  int
	way   string
	first time.Duration // until the first value was there
	cost  cost
	made  int // commits
	delay []time.Duration
}

// measureAggregates takes what one change costs, by the table's size: with nothing that looks at
// it, with an aggregate that is kept up from the changes, with the query run again, and with one
// client that asks.
func measureAggregates(ctx context.Context, binary string, a aggregates) (err error) {
	b, err := startBench(ctx, binary, statementLog)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	// The workers' sessions have it too, so that the same query means the same cost everywhere.
	if _, err := b.conn.Exec(ctx, "alter database bench set work_mem = '32MB'"); err != nil {
		return err
	}
	var (
		table []trial
		alone = make(map[int]time.Duration) // one run of the query
	)
	for _, rows := range a.rows {
		free, err := freeBytes(b.server.Dir())
		if err != nil {
			return err
		}
		if need := int64(rows) * bytesPerRow * 3 / 2; free < need {
			return fmt.Errorf("%d rows need %s on the disk of %s, and %s are free", rows, mebibytes(need), b.server.Dir(), mebibytes(free))
		}
		if err := b.fillPayments(ctx, rows); err != nil {
			return fmt.Errorf("fill %d rows: %w", rows, err)
		}
		if alone[rows], err = b.timeQuery(ctx, paymentQuery); err != nil {
			return err
		}
		trials, err := b.trials(ctx, a, rows)
		if err != nil {
			return fmt.Errorf("%d rows: %w", rows, err)
		}
		table = append(table, trials...)
	}
	var version string
	if err := b.conn.QueryRow(ctx, "show server_version").Scan(&version); err != nil {
		return err
	}
	a.print(version, table, alone)
	return nil
}

// fillPayments makes the table anew. It is unlogged: filling 100 million rows through the WAL
// would say nothing about changes.
func (b *bench) fillPayments(ctx context.Context, rows int) error {
	for _, statement := range []string{
		"drop table if exists payments",
		"create unlogged table payments (id bigint, status text not null, paid_on date not null, amount numeric(10,2) not null)",
		fmt.Sprintf(`insert into payments select g, (array['open', 'paid', 'late', 'void', 'refunded'])[1 + g %% 5],
			date '2026-01-01' + (g %% 30)::int, 10 + g %% 400 from generate_series(1, %d) g`, rows),
		"alter table payments add primary key (id)",
		"vacuum analyze payments",
		"select trumpet.watch('payments')",
	} {
		if _, err := b.conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// timeQuery is the median of three runs.
func (b *bench) timeQuery(ctx context.Context, query string) (time.Duration, error) {
	var took []time.Duration
	for range 3 {
		begun := time.Now()
		if _, err := b.conn.Exec(ctx, query); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begun))
	}
	return quantiles(took, 0.5)[0], nil
}

func (b *bench) trials(ctx context.Context, a aggregates, rows int) (trials []trial, err error) {
	workers, err := b.startWorkers(ctx)
	defer func() { err = errors.Join(err, stopAll(workers)) }()
	if err != nil {
		return nil, err
	}
	w := &writer{conn: b.conn, statement: paymentChange}
	observer := gather(ctx, workers[:1], 1, "payments")
	defer observer.leave()
	if err := observer.ready(ctx, false); err != nil {
		return nil, err
	}
	nothing := trial{rows: rows, way: "nothing looks"}
	if _, err := b.attempt(ctx, &nothing, a, w, workers, nil); err != nil {
		return nil, err
	}
	trials = append(trials, nothing)

	// Each has a topic of its own: what is dropped is still there for whoever comes right after.
	for _, way := range []struct{ name, topic, define string }{
		{"aggregate, kept up", "kept_up", `select trumpet.live_aggregate('kept_up', 'payments', '{count,sum(amount)}', group_by => '{status}', min_interval => '250ms')`},
		{"live query, run again", "run_again", "select trumpet.live_query('run_again', $$" + paymentQuery + "$$, depends_on => '{payments}', min_interval => '250ms', timeout => '120s')"},
	} {
		t := trial{rows: rows, way: way.name}
		clients := gather(ctx, workers, 2, way.topic)
		err := func() error {
			defer clients.leave()
			begun := time.Now()
			if _, err := b.conn.Exec(ctx, way.define); err != nil {
				return err
			}
			if err := clients.ready(ctx, true); err != nil {
				return err
			}
			t.first = time.Since(begun)
			observer.forget()
			commits, err := b.attempt(ctx, &t, a, w, workers, clients)
			if err != nil {
				return err
			}
			if err := locate(ctx, observer, "payments", commits); err != nil {
				return err
			}
			if err := clients.reached(ctx, commits[len(commits)-1].place); err != nil {
				return err
			}
			t.delay = quantiles(clients.delays(commits), 0.5, 0.99)
			if err := b.verify(ctx, clients.watchers[0].newest(way.topic), paymentQuery); err != nil {
				return err
			}
			_, err = b.conn.Exec(ctx, "select trumpet.drop_live_query($1)", way.topic)
			return err
		}()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way.name, err)
		}
		trials = append(trials, t)
	}

	asking := trial{rows: rows, way: fmt.Sprintf("one client asks every %v", a.poll)}
	p, err := b.poll(ctx, "bench", 1, 1, a.poll, paymentPoll)
	if err != nil {
		return nil, err
	}
	before := int64(rows)
	commits, err := b.attempt(ctx, &asking, a, w, workers, nil)
	if err == nil {
		err = sleep(ctx, 2*a.poll)
	}
	asking.delay = quantiles(p.delays(commits, before), 0.5, 0.99)
	if err := errors.Join(err, p.stop()); err != nil {
		return nil, err
	}
	return append(trials, asking), nil
}

// verify compares a client's newest value with what the query says.
func (b *bench) verify(ctx context.Context, message, query string) error {
	var result struct{ Data json.RawMessage }
	if err := json.Unmarshal([]byte(message), &result); err != nil {
		return err
	}
	var same bool
	row := b.conn.QueryRow(ctx, "select coalesce(jsonb_agg(to_jsonb(q)), '[]') = $1::text::jsonb from ("+query+") q", string(result.Data))
	if err := row.Scan(&same); err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("the client has %s, and the query says something else", result.Data)
	}
	return nil
}

// attempt changes for as long as a measurement takes.
func (b *bench) attempt(ctx context.Context, t *trial, a aggregates, w *writer, workers []*worker, clients *crowd) ([]commit, error) {
	if err := sleep(ctx, 2*time.Second); err != nil { // what was begun before has ended
		return nil, err
	}
	if clients != nil {
		clients.forget()
	}
	m, err := b.mark(workers)
	if err != nil {
		return nil, err
	}
	commits, err := w.run(ctx, a.rate, a.length)
	if err != nil {
		return nil, err
	}
	t.made = len(commits)
	t.cost, err = b.since(m)
	return commits, err
}

func (a aggregates) print(version string, table []trial, alone map[int]time.Duration) {
	fmt.Printf("PostgreSQL %s, two workers; %d commits/s for %v on an unlogged table, `%s`.\n\n", version, a.rate, a.length, paymentQuery)
	fmt.Println("| rows | | one run of the query | first value after | reads of the table/min | Postgres, CPU ms/change | workers, CPU ms/change | commit to client, p50 | p99 |")
	fmt.Println("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, t := range table {
		cells := []string{thousands(float64(t.rows)), t.way, alone[t.rows].Round(100 * time.Microsecond).String(), "",
			fmt.Sprintf("%.0f", t.cost.perMinute(t.cost.onTables)),
			fmt.Sprintf("%.2f", perChange(t.cost.pgCPU, t.made)), fmt.Sprintf("%.2f", perChange(t.cost.wCPU, t.made)), "", ""}
		if t.first > 0 {
			cells[3] = t.first.Round(time.Millisecond).String()
		}
		if t.delay != nil {
			cells[7], cells[8] = t.delay[0].Round(time.Millisecond).String(), t.delay[1].Round(time.Millisecond).String()
		}
		fmt.Println("| " + strings.Join(cells, " | ") + " |")
	}
}

func perChange(cpu time.Duration, changes int) float64 {
	return float64(cpu.Microseconds()) / 1000 / float64(max(1, changes))
}
