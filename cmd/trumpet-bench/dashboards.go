package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/demo"
	"github.com/trumpet-realtime/trumpet/sql"
)

// dashboards is what measureDashboards measures.
type dashboards struct {
	clients     []int
	rate        int
	length      time.Duration // of each measurement
	interval    time.Duration // between a polling client's questions
	connections int           // of the polling clients' pool
	invoices    int
	svg         string
}

// liveTopics are the demo's.
var liveTopics = []string{"stats", "jobs_by_status", "revenue_by_day"}

// The change that is made again and again moves each of the three: an invoice of today, and the
// next job of those that are still new is done. One statement is one transaction.
const dashboardChange = `with billed as (insert into invoices (customer_id, amount) values (1 + $1::bigint % 1000, 10 + $1 % 90))
	update jobs set status = 'done' where id = (select id from jobs where status = 'new' order by id limit 1)`

// What each polling client asks: a COUNT(*) and a SUM over today's invoices, a COUNT(*) over jobs.
var dashboardPolls = []string{
	`select count(*), sum(amount)::float8 from invoices where issued_on = (now() at time zone 'UTC')::date`,
	`select count(*), null::float8 from jobs where status not in ('done', 'cancelled')`,
}

// situation is one row of the table.
type situation struct {
	clients    int
	way        string
	cost       cost
	delay      []time.Duration // median and 99th percentile; nil at rest
	deliveries int
}

// measureDashboards has many dashboards look at the same numbers, at rest and under change: over
// live queries, and by asking.
func measureDashboards(ctx context.Context, binary string, d dashboards) (err error) {
	if err := allowFiles(slices.Max(d.clients) + 200); err != nil {
		return err
	}
	b, err := startBench(ctx, binary, statementLog)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.server.CreateDatabase(ctx, "polled"); err != nil {
		return err
	}
	polled, err := b.connect(ctx, "polled")
	if err != nil {
		return err
	}
	defer polled.Close(context.WithoutCancel(ctx))
	for _, conn := range []*pgx.Conn{b.conn, polled} {
		if err := d.fill(ctx, conn); err != nil {
			return err
		}
	}
	if err := b.watchDemo(ctx); err != nil {
		return err
	}

	var table []situation
	for _, n := range d.clients {
		rows, err := b.liveDashboards(ctx, d, n)
		if err != nil {
			return fmt.Errorf("%d clients of live queries: %w", n, err)
		}
		table = append(table, rows...)
		if rows, err = b.pollingDashboards(ctx, d, polled, n); err != nil {
			return fmt.Errorf("%d polling clients: %w", n, err)
		}
		table = append(table, rows...)
	}
	var version string
	if err := b.conn.QueryRow(ctx, "show server_version").Scan(&version); err != nil {
		return err
	}
	d.print(version, table)
	if d.svg == "" {
		return nil
	}
	if err := os.WriteFile(d.svg, []byte(dashboardPlot(table)), 0o644); err != nil { //nolint:gosec // a picture
		return err
	}
	return nil
}

// fill makes the demo's tables, with as many rows as a busy year has.
func (d dashboards) fill(ctx context.Context, conn *pgx.Conn) error {
	jobs := max(5000, 2*int(d.length.Seconds()*float64(d.rate)))
	_, err := conn.Exec(ctx, demo.Schema+demo.Invoices+fmt.Sprintf(`;
		insert into customers (name, city, phone) select 'Customer ' || g, 'Leeds', '0113 496 0000' from generate_series(1, 1000) g;
		insert into jobs (customer_id, title, address) select 1 + g %% 1000, 'Annual boiler service', g || ' Mill Lane' from generate_series(1, %d) g;
		insert into invoices (job_id, customer_id, amount, issued_on)
			select g, 1 + g %% 1000, 50 + g %% 400, (now() at time zone 'UTC')::date - g %% 30 from generate_series(1, %d) g`, jobs, d.invoices))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "vacuum analyze")
	return err
}

// watchDemo does what the demo does.
func (b *bench) watchDemo(ctx context.Context) error {
	for _, table := range demo.Tables {
		if _, err := (sql.Watch{Table: table}).Apply(ctx, b.conn); err != nil {
			return err
		}
	}
	_, err := b.conn.Exec(ctx, demo.Live)
	return err
}

// startWorkers starts two.
func (b *bench) startWorkers(ctx context.Context) (workers []*worker, err error) {
	for range 2 {
		w, err := b.startWorker(ctx, "--max-connections-per-address", "0")
		if err != nil {
			return workers, err
		}
		workers = append(workers, w)
	}
	return workers, nil
}

func (b *bench) liveDashboards(ctx context.Context, d dashboards, n int) (rows []situation, err error) {
	if err := reopenJobs(ctx, b.conn); err != nil {
		return nil, err
	}
	workers, err := b.startWorkers(ctx)
	defer func() { err = errors.Join(err, stopAll(workers)) }()
	if err != nil {
		return nil, err
	}
	clients := gather(ctx, workers, n, liveTopics...)
	defer clients.leave()
	observer := gather(ctx, workers[:1], 1, "invoices")
	defer observer.leave()
	if err := errors.Join(clients.ready(ctx, true), observer.ready(ctx, false)); err != nil {
		return nil, err
	}
	if err := sleep(ctx, 2*time.Second); err != nil { // what the start began has ended
		return nil, err
	}
	clients.forget()

	rest, err := b.atRest(ctx, workers, d.length)
	if err != nil {
		return nil, err
	}
	rows = append(rows, situation{clients: n, way: "live, at rest", cost: rest})

	w := &writer{conn: b.conn, statement: dashboardChange}
	m, err := b.mark(workers)
	if err != nil {
		return nil, err
	}
	commits, err := w.run(ctx, d.rate, d.length)
	if err != nil {
		return nil, err
	}
	changing, err := b.since(m)
	if err != nil {
		return nil, err
	}
	if err := locate(ctx, observer, "invoices", commits); err != nil {
		return nil, err
	}
	if err := clients.reached(ctx, commits[len(commits)-1].place); err != nil {
		return nil, err
	}
	all := clients.delays(commits)
	if want := n * len(liveTopics) * len(commits); len(all) != want {
		return nil, fmt.Errorf("%d of %d times that a client's value took a commit in", len(all), want)
	}
	return append(rows, situation{clients: n, way: "live, changing", cost: changing, delay: quantiles(all, 0.5, 0.99), deliveries: len(all)}), nil
}

func (b *bench) pollingDashboards(ctx context.Context, d dashboards, conn *pgx.Conn, n int) (rows []situation, err error) {
	if err := reopenJobs(ctx, conn); err != nil {
		return nil, err
	}
	p, err := b.poll(ctx, "polled", n, d.connections, d.interval, dashboardPolls...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := sleep(ctx, d.interval); err != nil { // all have begun
		return nil, err
	}
	rest, err := b.atRest(ctx, nil, d.length)
	if err != nil {
		return nil, err
	}
	rows = append(rows, situation{clients: n, way: "polling, at rest", cost: rest})

	var before int64
	if err := conn.QueryRow(ctx, dashboardPolls[0]).Scan(&before, nil); err != nil {
		return nil, err
	}
	w := &writer{conn: conn, statement: dashboardChange}
	p.reset()
	m, err := b.mark(nil)
	if err != nil {
		return nil, err
	}
	commits, err := w.run(ctx, d.rate, d.length)
	if err != nil {
		return nil, err
	}
	changing, err := b.since(m)
	if err != nil {
		return nil, err
	}
	// The last commits' answers, too; a client that has fallen behind has none of them in time.
	if err := sleep(ctx, 2*d.interval); err != nil {
		return nil, err
	}
	all := p.delays(commits, before)
	return append(rows, situation{clients: n, way: "polling, changing", cost: changing, delay: quantiles(all, 0.5, 0.99), deliveries: len(all)}), nil
}

// reopenJobs gives the next measurement jobs to do.
func reopenJobs(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "update jobs set status = 'new' where status <> 'new'"); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, "vacuum analyze jobs")
	return err
}

func (d dashboards) print(version string, table []situation) {
	fmt.Printf("PostgreSQL %s, two workers, %d invoices; %v for each measurement, %d commits/s while changing; polling: two queries every %v through %d connections.\n\n",
		version, d.invoices, d.length, d.rate, d.interval, d.connections)
	fmt.Println("| dashboards | | queries/min on the tables | other statements/min of the workers | Postgres, CPU s/min | workers, CPU s/min | commit to client, p50 | p99 |")
	fmt.Println("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
	perMinute := func(c cost, cpu time.Duration) string { return fmt.Sprintf("%.1f", cpu.Seconds()/c.elapsed.Minutes()) }
	for _, s := range table {
		p50, p99 := "", ""
		if s.delay != nil {
			p50, p99 = s.delay[0].Round(time.Millisecond).String(), s.delay[1].Round(time.Millisecond).String()
		}
		own, cpu := fmt.Sprintf("%.0f", s.cost.perMinute(s.cost.own)), perMinute(s.cost, s.cost.wCPU)
		if strings.HasPrefix(s.way, "polling") {
			own, cpu = "", ""
		}
		fmt.Printf("| %d | %s | %.0f | %s | %s | %s | %s | %s |\n", s.clients, s.way,
			s.cost.perMinute(s.cost.onTables), own, perMinute(s.cost, s.cost.pgCPU), cpu, p50, p99)
	}
	fmt.Println("\nStatements on the tables for the live dashboards, by their first words:")
	fmt.Println()
	for _, s := range table {
		if strings.HasPrefix(s.way, "polling") {
			continue
		}
		for _, words := range slices.Sorted(maps.Keys(s.cost.statementsRun)) {
			fmt.Printf("- %d dashboards, %s: %d × `%s…`\n", s.clients, s.way, s.cost.statementsRun[words], words)
		}
	}
}
