//go:build linux

package integration

import (
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// Packets between a worker and Postgres vanish, and nobody is told: neither side's kernel says a word.
// The worker's clients stay and are told that what they show is stale; another worker goes on, and
// takes the sequencer's duty over; when packets pass again, everything comes, once.
func TestPacketsToPostgresVanish(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	a, b, wire := newNetwork(t)
	here, there := a.startPostgres(t)
	conn := pgtest.Connect(t, here)
	// More than a worker begins with, so that who comes back with this id needs the log.
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', to_jsonb(n)) from generate_series(1, 1500) n")
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	oldest := readLog(t, conn, 0)[0].id

	cut := b.startWorker(t, there, "cut", "127.0.0.1")
	poll(t.Context(), t, "the first worker to sequence", func() bool { return statusOf(t, cut).Worker.Sequencing })
	other := startWorker(t, here, "other")
	clients, begin := dialSixEach(t, []*worker{cut, other}, topics)
	ofCut, ofOther := clients[:6], clients[6:]
	warm(t, cut)
	stop := scribble(t, here)
	for _, c := range clients {
		c.waitEvents(t, 50)
	}

	wire.cut(t)
	began, serverTime := time.Now(), timeOf(t, conn)
	answers := postMany(t, cut, `"lost on the way"`)
	// It needs the log, which cannot be read.
	late := dial(t, cut, dialling{transport: webSocket, topics: topics, since: oldest})
	ofOther[0].find(t, "an event after the cut", func(m message) bool { return m.isEvent() && m.At.After(serverTime) })
	t.Logf("the other worker went on %v after the cut", time.Since(began).Round(time.Millisecond))
	for _, c := range ofCut {
		c.control(t, "stale")
	}
	keep(t, "clients were told that their worker is cut off", began, noticedWithin)
	notReady(t, cut)
	for _, answer := range answers {
		refused(t, "cut off", answer)
	}
	poll(t.Context(), t, "the other worker to sequence", func() bool { return statusOf(t, other).Worker.Sequencing })
	t.Logf("the other worker sequences %v after the cut", time.Since(began).Round(time.Millisecond))

	wire.heal(t)
	healed := time.Now()
	for _, c := range ofCut {
		c.control(t, "live")
	}
	keep(t, "live again after the network was", healed, liveWithin)
	cut.waitReady(t)
	stop()
	truth := finish(t, conn, clients[0])
	keep(t, "everything had come after the network was back", healed, patience)
	for _, c := range clients {
		c.waitEnd(t)
		c.check(t)
		c.unbroken(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
	}
	t.Logf("%d events", len(truth))
	checkLate(t, late, cut, topics, oldest, truth)
}

// checkLate checks a client that came while the log could not be read: either it waited and has
// everything, or it was sent away and has the rest when it comes back.
func checkLate(t *testing.T, late *client, w *worker, topics, since string, truth []logged) {
	t.Helper()
	var before []message
	begin := since
	poll(t.Context(), t, "the late client to have everything, or to be sent away", func() bool {
		select {
		case <-late.ended:
			return true
		default:
			events := late.events()
			return len(events) > 0 && string(events[len(events)-1].Data) == endOfTest
		}
	})
	select {
	case <-late.ended:
		if late.close.Code != 4003 {
			t.Errorf("%s, which needed the log, ended with %v, want 4003", late.name, late.err)
		}
		before = late.events()
		if id := late.lastID(); id != "" {
			since = id
		}
		late = dial(t, w, dialling{transport: webSocket, topics: topics, since: since})
		if ready := late.ready(t); !ready.Resumed {
			t.Errorf("%s came back: %s", late.name, ready.text)
		}
		late.waitEnd(t)
	default:
	}
	late.check(t)
	checkEvents(t, late.name, topics, truth, begin, append(before, late.events()...))
}
