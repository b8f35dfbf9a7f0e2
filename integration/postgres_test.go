package integration

import (
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// Postgres is killed and comes back: clients stay connected, are told that what they show is
// stale and when it is live again, and miss nothing.
func TestPostgresKilled(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	seed := seed(t)
	server, url := pgtest.StartMigrated(t, nil)
	conn := pgtest.Connect(t, url)
	prepare(t, capture, url, conn)
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}
	clients, begin := dialSixEach(t, workers, topics)
	before := startWriters(t, url, seed, 2, 0)
	for _, c := range clients {
		c.waitEvents(t, 20)
	}
	before.stop()

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		c.control(t, "stale")
	}
	for _, w := range workers {
		if code, _, _ := ask(t, "GET", w.url("/healthz"), "", ""); code != 200 {
			t.Errorf("%s: /healthz says %d while Postgres is away", w.name, code)
		}
		if code, _, _ := ask(t, "GET", w.url("/readyz"), "", ""); code != 503 {
			t.Errorf("%s: /readyz says %d while Postgres is away", w.name, code)
		}
		if code, body, _ := ask(t, "POST", w.url("/api/dispatch/broadcast"), "application/json", "1"); code != 503 {
			t.Errorf("%s: a broadcast is answered with %d %s while Postgres is away", w.name, code, body)
		}
	}
	// What stands in the log before any worker is back must be read from there.
	for _, w := range workers {
		w.signal(t, syscall.SIGSTOP)
		defer w.signal(t, syscall.SIGCONT) // or it could not be ended
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn = pgtest.Connect(t, url)
	broadcast(t, conn, `"before any worker is back"`)
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	for _, w := range workers {
		w.signal(t, syscall.SIGCONT)
	}
	back := time.Now()
	after := startWriters(t, url, seed+1, 2, 0)
	for _, c := range clients {
		c.control(t, "live")
	}
	t.Logf("live again %v after Postgres was", time.Since(back).Round(time.Millisecond))
	for _, c := range clients {
		c.waitEvents(t, len(c.events())+20)
	}
	after.stop()
	truth := finish(t, conn, clients[0])
	for _, c := range clients {
		c.waitEnd(t)
		c.check(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
	}
}

// The sessions that listen are terminated again and again under load: nobody misses anything, and
// nobody's connection ends.
func TestListenersTerminated(t *testing.T) {
	t.Parallel()
	const topics, times = "jobs,customers,dispatch", 8
	seed := seed(t)
	url, conn := newDatabase(t)
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}
	clients, begin := dialSixEach(t, workers, topics)
	writing := startWriters(t, url, seed, 3, 0)
	for i := range times {
		clients[0].waitEvents(t, len(clients[0].events())+10)
		terminate(t, conn, i)
	}
	writing.stop()
	truth := finish(t, conn, clients[0])
	for _, c := range clients {
		c.waitEnd(t)
		c.check(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
	}
	writing.check(t, clients[0].name, clients[0].events())
	t.Logf("%d events while the listening sessions were terminated %d times", len(truth), times)
}

// terminate ends the listening session of one worker after the other, and with every fourth call
// all of Trumpet's sessions.
func terminate(t *testing.T, conn *pgx.Conn, i int) {
	t.Helper()
	pattern := []string{"trumpet listen w1%", "trumpet listen w2%", "trumpet listen%", "trumpet%"}[i%4]
	n := queryOne[int](t, conn, `
		select count(*) filter (where pg_terminate_backend(pid))::int from pg_stat_activity
		 where datname = current_database() and pid <> pg_backend_pid() and application_name like $1`, pattern)
	if n == 0 && i%4 == 3 {
		t.Errorf("no session is called %q", pattern)
	}
}

// A worker is frozen, as by a debugger or a full disk: the other one goes on, and the frozen one,
// when it wakes up, has everything for its clients.
func TestFrozenWorker(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	seed := seed(t)
	url, conn := newDatabase(t)
	w1 := startWorker(t, url, "w1")
	// The first one sequences: it is the worse one to freeze.
	poll(t.Context(), t, "the first worker to sequence", func() bool { return statusOf(t, w1).Worker.Sequencing })
	w2 := startWorker(t, url, "w2")
	frozen := dial(t, w1, dialling{transport: webSocket, topics: topics})
	other := dial(t, w2, dialling{transport: sse, topics: topics})
	begin := frozen.ready(t).ID
	other.ready(t)
	writing := startWriters(t, url, seed, 2, 0)
	frozen.waitEvents(t, 20)
	w1.signal(t, syscall.SIGSTOP)
	stopped := timeOf(t, conn)
	since := time.Now()
	resume := func() { w1.signal(t, syscall.SIGCONT) }
	defer resume() // or it could not be ended
	other.find(t, "an event after the freeze", func(m message) bool { return m.isEvent() && m.At.After(stopped) })
	t.Logf("the next event came %v after the sequencing worker froze", time.Since(since).Round(time.Millisecond))
	other.waitEvents(t, len(other.events())+20)
	resume()
	writing.stop()
	truth := finish(t, conn, other)
	for _, c := range []*client{frozen, other} {
		c.waitEnd(t)
		c.check(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
	}
	writing.check(t, other.name, other.events())
}

// dialSixEach dials six clients of either transport, in turn, to each worker, and returns the id at which
// the last one began.
func dialSixEach(t *testing.T, workers []*worker, topics string) (clients []*client, begin string) {
	t.Helper()
	for _, w := range workers {
		for i := range 6 {
			c := dial(t, w, dialling{transport: transports[i%2], topics: topics})
			begin = c.ready(t).ID
			clients = append(clients, c)
		}
	}
	return clients, begin
}
