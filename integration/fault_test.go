package integration

import (
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// The worker that sequences is killed under load: another one goes on, positions stay contiguous,
// and the dead worker's clients miss nothing when they come to the survivor.
func TestKillTheSequencingWorker(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	seed := seed(t)
	url, conn := newDatabase(t)
	workers := map[string]*worker{"w1": startWorker(t, url, "w1"), "w2": startWorker(t, url, "w2")}
	type follower struct {
		*client
		transport transport
		worker    string
		begin     string
	}
	var followers []*follower
	for name, w := range workers {
		for i := range 6 {
			transport := transports[i%2]
			c := dial(t, w, dialling{transport: transport, topics: topics})
			followers = append(followers, &follower{c, transport, name, c.ready(t).ID})
		}
	}
	writing := startWriters(t, url, seed, 3, 0)
	for _, f := range followers {
		f.waitEvents(t, 100)
	}

	var victim string
	poll(t.Context(), t, "a worker that says that it sequences", func() bool {
		for _, w := range statusOf(t, workers["w1"]).Workers {
			if w.Sequencing {
				victim = w.Name
			}
		}
		return victim != ""
	})
	survivor := workers[map[string]string{"w1": "w2", "w2": "w1"}[victim]]
	workers[victim].signal(t, syscall.SIGKILL)
	workers[victim].waitEnd(t)
	killed, serverTime := time.Now(), timeOf(t, conn)
	for _, f := range followers {
		if f.worker == survivor.name {
			f.find(t, "an event after the kill", func(m message) bool { return m.isEvent() && m.At.After(serverTime) })
			t.Logf("the next event came %v after %s, which sequenced, was killed", time.Since(killed).Round(time.Millisecond), victim)
			break
		}
	}
	// What the dead worker had asked Postgres for may have given one step more.
	poll(t.Context(), t, "the survivor to sequence", func() bool { return statusOf(t, survivor).Worker.Sequencing })
	t.Logf("%s says that it sequences %v after the kill", survivor.name, time.Since(killed).Round(time.Millisecond))

	type returned struct {
		before []message
		f      *follower
		*client
	}
	var back []returned
	for _, f := range followers {
		if f.worker == victim {
			<-f.ended
			back = append(back, returned{f.events(), f, dial(t, survivor, dialling{transport: f.transport, topics: topics, since: f.lastID()})})
		}
	}
	for _, b := range back {
		if ready := b.ready(t); !ready.Resumed {
			t.Errorf("%s: %s", b.name, ready.text)
		}
		b.waitEvents(t, 50)
	}
	writing.stop()
	truth := finish(t, conn, back[0].client)
	for _, b := range back {
		b.waitEnd(t)
		b.check(t)
		checkEvents(t, b.name, topics, truth, b.f.begin, append(b.before, b.events()...))
	}
	for _, f := range followers {
		if f.worker == survivor.name {
			f.waitEnd(t)
			f.check(t)
			checkEvents(t, f.name, topics, truth, f.begin, f.events())
			writing.check(t, f.name, f.events())
		}
	}
	t.Logf("%d events, %d transactions committed", len(truth), writing.committed.Load())
}

// A worker that is told to end sends its clients away with words that say so, spread over its
// drain, ends with 0, and they miss nothing at the other one.
func TestDrain(t *testing.T) {
	t.Parallel()
	const topics, clients = "jobs,customers,dispatch", 50
	const spread = 1500 * time.Millisecond
	seed := seed(t)
	url, conn := newDatabase(t)
	w1 := startWorker(t, url, "w1", "--drain", spread.String())
	w2 := startWorker(t, url, "w2")
	type guest struct {
		*client
		transport transport
		begin     string
	}
	var guests []guest
	for i := range clients {
		transport := transports[i%2]
		c := dial(t, w1, dialling{transport: transport, topics: topics})
		guests = append(guests, guest{c, transport, c.ready(t).ID})
	}
	writing := startWriters(t, url, seed, 2, 0)
	for _, g := range guests {
		g.waitEvents(t, 20)
	}
	w1.signal(t, syscall.SIGTERM)

	// Each comes back as soon as it is sent away, as a browser's client does.
	var group sync.WaitGroup
	back := make([]*client, clients)
	left := make([]time.Time, clients)
	for i, g := range guests {
		group.Go(func() {
			select {
			case <-g.ended:
			case <-time.After(patience):
				t.Errorf("%s was not sent away", g.name)
				return
			}
			left[i] = time.Now()
			back[i] = dial(t, w2, dialling{transport: g.transport, topics: topics, since: g.lastID()})
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if code := w1.waitEnd(t); code != 0 {
		t.Errorf("the worker ended with %d, want 0", code)
	}
	first, last := left[0], left[0]
	for i, g := range guests {
		first, last = minTime(first, left[i]), maxTime(last, left[i])
		switch g.transport {
		case webSocket:
			if g.close.Code != websocket.StatusCode(4001) || g.close.Reason == "" {
				t.Errorf("%s ended with %v, want 4001 and a reason", g.name, g.err)
			}
		case sse:
			end := g.messages[len(g.messages)-1]
			if end.Type != "error" || end.Code != "draining" || end.Retry == nil || !*end.Retry {
				t.Errorf("%s: last came %s", g.name, end.text)
			}
			if ms, err := strconv.Atoi(g.retry); err != nil || ms < 0 || ms > 30000 {
				t.Errorf("%s: retry is %q", g.name, g.retry)
			}
		}
	}
	t.Logf("%d clients were sent away over %v of %v", clients, last.Sub(first).Round(time.Millisecond), spread)
	if last.Sub(first) < spread/4 {
		t.Errorf("all clients were sent away within %v, want them spread over %v", last.Sub(first), spread)
	}

	writing.stop()
	truth := finish(t, conn, back[0])
	for i, g := range guests {
		back[i].waitEnd(t)
		if ready := back[i].ready(t); !ready.Resumed {
			t.Errorf("%s: %s", back[i].name, ready.text)
		}
		g.check(t)
		back[i].check(t)
		checkEvents(t, g.name, topics, truth, g.begin, append(g.events(), back[i].events()...))
	}
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func maxTime(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
