// Package demo is the application side of Trumpet's demo: the tables of an invented
// field-service company, its data, what its dashboard shows, and a simulator of its working day.
//
// It stands for the user's own application, and knows nothing of workers, hubs or sockets:
// what it does in Postgres is what reaches the pages. It starts no goroutine; Run blocks.
package demo

import (
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Tables are what the demo watches, in the order in which they depend on each other.
var Tables = []string{"customers", "jobs", "invoices"}

var (
	// Schema makes customers and jobs, Invoices the table of invoices.
	//
	//go:embed schema.sql
	Schema string
	//go:embed invoices.sql
	Invoices string
	// Live names what the dashboard shows. The tables must be watched.
	//
	//go:embed live.sql
	Live string
)

// initialJobs is how many jobs there are in the beginning, by status.
var initialJobs = []struct {
	status string
	count  int
}{{"done", 9}, {"on_site", 5}, {"en_route", 3}, {"scheduled", 13}, {"new", 8}, {"cancelled", 2}}

// App is the application.
type App struct {
	pool *pgxpool.Pool
	log  *slog.Logger

	mu      sync.Mutex
	paused  bool
	changed chan struct{} // one slot: look at paused
}

// New makes an App on a pool, which the caller closes. With paused, the simulator waits to be
// resumed.
func New(pool *pgxpool.Pool, logger *slog.Logger, paused bool) *App {
	return &App{pool: pool, log: logger, paused: paused, changed: make(chan struct{}, 1)}
}

// Install makes the tables with their rows, unless they are there: a database that was kept may be
// from before there were invoices.
func (a *App) Install(ctx context.Context) error {
	rng, now := rand.New(rand.NewPCG(60, 40)), time.Now()
	for _, part := range []struct {
		table, schema string
		fill          func(context.Context, pgx.Tx, *rand.Rand, time.Time) error
	}{{"jobs", Schema, fill}, {"invoices", Invoices, fillInvoices}} {
		err := pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
			var there bool
			if err := tx.QueryRow(ctx, "select to_regclass('public.' || $1) is not null", part.table).Scan(&there); err != nil || there {
				return err
			}
			if _, err := tx.Exec(ctx, part.schema); err != nil {
				return err
			}
			return part.fill(ctx, tx, rng, now)
		})
		if err != nil {
			return fmt.Errorf("install demo tables: %w", err)
		}
	}
	return nil
}

// InstallLive names the dashboard's queries and aggregates, once the tables are watched.
func (a *App) InstallLive(ctx context.Context) error {
	if _, err := a.pool.Exec(ctx, Live); err != nil {
		return fmt.Errorf("install live queries: %w", err)
	}
	return nil
}

// fill inserts the rows of the beginning. With the same numbers they are the same, but for
// their times.
func fill(ctx context.Context, tx pgx.Tx, rng *rand.Rand, now time.Time) error {
	for i, c := range customers {
		joined := now.AddDate(0, 0, -3*(len(customers)-i)).Truncate(time.Minute)
		_, err := tx.Exec(ctx, "insert into customers (name, city, phone, created_at) values ($1, $2, $3, $4)", c.name, c.city, c.phone, joined)
		if err != nil {
			return err
		}
	}
	callers, kindsLeft, free := rng.Perm(len(customers)), rng.Perm(len(kinds)), rng.Perm(len(technicians))
	next := func(wanted func(kind) bool) kind {
		for i, n := range kindsLeft {
			if wanted(kinds[n]) {
				kindsLeft = append(kindsLeft[:i], kindsLeft[i+1:]...)
				return kinds[n]
			}
		}
		return kinds[rng.IntN(len(kinds))]
	}
	anyKind := func(kind) bool { return true }
	n := 0
	for _, initial := range initialJobs {
		for range initial.count {
			caller := callers[n%len(callers)]
			n++
			j := job{customer: int64(caller + 1), address: address(customers[caller]), status: initial.status, updated: now}
			switch initial.status {
			case "on_site", "en_route": // a technician has one job at a time
				technician := technicians[free[0]]
				free = free[1:]
				j.of(next(func(k kind) bool { return k.trade == technician.trade }), rng)
				j.technician = &technician.name
			case "done", "scheduled":
				k := next(anyKind)
				j.of(k, rng)
				j.technician = anyTechnician(k.trade, rng)
			default:
				j.of(next(anyKind), rng)
			}
			switch initial.status {
			case "done":
				j.updated = now.Add(-time.Duration(20+rng.IntN(300)) * time.Minute)
				j.at(j.updated.Add(-time.Hour))
			case "on_site":
				j.updated = now.Add(-time.Duration(10+rng.IntN(60)) * time.Minute)
				j.at(j.updated)
			case "en_route":
				j.at(now.Add(time.Duration(rng.IntN(30)) * time.Minute))
			case "scheduled":
				j.at(slot(now, rng))
			}
			if err := j.insert(ctx, tx); err != nil {
				return err
			}
		}
	}
	return nil
}

// job is a row of jobs that is not there yet.
type job struct {
	customer   int64
	title      string
	address    string
	status     string
	technician *string
	priority   int
	price      int
	scheduled  *time.Time
	updated    time.Time
}

func (j *job) of(k kind, rng *rand.Rand) {
	j.title, j.priority, j.price = k.title, k.priority, k.price(rng)
}

func (j *job) at(t time.Time) {
	t = t.Truncate(15 * time.Minute)
	j.scheduled = &t
}

func (j *job) insert(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `insert into jobs (customer_id, title, address, status, technician, priority, price, scheduled_for, updated_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		j.customer, j.title, j.address, j.status, j.technician, j.priority, j.price, j.scheduled, j.updated)
	return err
}

func address(c customer) string { return c.street + ", " + c.city }

func anyTechnician(t trade, rng *rand.Rand) *string {
	for _, n := range rng.Perm(len(technicians)) {
		if technicians[n].trade == t {
			return &technicians[n].name
		}
	}
	panic("a trade without technicians")
}

// slot is when a visit may be: in the next hours, or in the next morning.
func slot(now time.Time, rng *rand.Rand) time.Time {
	at := now.Add(time.Duration(30+rng.IntN(300)) * time.Minute)
	if at.Hour() >= 7 && at.Hour() < 18 {
		return at
	}
	morning := time.Date(now.Year(), now.Month(), now.Day(), 8, 0, 0, 0, now.Location())
	if morning.Before(now) {
		morning = morning.AddDate(0, 0, 1)
	}
	return morning.Add(time.Duration(rng.IntN(9*60)) * time.Minute)
}
