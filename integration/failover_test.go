package integration

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/internal/postgres"
)

// pair is a primary with a standby, and how clients connect to whichever of them takes writes.
type pair struct {
	primary, standby *postgres.Server
	url              string // both, the primary first
}

func startPair(t *testing.T) pair {
	t.Helper()
	primary, url := pgtest.StartMigrated(t, nil)
	prepare(t, capture, url, pgtest.Connect(t, url))
	standby, err := primary.Standby(t.Context(), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := standby.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return pair{primary, standby, bothHosts(t, primary, standby)}
}

// bothHosts is a URL with two servers. The password is the same.
func bothHosts(t *testing.T, first, second *postgres.Server) string {
	t.Helper()
	u, err := url.Parse(first.URL("app"))
	if err != nil {
		t.Fatal(err)
	}
	u.Host = fmt.Sprintf("127.0.0.1:%d,127.0.0.1:%d", first.Port(), second.Port())
	u.RawQuery += "&target_session_attrs=read-write"
	return u.String()
}

// waitStandby waits until the standby has all that the primary has.
func (p pair) waitStandby(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	target := queryOne[string](t, conn, "select pg_current_wal_lsn()::text")
	poll(t.Context(), t, "the standby to have everything", func() bool {
		return queryOne[bool](t, conn, "select coalesce(bool_or(replay_lsn >= $1::text::pg_lsn), false) from pg_stat_replication", target)
	})
}

// promote makes the standby the primary, and returns a connection to it.
func (p pair) promote(t *testing.T) *pgx.Conn {
	t.Helper()
	if err := p.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	return pgtest.Connect(t, p.standby.URL("app"))
}

// Fail-over, under load, to a standby that has everything that anybody saw: the log goes on, and
// nobody is told anything else.
func TestFailOverLosesNothing(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	p := startPair(t)
	conn := pgtest.Connect(t, p.primary.URL("app"))
	// From here on a commit waits for the standby.
	pgtest.Exec(t, conn, "alter system set synchronous_standby_names = '*'")
	pgtest.Exec(t, conn, "select pg_reload_conf()")
	poll(t.Context(), t, "a synchronous standby", func() bool {
		return queryOne[int](t, conn, "select count(*)::int from pg_stat_replication where sync_state = 'sync'") == 1
	})
	workers := []*worker{startWorker(t, p.url, "w1"), startWorker(t, p.url, "w2")}
	clients, begin := dialSixEach(t, workers, topics)
	stop := scribble(t, p.url)
	for _, c := range clients {
		c.waitEvents(t, 50)
	}
	if err := p.primary.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	conn = p.promote(t)
	promoted := time.Now()
	t.Logf("the standby took over %v after the primary was killed", promoted.Sub(killed).Round(time.Millisecond))
	for _, c := range clients {
		c.control(t, "live")
	}
	keep(t, "live again after the standby had taken over", promoted, liveWithin)
	for _, c := range clients {
		c.waitEvents(t, len(c.events())+20)
	}
	stop()
	truth := finish(t, conn, clients[0])
	for _, c := range clients {
		c.waitEnd(t)
		c.check(t)
		c.unbroken(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
	}
	t.Logf("%d events", len(truth))
}

// reader is a client of one topic, on one worker.
type reader struct {
	*client
	topic     string
	transport transport
	worker    *worker
	begin     string
	kept      string // up to where it has what was not lost
	table     view   // of its topic, as of begin; nil for dispatch
}

// Fail-over to a standby that lacks what clients have seen already. Those are told, and nobody else.
// Then the old primary comes back, with the lost events and more: nobody hears of them.
func TestFailOverLosesATail(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	conn := pgtest.Connect(t, p.primary.URL("app"))
	workers := []*worker{startWorker(t, p.url, "w1"), startWorker(t, p.url, "w2")}
	var readers []*reader
	for _, w := range workers {
		for _, transport := range transports {
			for _, topic := range []string{"jobs", "customers", "dispatch"} {
				r := &reader{topic: topic, transport: transport, worker: w}
				r.client = dial(t, w, dialling{transport: transport, topics: topic})
				r.begin = r.ready(t).ID
				if topic != "dispatch" {
					r.table = selectView(t, conn, topic)
				}
				readers = append(readers, r)
			}
		}
	}
	write := func(conn *pgx.Conn, word string) {
		pgtest.Exec(t, conn, "insert into jobs (title) select $1 || n from generate_series(1, 3) n", word)
		pgtest.Exec(t, conn, "update jobs set title = $1 where id = 5", word)
		pgtest.Exec(t, conn, "insert into customers (name) values ($1)", word)
		broadcast(t, conn, quoted("%s", word))
	}
	write(conn, "kept")
	for _, r := range readers {
		r.waitEvents(t, map[string]int{"jobs": 4, "customers": 1, "dispatch": 1}[r.topic])
	}
	kept := readLog(t, conn, 0)
	keptID := kept[len(kept)-1].id
	for _, r := range readers {
		r.kept = keptID
	}
	p.waitStandby(t, conn)
	if err := p.standby.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		pgtest.Exec(t, conn, "insert into jobs (title) values ($1)", fmt.Sprintf("lost %d", n))
	}
	for _, r := range readers {
		if r.topic == "jobs" {
			r.waitEvents(t, 8)
		}
	}
	lost := readers[0].events()[4:]
	lostIDs := []string{lost[0].ID, lost[3].ID}
	if err := p.primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn = p.promote(t)
	promoted := time.Now()

	// A standby has no replication slot, unless it synchronizes them: by the WAL another one is made, which its
	// topics are told of behind keptID, and who comes late begins behind that.
	isKept := func(id string) bool {
		return id == keptID || readsWAL(capture) && mustParse(t, id).Compare(mustParse(t, keptID)) > 0
	}
	for _, r := range readers {
		_, n := r.controlAfter(t, 0, "ready")
		if r.topic == "jobs" {
			var reset message
			reset, n = r.controlAfter(t, n, "reset")
			r.kept = reset.ID
			if reset.Reason != "lost" || !isKept(reset.ID) {
				t.Errorf("%s of %s: %s, want reason lost and id %s", r.name, r.topic, reset.text, keptID)
			}
		}
		ready, n := r.controlAfter(t, n, "ready")
		if ready.Resumed == (r.topic == "jobs") || !isKept(ready.ID) {
			t.Errorf("%s of %s: %s, want id %s", r.name, r.topic, ready.text, keptID)
		}
		if last := r.lastID(); !isKept(last) {
			t.Errorf("%s of %s would come back with %s, want %s", r.name, r.topic, last, keptID)
		}
		r.controlAfter(t, n-1, "live")
	}
	keep(t, "everybody was told after the standby had taken over", promoted, liveWithin)
	for _, w := range workers {
		w.waitReady(t)
	}
	comeBack := func(when string) {
		for _, w := range workers {
			for _, transport := range transports {
				for _, id := range lostIDs {
					back := dial(t, w, dialling{transport: transport, topics: "jobs", since: id})
					ready := back.ready(t)
					if first := back.first(t); first.Type != "reset" || first.Reason != "unknown" || ready.Resumed {
						t.Errorf("%s, %s, with the lost id %s: %s, then %s", when, back.name, id, first.text, ready.text)
					}
					back.drop()
				}
				back := dial(t, w, dialling{transport: transport, topics: "jobs,customers,dispatch", since: kept[0].id})
				if ready := back.ready(t); !ready.Resumed {
					t.Errorf("%s, %s, with an id that was kept: %s", when, back.name, ready.text)
				}
				truth := readLog(t, conn, 0)
				checkEvents(t, back.name+", "+when, "jobs,customers,dispatch", truth, kept[0].id, back.events())
				back.drop()
			}
		}
	}
	comeBack("while nothing is new")

	// Who was told fetches its state.
	for _, r := range readers {
		if r.topic == "jobs" {
			r.table = selectView(t, conn, "jobs")
		}
	}
	if readsWAL(capture) {
		poll(t.Context(), t, "another replication slot", func() bool {
			return queryOne[bool](t, conn, "select exists (select from pg_replication_slots where active) and not pending from trumpet.head()")
		})
	}
	truth := readLog(t, conn, 0)
	write(conn, "new")
	for _, r := range readers {
		r.waitEvents(t, map[string]int{"jobs": 12, "customers": 2, "dispatch": 2}[r.topic]+count(t, truth, r.topic, r.kept))
	}
	comeBack("when the positions were given again")

	// The old primary comes back, still the first in the URL, and somebody writes there.
	if err := p.primary.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := pgtest.Connect(t, p.primary.URL("app"))
	haunt := func() {
		write(old, "ghost")
		pgtest.Exec(t, old, "select trumpet.sequence()")
	}
	haunt()
	for i := range 3 {
		// Whoever connects again comes to the old one first.
		terminateAll(t, conn)
		haunt()
		write(conn, fmt.Sprintf("new %d", i))
		for _, w := range workers {
			if answer := <-post(t, w, quoted("by %s %d", w.name, i)); answer.err == nil && answer.code != 200 && answer.code != 503 {
				t.Errorf("%s: a broadcast was answered with %d", w.name, answer.code)
			}
		}
		for _, r := range readers {
			if r.topic == "dispatch" {
				r.waitData(t, quoted("new %d", i))
			}
		}
	}
	haunt()
	truth = finish(t, conn, readers[2].client)
	for _, r := range readers {
		if r.topic == "dispatch" {
			r.waitEnd(t)
		}
		before := map[string]int{"jobs": 8, "customers": 1, "dispatch": 1}[r.topic]
		r.waitEvents(t, before+count(t, truth, r.topic, r.kept))
		r.check(t)
		r.connected(t)
		events := r.events()
		checkEvents(t, r.name+" of "+r.topic, r.topic, truth, r.kept, events[before:])
		if r.topic != "jobs" {
			// For them nothing was ever lost.
			checkEvents(t, r.name+" of "+r.topic, r.topic, truth, r.begin, events)
			if r.told("reset") {
				t.Errorf("%s of %s got a reset", r.name, r.topic)
			}
			before = 0
		}
		if r.table != nil {
			r.table.apply(t, r.topic, events[before:])
			r.table.compare(t, r.name+" of "+r.topic, selectView(t, conn, r.topic))
		}
	}
	if n := queryOne[int](t, old, "select count(*)::int from pg_stat_activity where application_name like 'trumpet listen%'"); n != 0 {
		t.Errorf("%d workers listen to the old primary", n)
	}
}

// count is how many events of a topic the log has after an id.
func count(t *testing.T, truth []logged, topic, after string) (n int) {
	t.Helper()
	for _, e := range truth {
		if e.topic == topic && mustParse(t, e.id).Compare(mustParse(t, after)) > 0 {
			n++
		}
	}
	return n
}

// terminateAll ends all sessions of workers.
func terminateAll(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	pgtest.Exec(t, conn, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'trumpet%'")
}

// The database is restored from a dump into another cluster, which takes the first one's place. Nothing
// says how that log and the old one belong together, so everybody gets a reset.
func TestRestoredElsewhere(t *testing.T) {
	t.Parallel()
	first, firstURL := pgtest.StartMigrated(t, nil)
	second := pgtest.Start(t, nil)
	conn := pgtest.Connect(t, firstURL)
	prepare(t, capture, firstURL, conn)
	// Both have a role that workers are.
	const role = "create role app superuser login password 'the same'"
	for _, server := range []*postgres.Server{first, second} {
		if err := server.Exec(t.Context(), "postgres", role); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(bothHosts(t, first, second))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("app", "the same")
	workers := []*worker{startWorker(t, u.String(), "w1"), startWorker(t, u.String(), "w2")}
	const topics = "jobs,customers,dispatch"
	clients, _ := dialSixEach(t, workers, topics)
	pgtest.Exec(t, conn, "insert into jobs (title) values ('before')")
	broadcast(t, conn, `"before"`)
	for _, c := range clients {
		c.waitData(t, `"before"`)
	}
	before := clients[0].lastID()
	dump := pgProgram(t, first, "pg_dump", "--dbname", firstURL)
	broadcast(t, conn, `"after the dump"`)
	for _, c := range clients {
		c.waitData(t, `"after the dump"`)
	}
	if err := first.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := second.CreateDatabase(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dump.sql")
	if err := os.WriteFile(file, dump, 0o600); err != nil {
		t.Fatal(err)
	}
	pgProgram(t, second, "psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--single-transaction", "--file", file, "--dbname", second.URL("app"))
	restored := time.Now()
	for _, c := range clients {
		reset, n := c.controlAfter(t, 0, "reset")
		if reset.Reason != "lost" {
			t.Errorf("%s: %s", c.name, reset.text)
		}
		if ready, _ := c.controlAfter(t, n, "ready"); ready.Resumed {
			t.Errorf("%s: %s", c.name, ready.text)
		}
	}
	keep(t, "everybody was told after the restore", restored, noticedWithin)
	conn = pgtest.Connect(t, second.URL("app"))
	pgtest.Exec(t, conn, "update jobs set title = 'afterwards' where id = 1")
	truth := finish(t, conn, clients[0])
	for _, c := range clients {
		c.waitEnd(t)
		c.check(t)
		c.connected(t)
		reset, n := c.controlAfter(t, 0, "reset")
		var events []message
		c.mu.Lock()
		for _, m := range c.messages[n:] {
			if m.isEvent() {
				events = append(events, m)
			}
		}
		c.mu.Unlock()
		checkEvents(t, c.name, topics, truth, reset.ID, events)
	}
	for _, w := range workers {
		back := dial(t, w, dialling{transport: sse, topics: topics, since: before})
		ready := back.ready(t)
		if first := back.first(t); first.Type != "reset" || ready.Resumed {
			t.Errorf("%s came back with an id of the old cluster: %s, then %s", back.name, first.text, ready.text)
		}
	}
}

// pgProgram runs one of Postgres's programs and returns its output.
func pgProgram(t *testing.T, server *postgres.Server, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(filepath.Join(server.Bindir(), name), args...)
	cmd.Env = cleanEnvironment()
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, complaint.String())
	}
	return out
}
