package integration

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// bouncer is a private PgBouncer in front of a test's Postgres.
type bouncer struct {
	program string
	target  *url.URL
	dir     string
	port    int
	cmd     *exec.Cmd
	ended   chan struct{}
	log     *logBuffer
}

// bouncerPool is how many server connections PgBouncer has: more than one, or a shared one is easily found.
const bouncerPool = 12

// startBouncer starts PgBouncer in a pool mode; it ends with the test.
func startBouncer(t *testing.T, database, mode string) *bouncer {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer"
	}
	mustHave(t, exists(program), "pgbouncer", "apt-get install pgbouncer")
	target, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "trumpet-pgbouncer-") // not below t.TempDir, which its user could not reach
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &bouncer{program: program, target: target, dir: dir}
	t.Cleanup(func() {
		b.stop(t)
		if t.Failed() && b.log != nil {
			t.Logf("log of pgbouncer:\n%s", b.log.tail(5000))
		}
	})
	for range 5 { // another process may take the port between our looking and its own
		b.port = freePort(t)
		if b.start(t, mode) {
			return b
		}
	}
	t.Fatalf("pgbouncer does not start:\n%s", b.log)
	return nil
}

// configure writes the configuration and returns its file.
func (b *bouncer) configure(t *testing.T, mode string) string {
	t.Helper()
	password, _ := b.target.User.Password()
	config := fmt.Sprintf(`[databases]
app = host=%s port=%s dbname=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = %s
default_pool_size = %d
query_wait_timeout = 10
ignore_startup_parameters = extra_float_digits
`, b.target.Hostname(), b.target.Port(), strings.TrimPrefix(b.target.Path, "/"), b.target.User.Username(), password, b.port, mode, bouncerPool)
	file := filepath.Join(b.dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// start runs the process and reports whether it answers.
func (b *bouncer) start(t *testing.T, mode string) bool {
	t.Helper()
	file := b.configure(t, mode)
	args := []string{file}
	if os.Geteuid() == 0 { // it refuses to run as root
		for _, path := range []string{b.dir, file} {
			if err := os.Chown(path, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
		args = []string{"-u", "nobody", file}
	}
	b.log = &logBuffer{}
	b.cmd = exec.Command(b.program, args...)
	b.cmd.Dir, b.cmd.Stdout, b.cmd.Stderr = b.dir, b.log, b.log
	if err := startProcess(b.cmd); err != nil {
		t.Fatalf("start pgbouncer: %v", err)
	}
	ended := make(chan struct{})
	b.ended = ended
	go func() {
		_ = b.cmd.Wait() // its log says how it ended
		close(ended)
	}()
	up := false
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll(ctx, t, "pgbouncer", func() bool {
		select {
		case <-ended:
			return true
		default:
		}
		conn, err := pgx.Connect(ctx, b.url())
		if err != nil {
			return false
		}
		_ = conn.Close(ctx)
		up = true
		return true
	})
	return up
}

// nobody is the user of that name on Linux.
const nobody = 65534

// stop ends the process, and with it all connections through it.
func (b *bouncer) stop(t *testing.T) {
	t.Helper()
	if b.ended == nil {
		return
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // at once
	select {
	case <-b.ended:
	case <-time.After(patience):
		t.Error("pgbouncer did not end on SIGTERM")
		_ = b.cmd.Process.Kill()
		<-b.ended
	}
}

// restart ends all connections, and goes on in another mode on the same port.
func (b *bouncer) restart(t *testing.T, mode string) {
	t.Helper()
	b.stop(t)
	if !b.start(t, mode) {
		t.Fatalf("pgbouncer does not start again:\n%s", b.log)
	}
}

// reload goes on in another mode with the server sessions as they are.
func (b *bouncer) reload(t *testing.T, mode string) {
	t.Helper()
	b.configure(t, mode)
	if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

func (b *bouncer) url() string {
	return (&url.URL{
		Scheme: "postgres", User: b.target.User, Host: "127.0.0.1:" + strconv.Itoa(b.port), Path: "/app", RawQuery: "sslmode=disable",
	}).String()
}

// leftBehind is what the sessions that the pooler shares have and nobody but Trumpet would have put there: channels that they
// listen to, settings, advisory locks. It fails unless the session that Trumpet had is among those looked at.
func (b *bouncer) leftBehind(t *testing.T, direct *pgx.Conn) []string {
	t.Helper()
	ctx := t.Context()
	pids := map[int]bool{}
	var left []string
	for range bouncerPool {
		conn, err := pgx.Connect(ctx, b.url())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(ctx)) // all at once: each has a server session of its own
		rows, err := conn.Query(ctx, "begin", pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		rows.Close()
		var pid int
		var found []string
		// What PgBouncer itself sets is left out.
		if err := conn.QueryRow(ctx, `select pg_backend_pid(), array(select 'listens to ' || c from pg_listening_channels() c
			union all select 'has set ' || name from pg_settings where source = 'session'
			   and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings', 'IntervalStyle', 'search_path')
			union all select 'holds advisory lock ' || objid from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())`,
			pgx.QueryExecModeSimpleProtocol).Scan(&pid, &found); err != nil {
			t.Fatal(err)
		}
		pids[pid] = true
		left = append(left, found...)
	}
	// Sessions that were not looked at would be those of a worker that goes on.
	others := queryOne[int](t, direct, `select count(*)::int from pg_stat_activity
		where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()`)
	if len(pids) < others {
		t.Errorf("%d of %d pooled sessions were looked at", len(pids), others)
	}
	return left
}

// Through a pooler that shares sessions no command begins: each says what stands in the way and what to do, and leaves
// nothing in the sessions that applications use.
func TestPoolerThatSharesSessionsIsRefused(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"transaction", "statement"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			database, direct := newDatabaseBy(t, "triggers")
			b := startBouncer(t, database, mode)
			if code, out := runCommand(t, b.url(), "doctor"); code != 1 || !strings.HasPrefix(out, "ERROR  pooler: ") {
				t.Errorf("doctor ended with %d: %s", code, out)
			}
			for _, args := range [][]string{
				{"serve", "--listen", "127.0.0.1:0", "--log-format", "json"}, {"tail"}, {"broadcast", "dispatch", "1"},
			} {
				code, out := runCommand(t, b.url(), args...)
				if code != 1 {
					t.Errorf("%s ended with %d", args[0], code)
				}
				last := lastLineOf(out)
				for _, want := range []string{"pooler", "pool_mode = session", "Postgres itself"} {
					if !strings.Contains(last, want) {
						t.Errorf("%s does not speak of %q: %s", args[0], want, out)
					}
				}
			}
			if mode == "statement" {
				b.reload(t, "transaction") // or nobody could look
				poll(t.Context(), t, "transactions to be let through", func() bool {
					conn, err := pgx.Connect(t.Context(), b.url())
					if err != nil {
						return false
					}
					defer conn.Close(t.Context())
					_, err = conn.Exec(t.Context(), "begin", pgx.QueryExecModeSimpleProtocol)
					return err == nil
				})
			}
			if left := b.leftBehind(t, direct); len(left) > 0 {
				t.Errorf("pooled sessions are left with: %s", strings.Join(left, "; "))
			}
		})
	}
}

// runCommand runs a command of trumpet to its end and returns its exit code and all that it wrote.
func runCommand(t *testing.T, database string, args ...string) (code int, out string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(cleanEnvironment(), "DATABASE_URL="+database, "GORACE=exitcode=66 halt_on_error=1")
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("trumpet %s: %v", args[0], err)
	}
	return cmd.ProcessState.ExitCode(), string(text)
}

func lastLineOf(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// Through a pooler in session mode all works, and its restart is one of the reconnects.
func TestPoolerInSessionMode(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	seed := seed(t)
	database, conn := newDatabaseBy(t, "triggers")
	b := startBouncer(t, database, "session")
	w := startWorker(t, b.url(), "w1")
	clients := []*client{
		dial(t, w, dialling{transport: webSocket, topics: topics}), dial(t, w, dialling{transport: sse, topics: topics}),
	}
	var begin string
	for _, c := range clients {
		begin = c.ready(t).ID
	}
	writing := startWriters(t, database, seed, 2, 0)
	for _, c := range clients {
		c.waitEvents(t, 20)
	}
	b.restart(t, "session")
	for _, c := range clients {
		c.control(t, "stale")
		c.control(t, "live")
		c.waitEvents(t, len(c.events())+20)
	}
	writing.stop()
	truth := finish(t, conn, clients[0])
	for _, c := range clients {
		c.waitEnd(t)
		c.check(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
	}
	writing.check(t, clients[0].name, clients[0].events())
}

// The pooler is given another mode while a worker runs. The worker is not ready and says why, its clients stay and know that
// they are stale; once the mode is what it was, they miss nothing.
func TestPoolerSwitchedWhileAWorkerRuns(t *testing.T) {
	t.Parallel()
	database, conn := newDatabaseBy(t, "triggers")
	b := startBouncer(t, database, "session")
	w := startWorker(t, b.url(), "w1")
	c := dial(t, w, dialling{transport: webSocket, topics: "dispatch"})
	begin := c.ready(t).ID
	broadcast(t, conn, "1")
	c.waitData(t, "1")

	b.stop(t)
	c.control(t, "stale")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// What is seen first is that nobody is there: that must not hide what comes next.
	poll(ctx, t, "a line in the log about the pooler's absence", func() bool {
		return strings.Contains(w.log.String(), "cannot listen to Postgres")
	})
	if !b.start(t, "transaction") {
		t.Fatalf("pgbouncer does not start again:\n%s", b.log)
	}
	poll(ctx, t, "a line in the log that names the pooler", func() bool {
		for line := range strings.Lines(w.log.String()) {
			if strings.Contains(line, "cannot listen") && strings.Contains(line, "pooler") && (strings.Contains(line, `"WARN"`) || strings.Contains(line, `"ERROR"`)) {
				return true
			}
		}
		return false
	})
	if code, body, _ := ask(t, "GET", w.url("/readyz"), "", ""); code != 503 {
		t.Errorf("/readyz says %d %s while nothing is heard", code, body)
	}
	broadcast(t, conn, "2")
	if left := b.leftBehind(t, conn); len(left) > 0 {
		t.Errorf("pooled sessions are left with: %s", strings.Join(left, "; "))
	}

	b.restart(t, "session")
	c.control(t, "live")
	c.waitData(t, "2")
	truth := finish(t, conn, c)
	c.check(t)
	checkEvents(t, c.name, "dispatch", truth, begin, c.events())
}
