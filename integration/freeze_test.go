//go:build linux

package integration

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// freeze stops processes, as a debugger or a full disk does: their sockets stay, and the kernel
// acknowledges what they are sent. What it returns lets them go on, and so does the test's end.
func freeze(t *testing.T, pids ...int) (thaw func()) {
	t.Helper()
	thaw = func() {
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Errorf("thaw process %d: %v", pid, err)
			}
		}
	}
	t.Cleanup(thaw)
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatalf("freeze process %d: %v", pid, err)
		}
	}
	return thaw
}

// childrenOf lists the processes that a process started.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for field := range strings.FieldsSeq(string(list)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, child)
	}
	return pids
}

// backend is the process of the one session with this application_name.
func backend(t *testing.T, conn *pgx.Conn, name string) (pid int) {
	t.Helper()
	poll(t.Context(), t, "the session "+name, func() bool {
		err := conn.QueryRow(t.Context(), "select pid from pg_stat_activity where application_name = $1", name).Scan(&pid)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			t.Fatal(err)
		}
		return err == nil
	})
	return pid
}

// All of Postgres is frozen under load, for longer than it takes to be noticed.
func TestPostgresFrozen(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	server, url := pgtest.StartMigrated(t, nil)
	conn := pgtest.Connect(t, url)
	prepare(t, capture, url, conn)
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}
	clients, begin := dialSixEach(t, workers, topics)
	stop := scribble(t, url)
	for _, c := range clients {
		c.waitEvents(t, 50)
	}

	thawServer := freeze(t, server.PID()) // it starts nobody any more
	thawOthers := freeze(t, childrenOf(t, server.PID())...)
	began := time.Now()
	answers := []<-chan posted{post(t, workers[0], "1"), post(t, workers[1], "2")}
	for _, c := range clients {
		c.control(t, "stale")
	}
	keep(t, "clients were told that Postgres is frozen", began, noticedWithin)
	for i, w := range workers {
		notReady(t, w)
		refused(t, w.name, answers[i])
	}
	for i, w := range workers { // and again, now that it is known: this makes the freeze longer, too
		answers[i] = post(t, w, "3")
	}
	for i, w := range workers {
		refused(t, w.name, answers[i])
	}
	t.Logf("frozen for %v", time.Since(began).Round(time.Millisecond))

	thawOthers()
	thawServer()
	thawed := time.Now()
	for _, c := range clients {
		c.control(t, "live")
	}
	keep(t, "live again after Postgres was", thawed, liveWithin)
	for _, w := range workers {
		w.waitReady(t)
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

// Only one backend is frozen: first the one that sequences, at rest, which is passed by; then the one
// that a worker listens on, under load, which that worker replaces.
func TestOneBackendFrozen(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	// A server of its own: others' could not drop their databases while a backend does not answer.
	_, url := pgtest.StartMigrated(t, nil)
	conn := pgtest.Connect(t, url)
	prepare(t, capture, url, conn)
	w1 := startWorker(t, url, "w1")
	sequencing := backend(t, conn, "trumpet sequencer w1")
	poll(t.Context(), t, "the first worker to sequence", func() bool { return statusOf(t, w1).Worker.Sequencing })
	w2 := startWorker(t, url, "w2")
	clients, begin := dialSixEach(t, []*worker{w1, w2}, topics)
	ofFrozen, ofOther := clients[:6], clients[6:]
	broadcast(t, conn, `"before"`)
	for _, c := range clients {
		c.waitData(t, `"before"`)
	}

	thaw := freeze(t, sequencing)
	for n := range 4 {
		began := time.Now()
		broadcast(t, conn, quoted("passed by %d", n))
		for _, c := range clients {
			c.waitData(t, quoted("passed by %d", n))
		}
		keep(t, "an event came past the frozen sequencing backend", began, noticedWithin)
	}
	for _, c := range clients {
		if c.told("stale") {
			t.Errorf("%s was told that it is stale, but only the sequencing backend was frozen", c.name)
		}
	}
	thaw()
	poll(t.Context(), t, "one to have the duty", func() bool {
		return statusOf(t, w1).Worker.Sequencing || statusOf(t, w2).Worker.Sequencing
	})

	stop := scribble(t, url)
	for _, c := range clients {
		c.waitEvents(t, len(c.events())+20)
	}
	listening := backend(t, conn, "trumpet listen w1")
	thaw = freeze(t, listening)
	began := time.Now()
	for _, c := range ofFrozen {
		c.control(t, "stale")
	}
	keep(t, "clients were told that their worker's listening backend is frozen", began, noticedWithin)
	for _, c := range ofFrozen {
		c.control(t, "live")
	}
	keep(t, "live again on another session", began, noticedWithin+liveWithin)
	// The old one is still there.
	for _, c := range ofFrozen {
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
	for _, c := range ofOther {
		if c.told("stale") {
			t.Errorf("%s was told that it is stale, but the other worker's backend was frozen", c.name)
		}
	}
	thaw()
	poll(t.Context(), t, "the old listening backend to end", func() bool {
		return queryOne[int](t, conn, "select count(*)::int from pg_stat_activity where pid = $1", listening) == 0
	})
}

// The backend that reads the WAL is frozen, with nothing and then with much to read. Nobody can tell how far it came, so
// everything waits, also what triggers captured; it is noticed, and another one reads on.
func TestReaderFrozen(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	_, url := pgtest.StartMigrated(t, nil)
	conn := pgtest.Connect(t, url)
	prepare(t, "mixed", url, conn)
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}
	clients, begin := dialSixEach(t, workers, topics)
	reader := func() (pid int) {
		t.Helper()
		poll(t.Context(), t, "a backend that reads the WAL", func() bool {
			pid = queryOne[int](t, conn, "select coalesce(max(active_pid), 0) from pg_replication_slots")
			return pid != 0
		})
		return pid
	}
	heals := func(what string) {
		t.Helper()
		began := time.Now()
		thaw := freeze(t, reader())
		pgtest.Exec(t, conn, "insert into jobs (title) values ($1)", what)
		pgtest.Exec(t, conn, "insert into customers (name) values ($1)", what)
		broadcast(t, conn, quoted("%s", what))
		for _, c := range clients {
			c.waitData(t, quoted("%s", what))
		}
		keep(t, "what came after the reader was frozen, "+what, began, noticedWithin)
		thaw()
	}
	heals("at rest")
	stop := scribble(t, url)
	for _, c := range clients {
		c.waitEvents(t, len(c.events())+20)
	}
	heals("under load")
	stop()
	truth := finish(t, conn, clients[0])
	for _, c := range clients {
		c.waitEnd(t)
		c.check(t)
		c.unbroken(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
		if c.told("stale") {
			t.Errorf("%s was told that it is stale, but only the WAL's reader was frozen", c.name)
		}
	}
}

// told says whether a control message of this kind has come.
func (c *client) told(kind string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.messages {
		if m.Type == kind {
			return true
		}
	}
	return false
}
