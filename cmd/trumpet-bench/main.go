// Command trumpet-bench measures Trumpet beside what it is compared with, in one run, and prints
// Markdown tables. scripts/bench builds and runs it.
//
//	writes      what watching a table costs its writers: pgbench on an unwatched table, on one with a bare
//	            pg_notify trigger, on a watched one, and on one watched by the WAL, with workers attached
//	latency     how long after a commit clients have the event
//	resume      what it takes that many clients come back at once, far behind
//	dashboards  what dashboards cost Postgres, over live queries and by polling
//	aggregates  what one change costs, by the table's size
//	ingest      how many commits workers take in and give to clients
//	transaction what one huge transaction on a watched table costs, and those who wait behind it
//	fanout      how fast one worker gives messages to many clients, beside a bare loop of writes
//
// It starts a private Postgres and real workers, and waits for all of them at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/postgres"
	"github.com/trumpet-realtime/trumpet/sql"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "trumpet-bench:", err)
		os.Exit(1)
	}
}

// measurement is what one word on the command line measures.
type measurement struct {
	name, what string
	// flags defines its flags and returns what to run when they are read.
	flags func(f *flag.FlagSet) func(ctx context.Context, binary string) error
}

var measurements = []measurement{
	{"writes", "what watching a table costs its writers, by triggers and by the WAL", writesFlags},
	{"latency", "how long after a commit clients have the event, over both transports", func(f *flag.FlagSet) func(context.Context, string) error {
		clients := f.Int("clients", 100, "connections; one transport after the other")
		rate := f.Int("rate", 100, "commits a second")
		seconds := f.Int("seconds", 3, "how long it commits")
		by := captureFlag(f)
		return func(ctx context.Context, binary string) error {
			return measureLatency(ctx, binary, *by, *clients, *rate, *seconds)
		}
	}},
	{"resume", "what it takes that many clients come back at once, far behind", func(f *flag.FlagSet) func(context.Context, string) error {
		clients := f.Int("clients", 2000, "clients that come back at once, half of them WebSockets")
		events := f.Int("events", 50_000, "how many events they have missed")
		settle := f.Duration("settle", 45*time.Second, "how long after they have left the worker's memory is read")
		return func(ctx context.Context, binary string) error {
			return measureResume(ctx, binary, *clients, *events, *settle)
		}
	}},
	{"dashboards", "what dashboards cost Postgres: live queries beside polling, at rest and under change", dashboardFlags},
	{"aggregates", "what one change costs by the table's size: an aggregate kept up, a query run again, polling", aggregateFlags},
	{"ingest", "how many commits workers sequence, hear, decode and give to clients, by the number of workers", ingestFlags},
	{"transaction", "what one huge transaction on a watched table costs, and how long others' events wait behind it", transactionFlags},
	{"fanout", "how fast one worker gives messages to many clients, beside a bare loop of writes", fanoutFlags},
}

func writesFlags(f *flag.FlagSet) func(context.Context, string) error {
	rounds := f.Int("rounds", 3, "measure everything this often, in turn, and take medians")
	seconds := f.Int("seconds", 3, "how long one measurement takes; there are five for each round, number of writers and of workers, and delay")
	workers, writers, delays := counts{0, 1, 2}, numbers{1, 16}, counts{0, 1000}
	f.Var(&workers, "workers", "workers attached, `n,n,…`; with none the WAL is not read, and that is left out")
	f.Var(&writers, "writers", "pgbench clients, `n,n,…`")
	f.Var(&delays, "delay", "µs of commit_delay, which stands in for a disk whose flush takes so long, `n,n,…`")
	full := f.Bool("full", false, "give the table whose WAL is read REPLICA IDENTITY FULL, which events need to show old values")
	return func(ctx context.Context, binary string) error {
		if err := errors.Join(bounded("rounds", *rounds, 100), bounded("seconds", *seconds, 60),
			bounded("writers", slices.Max(writers), 64), bounded("workers", max(1, slices.Max(workers)), 16), bounded("delay", max(1, slices.Max(delays)), 100_000)); err != nil {
			return err
		}
		return measureWrites(ctx, binary, writes{rounds: *rounds, seconds: *seconds, workers: workers, writers: writers, delays: delays, full: *full})
	}
}

// captureFlag says how the table is watched.
func captureFlag(f *flag.FlagSet) *capture {
	by := byTriggers
	f.Var(&by, "capture", "watch the table by `triggers or wal`")
	return &by
}

func transactionFlags(f *flag.FlagSet) func(context.Context, string) error {
	rows := f.Int("rows", 1_000_000, "rows that the transaction inserts, more than 1000")
	rounds := f.Int("rounds", 3, "measure everything this often, in turn, and take medians")
	interval := f.Duration("interval", 50*time.Millisecond, "how often another topic gets an event")
	rest := f.Duration("rest", 3*time.Second, "how long that is measured before the transaction, and goes on after it")
	return func(ctx context.Context, binary string) error {
		if err := errors.Join(bounded("rows", *rows, 10_000_000), bounded("rounds", *rounds, 100), bounded("interval", int(*interval/time.Millisecond), 10_000),
			bounded("rest", int(*rest/time.Millisecond), 60_000)); err != nil {
			return err
		}
		if *rows <= 1000 {
			return fmt.Errorf("--rows %d: more than 1000, so that one bulk event stands for all", *rows)
		}
		return measureTransaction(ctx, binary, transaction{rows: *rows, rounds: *rounds, interval: *interval, rest: *rest})
	}
}

// fanout says how the fan-out is measured.
type fanout struct {
	clients, stalled, topics, size, rounds int
	rates                                  []int
	window                                 int64
	length, settle                         time.Duration
	centrifuge, fastapi                    string // the peers' programs
	svg                                    string
}

func fanoutFlags(f *flag.FlagSet) func(context.Context, string) error {
	clients := f.Int("clients", 1000, "connections; one transport after the other")
	topics := f.Int("topics", 1, "clients follow one of so many topics each; more than one leaves the peers out")
	stalled := f.Int("stalled", 0, "compare Trumpet with itself where so many of the clients stop reading; leaves everything else out")
	size := f.Int("size", 200, "bytes of each message's data, at least 80")
	rounds := f.Int("rounds", 5, "measure everything this often, in turn, and take medians")
	seconds := f.Int("seconds", 3, "how long one measurement takes; there are two for each target and round, and one for each rate")
	rates := numbers{20}
	f.Var(&rates, "rate", "messages a second in the open loop, `n,n,…`")
	window := f.Int("window", 256, "flat out: how many messages the clients may be behind")
	settle := f.Duration("settle", 2*time.Second, "how long before memory is read")
	centrifuge := f.String("centrifuge", "", "measure the centrifuge library too: the `binary` of cmd/trumpet-bench/peers")
	fastapi := f.String("fastapi", "", "measure FastAPI with Redis too: the `script` of cmd/trumpet-bench/peers")
	svg := f.String("svg", "", "draw the deliveries a second into this `file`")
	return func(ctx context.Context, _ string) error {
		if err := errors.Join(bounded("clients", *clients, 15_000), bounded("rounds", *rounds, 100), bounded("seconds", *seconds, 60),
			bounded("rate", slices.Max(rates), 10_000), bounded("window", *window, 100_000), bounded("size", *size, 100_000), bounded("topics", *topics, *clients)); err != nil {
			return err
		}
		switch {
		case *clients%*topics != 0:
			return fmt.Errorf("--topics %d: %d clients do not divide by it", *topics, *clients)
		case *stalled < 0 || *stalled >= *clients || *stalled > 0 && *topics > 1:
			return fmt.Errorf("--stalled %d: fewer than the clients, and with one topic", *stalled)
		}
		if *topics > 1 {
			*centrifuge, *fastapi = "", ""
		}
		return measureFanout(ctx, fanout{
			clients: *clients, stalled: *stalled, topics: *topics, size: *size, rounds: *rounds, rates: rates, window: int64(*window),
			length: time.Duration(*seconds) * time.Second, settle: *settle, centrifuge: *centrifuge, fastapi: *fastapi, svg: *svg,
		})
	}
}

// ingest says how it is measured what workers take in.
type ingest struct {
	by                       capture
	workers                  numbers
	writers, clients, rounds int
	length                   time.Duration
}

func ingestFlags(f *flag.FlagSet) func(context.Context, string) error {
	workers := numbers{1, 2, 4, 8}
	f.Var(&workers, "workers", "workers on one Postgres, `n,n,…`")
	writers := f.Int("writers", 16, "pgbench clients, each with one-row updates as fast as it can")
	clients := f.Int("clients", 100, "WebSocket clients of one of the workers")
	rounds := f.Int("rounds", 3, "measure everything this often, in turn, and take medians")
	seconds := f.Int("seconds", 5, "how long the writers write")
	by := captureFlag(f)
	return func(ctx context.Context, binary string) error {
		if err := errors.Join(bounded("workers", slices.Max(workers), 16), bounded("writers", *writers, 64), bounded("clients", *clients, 10_000),
			bounded("rounds", *rounds, 100), bounded("seconds", *seconds, 60)); err != nil {
			return err
		}
		return measureIngest(ctx, binary, ingest{by: *by, workers: workers, writers: *writers, clients: *clients, rounds: *rounds, length: time.Duration(*seconds) * time.Second})
	}
}

func dashboardFlags(f *flag.FlagSet) func(context.Context, string) error {
	clients := numbers{1000}
	f.Var(&clients, "clients", "dashboards, half WebSocket and half SSE, on two workers; `n,n,…` measures each number")
	rate := f.Int("rate", 100, "commits a second while changing")
	seconds := f.Int("seconds", 30, "how long one measurement takes; there are four for each number of clients")
	interval := f.Duration("poll", 3*time.Second, "how often a polling client asks")
	connections := f.Int("connections", 10, "how many connections the polling clients share")
	invoices := f.Int("invoices", 100_000, "rows of the table that is summed up")
	svg := f.String("svg", "", "draw the queries a minute into this `file`")
	return func(ctx context.Context, binary string) error {
		if err := errors.Join(bounded("rate", *rate, 10_000), bounded("seconds", *seconds, 600), bounded("connections", *connections, 80),
			bounded("invoices", *invoices, 10_000_000), bounded("clients", slices.Max(clients), 10_000), bounded("poll", int(*interval/time.Millisecond), 600_000)); err != nil {
			return err
		}
		return measureDashboards(ctx, binary, dashboards{
			clients: clients, rate: *rate, length: time.Duration(*seconds) * time.Second,
			interval: *interval, connections: *connections, invoices: *invoices, svg: *svg,
		})
	}
}

func aggregateFlags(f *flag.FlagSet) func(context.Context, string) error {
	rows := numbers{1_000_000, 10_000_000}
	f.Var(&rows, "rows", "sizes of the table, `n,n,…`; 100000000 takes some 17 GB of disk while it is filled")
	rate := f.Int("rate", 20, "commits a second")
	seconds := f.Int("seconds", 20, "how long one measurement takes; there are four for each size")
	interval := f.Duration("poll", 3*time.Second, "how often the polling client asks")
	return func(ctx context.Context, binary string) error {
		if err := errors.Join(bounded("rate", *rate, 10_000), bounded("seconds", *seconds, 600),
			bounded("rows", slices.Max(rows), 100_000_000), bounded("poll", int(*interval/time.Millisecond), 600_000)); err != nil {
			return err
		}
		return measureAggregates(ctx, binary, aggregates{rows: rows, rate: *rate, length: time.Duration(*seconds) * time.Second, poll: *interval})
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "target" { // of fanout, which starts it
		return runTarget(ctx, args[1:])
	}
	if len(args) > 0 {
		for _, m := range measurements {
			if m.name != args[0] {
				continue
			}
			flags := flag.NewFlagSet(m.name, flag.ContinueOnError)
			flags.Usage = func() {
				fmt.Fprintf(flags.Output(), "Measures %s.\nPrints Markdown. Everything is private and on loopback.\n\nUsage: scripts/bench %s [flags]\n\n", m.what, m.name)
				flags.PrintDefaults()
			}
			binary := flags.String("trumpet", "bin/trumpet", "the trumpet `binary`")
			measure := m.flags(flags)
			if err := flags.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
				return nil
			} else if err != nil {
				return err
			}
			if flags.NArg() > 0 {
				return fmt.Errorf("%s takes no arguments, and got %q", m.name, flags.Args())
			}
			return measure(ctx, *binary)
		}
	}
	var help strings.Builder
	for _, m := range measurements {
		fmt.Fprintf(&help, "\n  %-11s %s", m.name, m.what)
	}
	if len(args) > 0 && (args[0] == "help" || strings.TrimLeft(args[0], "-") == "help" || args[0] == "-h") {
		fmt.Printf("Usage: scripts/bench measurement [flags]; measurement --help says more.\n%s\n", help.String())
		return nil
	}
	return fmt.Errorf("say what to measure:%s", help.String())
}

// bench is a private server with the schema and the tables.
type bench struct {
	server *postgres.Server
	binary string
	conn   *pgx.Conn
}

// benchName is the application_name of the bench's own sessions.
const benchName = "bench"

// newBench starts a server with the tables of writes, latency and resume, of which one is watched.
func newBench(ctx context.Context, binary string, by capture) (*bench, error) {
	b, err := startBench(ctx, binary, nil)
	if err != nil {
		return nil, err
	}
	if err := b.prepare(ctx, by); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// startBench starts a server, with these settings too, and a database with Trumpet's schema.
func startBench(ctx context.Context, binary string, settings map[string]string) (*bench, error) {
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("no binary to measure: %w (scripts/bench builds it)", err)
	}
	// As Postgres comes, fsync included: this is about writers. But for what the WAL capture needs, which is there for
	// all alike, so that only the capture makes the difference.
	all := map[string]string{
		"max_connections": "100", "shared_buffers": "256MB", "max_wal_size": "4GB", "autovacuum_naptime": "1h", "wal_level": "logical",
	}
	maps.Copy(all, settings)
	server, err := postgres.Start(ctx, postgres.Options{Settings: all})
	if err != nil {
		return nil, err
	}
	b := &bench{server: server, binary: binary}
	if err := b.open(ctx); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bench) open(ctx context.Context) (err error) {
	if err := b.server.CreateDatabase(ctx, "bench"); err != nil {
		return err
	}
	if b.conn, err = b.connect(ctx, "bench"); err != nil {
		return err
	}
	_, err = sql.Up(ctx, b.conn)
	return err
}

// connect opens one of the bench's own sessions, whose statements are not written to a log.
func (b *bench) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(b.server.URL(database))
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = benchName
	config.RuntimeParams["log_statement"] = "none"
	config.RuntimeParams["timezone"] = "UTC" // as events have it, which are compared with rows
	return pgx.ConnectConfig(ctx, config)
}

func (b *bench) prepare(ctx context.Context, by capture) error {
	_, err := b.conn.Exec(ctx, `
		create table unwatched (id int primary key, status text, price numeric(10,2), title text, updated timestamptz);
		insert into unwatched select g, 'open', g, 'Boiler service at number ' || g, now() from generate_series(1, 100000) g;
		create table notifying (like unwatched including all); insert into notifying select * from unwatched;
		create table watched (like unwatched including all); insert into watched select * from unwatched;
		create function notify_row() returns trigger language plpgsql as
			$$ begin perform pg_notify('bare', row_to_json(new)::text); return null; end $$;
		create trigger notify_row after update on notifying for each row execute function notify_row()`)
	if err != nil {
		return err
	}
	if err := b.watch(ctx, "watched", by); err != nil {
		return err
	}
	_, err = b.conn.Exec(ctx, "vacuum analyze")
	return err
}

func (b *bench) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if b.conn != nil {
		_ = b.conn.Close(ctx) // the server ends next
	}
	return b.server.Close(ctx)
}
