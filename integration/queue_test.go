package integration

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// fillQueue sends notifications, that nobody of Trumpet hears, until so much of the queue is taken, or until it is full if
// that is 1. It stops after a number that fills the small queue of a test several times.
func fillQueue(t *testing.T, conn *pgx.Conn, upTo float64) {
	t.Helper()
	for i := range 2000 {
		if upTo < 1 && queueUsage(t, conn) >= upTo {
			return
		}
		_, err := conn.Exec(t.Context(), "select pg_notify('noise', repeat('x', 4000) || $1::int)", i)
		var full *pgconn.PgError
		if errors.As(err, &full) && strings.Contains(full.Message, "NOTIFY queue") {
			if upTo < 1 {
				t.Fatalf("the queue is full, and should be only to %v", upTo)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("the queue does not fill up: %v", queueUsage(t, conn))
}

func queueUsage(t *testing.T, conn *pgx.Conn) float64 {
	t.Helper()
	return queryOne[float64](t, conn, "select pg_notification_queue_usage()")
}

// metric is the value of a metric without labels.
func metric(t *testing.T, w *worker, name string) float64 {
	t.Helper()
	_, body, _ := ask(t, "GET", w.url("/metrics"), "", "")
	for line := range strings.Lines(string(body)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("%s has no metric %s", w.name, name)
	return 0
}

// Another session listens and sits in a transaction while notifications are sent: the queue fills up, more than half and then
// altogether. No writer of a watched table fails, events go on, workers and doctor say what is wrong, and when that
// session ends all is as before. Before Postgres 17 the queue holds 8 GB: there only that it is told.
func TestNotificationQueueFillsUp(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	seed := seed(t)
	shared := pgtest.Connect(t, pgtest.New(t))
	settings := map[string]string{}
	small := queryOne[int](t, shared, "select current_setting('server_version_num')::int") >= 170000
	if small {
		settings["max_notify_queue_pages"] = "64" // half a megabyte
	}
	_, url := pgtest.StartMigrated(t, settings)
	conn := pgtest.Connect(t, url)
	prepare(t, capture, url, conn)
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}
	var clients []*client
	var begin string
	for _, w := range workers {
		for _, transport := range transports {
			c := dial(t, w, dialling{transport: transport, topics: topics})
			begin = c.ready(t).ID
			clients = append(clients, c)
		}
	}
	blocker := pgtest.Connect(t, url)
	pgtest.Exec(t, blocker, "set application_name = 'the blocker'; listen noise")
	pgtest.Exec(t, blocker, "begin; select 1")
	noise := pgtest.Connect(t, url)
	if !small {
		for range 50 {
			pgtest.Exec(t, noise, "select pg_notify('noise', repeat('x', 7000) || g) from generate_series(1, 100) g")
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		poll(ctx, t, "the metric of the queue to rise", func() bool { return metric(t, workers[0], "trumpet_bus_queue_usage") > 0 })
		return
	}

	// settle writes, and waits until all clients have all of it; it fails if any writer does.
	generation := uint64(0)
	settle := func(what string) {
		t.Helper()
		generation++
		writing := startWriters(t, url, seed+generation, 3, 30)
		writing.wait()
		mark := `"` + what + `"`
		broadcast(t, conn, mark)
		began := time.Now()
		for _, c := range clients {
			c.waitData(t, mark)
		}
		t.Logf("%s: %d transactions committed; the newest event came after %v", what, writing.committed.Load(), time.Since(began).Round(time.Millisecond))
		if writing.committed.Load() == 0 {
			t.Errorf("%s: nothing was committed", what)
		}
	}
	settle("an empty queue")

	fillQueue(t, noise, 0.6)
	settle("a queue more than half full")
	usage := queueUsage(t, conn)
	settle("still half full")
	if now := queueUsage(t, conn); now > usage {
		t.Errorf("Trumpet and its writers took the queue from %v to %v", usage, now)
	}
	for _, w := range workers {
		if got := metric(t, w, "trumpet_bus_queue_usage"); got < 0.5 {
			t.Errorf("%s: the metric says %v", w.name, got)
		}
		if !strings.Contains(w.log.String(), "the notification queue fills up") {
			t.Errorf("%s: its log does not warn", w.name)
		}
	}

	fillQueue(t, noise, 1)
	settle("a full queue")
	if code, out := runCommand(t, url, "doctor"); code != 1 || !strings.Contains(out, "ERROR  queue: ") || !strings.Contains(out, "'the blocker'") {
		t.Errorf("doctor ended with %d:\n%s", code, out)
	}
	// A worker that has to listen anew can, and one that starts.
	pgtest.Exec(t, conn, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'trumpet listen w1%'")
	clients[0].control(t, "stale")
	settle("a full queue, and a session that was lost")
	late := dial(t, startWorker(t, url, "w3"), dialling{transport: sse, topics: topics, since: begin})
	if ready := late.ready(t); !ready.Resumed {
		t.Errorf("a worker that started: %s", ready.text)
	}

	pgtest.Exec(t, blocker, "rollback")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll(ctx, t, "the workers to see room again", func() bool {
		return metric(t, workers[0], "trumpet_bus_queue_usage") < 0.1 && metric(t, workers[1], "trumpet_bus_queue_usage") < 0.1
	})
	settle("room again")
	listener := pgtest.Connect(t, url)
	pgtest.Exec(t, listener, "listen trumpet")
	broadcast(t, conn, `"is it told again?"`)
	if _, err := listener.WaitForNotification(ctx); err != nil {
		t.Errorf("the sequencer does not notify again: %v", err)
	}
	truth := finish(t, conn, clients[0])
	for _, c := range append(clients, late) {
		c.waitEnd(t)
		c.check(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
	}
}
