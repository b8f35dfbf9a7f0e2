package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/trumpet-realtime/trumpet/internal/demo"
	"github.com/trumpet-realtime/trumpet/internal/postgres"
	"github.com/trumpet-realtime/trumpet/sql"
)

const (
	demoDatabase = "fieldservice"
	demoWorkers  = 2
	// demoDrain is short: nobody waits for a demo to end.
	demoDrain = 300 * time.Millisecond
	// demoOutage is how long Postgres stays away when it is killed: long enough to be seen.
	demoOutage = 3 * time.Second
	// demoStop bounds the stop of the demo's Postgres.
	demoStop = 5 * time.Second
)

type demoFlags struct {
	port        int
	keep        string
	noSimulator bool
	logs        logFlags
}

func newDemo(io streams) *cobra.Command {
	var f demoFlags
	command := &cobra.Command{
		Use:   "demo",
		Short: "Show it all: a private Postgres, two workers, boards that move",
		Long: `Show it all on this machine: a private Postgres that is gone afterwards, the tables of a
field-service company, two workers on two ports, and a simulator of the company's day.
Nothing else on the machine is touched. Ctrl-C ends it.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.port < 0 || f.port > 65535-demoWorkers+1 {
				return usageError{fmt.Errorf("--port %d: from 0 to %d", f.port, 65535-demoWorkers+1)}
			}
			return f.run(c.Context(), io)
		},
	}
	flags := command.Flags()
	flags.IntVarP(&f.port, "port", "p", 8766, "the first worker's port; the second has the next one; 0 lets the kernel choose")
	flags.StringVar(&f.keep, "keep", "", "keep the database in this `directory`, and go on with it the next time")
	flags.BoolVar(&f.noSimulator, "no-simulator", false, "begin with the simulator paused")
	f.logs.add(flags, "warn")
	withTwin(flags, "port", "keep")
	return command
}

func (f *demoFlags) run(ctx context.Context, io streams) error {
	logger := f.logs.logger(io.err)
	listeners, err := f.listen(ctx)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()

	fmt.Fprintln(io.out, "Starting a private Postgres …")
	// So that the WAL capture can be tried too.
	pg, err := postgres.Start(ctx, postgres.Options{Dir: f.keep, Logger: logger, Settings: map[string]string{"wal_level": "logical"}})
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), demoStop)
		defer cancel()
		if err := pg.Close(stopCtx); err != nil {
			logger.Warn("cannot stop the private postgres in good order", "error", err)
		}
	}()
	pool, app, workerURL, err := f.prepare(ctx, pg, logger)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer pool.Close()

	var places []demo.Worker
	for i, l := range listeners {
		places = append(places, demo.Worker{Name: fmt.Sprintf("w%d", i+1), URL: "http://" + l.Addr().String() + "/"})
	}
	var workers []*worker
	for i, l := range listeners {
		state, simulator := app.State(places[i].Name, places), app.Simulator()
		w, err := newWorker(workerConfig{
			database: workerURL, name: places[i].Name, listener: l, drain: demoDrain, retention: 24 * time.Hour,
			logger: logger.With("worker", places[i].Name),
			routes: map[string]http.Handler{"GET /demo/state": state, "POST /demo/simulator": simulator},
		})
		if err != nil {
			for _, w := range workers {
				w.close()
			}
			return err
		}
		workers = append(workers, w)
	}

	group, ctx := errgroup.WithContext(ctx)
	for _, w := range workers {
		group.Go(func() error { return w.run(ctx) })
	}
	group.Go(func() error { return app.Run(ctx) })
	group.Go(func() error { return keepUp(ctx, pg, logger) })
	group.Go(func() error {
		for _, w := range workers {
			if w.waitReady(ctx) != nil {
				return nil //nolint:nilerr // it stops before it was ready
			}
		}
		welcome(io.out, pg, places, f)
		return nil
	})
	err = group.Wait()
	if err == nil {
		fmt.Fprintln(io.out, "\nStopped.")
	}
	return err
}

// keepUp starts Postgres again when somebody has killed it, to see what happens.
func keepUp(ctx context.Context, pg *postgres.Server, logger *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-pg.Done():
		}
		logger.Warn("the private postgres has ended; it is started again in a moment", "after", demoOutage, "its_log", pg.Log())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(demoOutage):
		}
		if err := pg.Restart(ctx); err != nil {
			return interrupted(ctx, err)
		}
		logger.Warn("the private postgres is back")
	}
}

// interrupted is nil where Ctrl-C is why something failed.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// listen takes the workers' ports before anything else is begun.
func (f *demoFlags) listen(ctx context.Context) ([]net.Listener, error) {
	var listeners []net.Listener
	for i := range demoWorkers {
		port := f.port
		if port != 0 {
			port += i
		}
		l, err := listen(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, fmt.Errorf("%w; choose others with --port, or --port 0", err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// prepare makes the database, as somebody who begins with Trumpet would, and opens the
// application on it. The workers get a role of their own, with no more rights than they need.
func (f *demoFlags) prepare(ctx context.Context, pg *postgres.Server, logger *slog.Logger) (*pgxpool.Pool, *demo.App, string, error) {
	fail := func(err error) (*pgxpool.Pool, *demo.App, string, error) { return nil, nil, "", err }
	if err := createDatabase(ctx, pg); err != nil {
		return fail(err)
	}
	config, err := pgxpool.ParseConfig(pg.URL(demoDatabase))
	if err != nil {
		return fail(fmt.Errorf("read database URL: %w", err))
	}
	config.MaxConns = 4
	config.ConnConfig.RuntimeParams["application_name"] = "demo application"
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return fail(fmt.Errorf("open pool: %w", err))
	}
	app := demo.New(pool, logger, f.noSimulator)
	workerURL, err := prepareDatabase(ctx, pg, pool, app)
	if err != nil {
		pool.Close()
		return fail(err)
	}
	return pool, app, workerURL, nil
}

func createDatabase(ctx context.Context, pg *postgres.Server) error {
	conn, err := pgx.Connect(ctx, pg.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect to private postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var there bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", demoDatabase).Scan(&there); err != nil {
		return fmt.Errorf("look for database: %w", err)
	}
	if there {
		return nil
	}
	return pg.CreateDatabase(ctx, demoDatabase)
}

func prepareDatabase(ctx context.Context, pg *postgres.Server, pool *pgxpool.Pool, app *demo.App) (workerURL string, err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return "", fmt.Errorf("connect to private postgres: %w", err)
	}
	defer conn.Release()
	if _, err := sql.Up(ctx, conn.Conn()); err != nil {
		return "", err
	}
	if err := app.Install(ctx); err != nil {
		return "", err
	}
	for _, table := range demo.Tables {
		if _, err := (sql.Watch{Table: table}).Apply(ctx, conn); err != nil {
			return "", err
		}
	}
	u, err := url.Parse(pg.URL(demoDatabase))
	if err != nil {
		return "", fmt.Errorf("read database URL: %w", err)
	}
	password, _ := u.User.Password()
	const role = "trumpet_worker"
	// The password has letters and digits only.
	_, err = conn.Exec(ctx, `do $$ begin
		if not exists (select from pg_roles where rolname = '`+role+`') then create role `+role+` login; end if;
	end $$; alter role `+role+` replication password '`+password+`'`) // replication for the WAL capture
	if err != nil {
		return "", fmt.Errorf("create role for workers: %w", err)
	}
	if err := sql.GrantWorker(ctx, conn, role); err != nil {
		return "", err
	}
	// Snapshots and live queries read the tables themselves.
	if _, err := conn.Exec(ctx, "grant select on "+strings.Join(demo.Tables, ", ")+" to "+role); err != nil {
		return "", fmt.Errorf("grant tables to workers: %w", err)
	}
	if err := app.InstallLive(ctx); err != nil {
		return "", err
	}
	u.User = url.UserPassword(role, password)
	return u.String(), nil
}

// welcome says where everything is and what to try.
func welcome(w io.Writer, pg *postgres.Server, workers []demo.Worker, f *demoFlags) {
	first, second := workers[0].URL, workers[1].URL
	psql := "psql"
	if _, err := exec.LookPath(psql); err != nil {
		psql = filepath.Join(pg.Bindir(), psql)
	}
	data := "Its data is gone when you stop it; --keep DIR keeps it."
	if f.keep != "" {
		data = "Its data stays in " + pg.Dir() + "."
	}
	simulator := `Something changes every second or two. The board has a button that pauses it; so has curl:`
	if f.noSimulator {
		simulator = `The simulator is paused. The board has a button that resumes it; so has curl, with false:`
	}
	fmt.Fprintf(w, `
Trumpet %[1]s with two workers on a private PostgreSQL %[2]s.
%[3]s

  Board        %[4]s             on worker w1
               %[5]s             on worker w2: put both side by side
  Dashboard    %[4]sdashboard    its numbers come by themselves, also on w2
  Operators    %[4]sinspect

Change a row, and both boards move:

  %[6]s '%[7]s'

    insert into jobs (customer_id, title, address, priority)
      values (1, 'Water through the ceiling', '14 Portland Crescent, Leeds', 1);
    update jobs set status = 'on_site' where id = (select max(id) from jobs);

Tell everybody something, from the same psql:

    select trumpet.broadcast('dispatch', '{"message": "The kettle is on"}');
    notify dispatch, 'A raw NOTIFY: at once, without an id, not replayed';

Or over HTTP, sent to one worker and followed on the other:

  curl -N '%[5]sapi/stream?topics=jobs,dispatch'
  curl -H 'Content-Type: application/json' -d '{"message": "Hello from curl"}' %[4]sapi/dispatch/broadcast

%[8]s

  curl -H 'Content-Type: application/json' -d '{"paused": true}' %[4]sdemo/simulator

Kill Postgres: the boards go stale, it comes back, and nothing was missed:

  kill -9 $(head -n 1 %[9]s)

Ctrl-C stops all of it.
`, versionText(), pg.Version(), data, first, second, psql, pg.URL(demoDatabase), simulator, shellQuote(filepath.Join(pg.Dir(), "data", "postmaster.pid")))
}
