// Command trumpet-bench measures Trumpet beside what it is compared with, in one run, and prints
// Markdown tables. scripts/bench builds and runs it.
//
//	writes   what watching a table costs its writers: pgbench on an unwatched table, on one with a bare
//	         pg_notify trigger, and on a watched one, with workers attached
//	latency  how long after a commit a WebSocket client has the event
//	resume   what it takes that many clients come back at once, far behind
//
// It starts a private Postgres and real workers, and waits for all of them at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
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

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say what to measure: writes, latency or resume")
	}
	flags := flag.NewFlagSet("trumpet-bench "+args[0], flag.ContinueOnError)
	binary := flags.String("trumpet", "bin/trumpet", "the trumpet binary")
	rounds := flags.Int("rounds", 3, "measure everything this often, in turn, and take medians")
	seconds := flags.Int("seconds", 3, "how long one measurement takes")
	switch args[0] {
	case "writes":
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return measureWrites(ctx, *binary, *rounds, *seconds)
	case "latency":
		clients := flags.Int("clients", 100, "WebSocket clients")
		rate := flags.Int("rate", 100, "commits a second")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return measureLatency(ctx, *binary, *clients, *rate, *seconds)
	case "resume":
		clients := flags.Int("clients", 2000, "clients that come back at once, half of them WebSockets")
		events := flags.Int("events", 50_000, "how many events they have missed")
		settle := flags.Duration("settle", 45*time.Second, "how long after they have left the worker's memory is read")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return measureResume(ctx, *binary, *clients, *events, *settle)
	}
	return fmt.Errorf("%q is not measured: writes, latency and resume are", args[0])
}

// bench is a private server with the schema and the tables.
type bench struct {
	server *postgres.Server
	binary string
	conn   *pgx.Conn
}

func newBench(ctx context.Context, binary string) (*bench, error) {
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("no binary to measure: %w (scripts/bench builds it)", err)
	}
	// As Postgres comes, fsync included: this is about writers.
	server, err := postgres.Start(ctx, postgres.Options{Settings: map[string]string{
		"max_connections": "100", "shared_buffers": "256MB", "max_wal_size": "4GB", "autovacuum_naptime": "1h",
	}})
	if err != nil {
		return nil, err
	}
	b := &bench{server: server, binary: binary}
	if err := b.prepare(ctx); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bench) prepare(ctx context.Context) error {
	if err := b.server.CreateDatabase(ctx, "bench"); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, b.server.URL("bench"))
	if err != nil {
		return err
	}
	b.conn = conn
	if _, err := sql.Up(ctx, conn); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `
		create table unwatched (id int primary key, status text, price numeric(10,2), title text, updated timestamptz);
		insert into unwatched select g, 'open', g, 'Boiler service at number ' || g, now() from generate_series(1, 100000) g;
		create table notifying (like unwatched including all); insert into notifying select * from unwatched;
		create table watched (like unwatched including all); insert into watched select * from unwatched;
		create function notify_row() returns trigger language plpgsql as
			$$ begin perform pg_notify('bare', row_to_json(new)::text); return null; end $$;
		create trigger notify_row after update on notifying for each row execute function notify_row();
		select trumpet.watch('watched')`)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "vacuum analyze")
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

// worker is a running trumpet serve.
type worker struct {
	cmd     *exec.Cmd
	address string
}

// startWorker starts a worker that also hears the channel of the bare trigger, and waits until
// it is ready.
func (b *bench) startWorker(ctx context.Context, port int) (*worker, error) {
	w := &worker{address: fmt.Sprintf("127.0.0.1:%d", port)}
	w.cmd = exec.Command(b.binary, "serve", "--listen", w.address, "--channels", "bare", "--drain", "0s", "--log-level", "error")
	w.cmd.Env = append(os.Environ(), "DATABASE_URL="+b.server.URL("bench"))
	w.cmd.Stderr = os.Stderr
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	if err := waitReady(ctx, w.address); err != nil {
		return nil, errors.Join(err, w.stop())
	}
	return w, nil
}

func (w *worker) stop() error {
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return w.cmd.Wait()
}
