package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// Two workers behind the users' nginx are restarted in turn under load, and then one of them is
// killed. Clients that come back as clients do get every event exactly once and in order; so do
// broadcasts over HTTP that were acknowledged.
func TestRollingRestartBehindNginx(t *testing.T) {
	t.Parallel()
	const topics, count = "jobs,customers,dispatch", 16
	const spread = 1500 * time.Millisecond
	seed := seed(t)
	url, conn := newDatabase(t)
	w1 := startRestartable(t, url, "w1", "--drain", spread.String())
	w2 := startRestartable(t, url, "w2", "--drain", spread.String())
	proxy := startNginx(t, &worker{name: "w1", addr: w1.Address}, &worker{name: "w2", addr: w2.Address})

	var clients []*returning
	for i := range count {
		clients = append(clients, openReturning(t, strings.TrimPrefix(proxy.both, "http://"), transports[i%2], topics, seed+uint64(i)))
	}
	allLive(t, clients)
	writing := startWriters(t, url, seed, 1, 0)
	posting := startPosting(t, proxy.both)
	underLoad := func() {
		for _, b := range clients {
			b.waitEvents(t, len(b.events())+30)
		}
	}

	var faults []fault
	for _, step := range []struct {
		w      *trumpettest.Worker
		signal syscall.Signal
	}{{w1, syscall.SIGTERM}, {w2, syscall.SIGTERM}, {w1, syscall.SIGKILL}} {
		underLoad()
		f := fault{what: fmt.Sprintf("%v of %s", step.signal, step.w.Name), graceful: step.signal == syscall.SIGTERM, began: time.Now()}
		if err := step.w.Signal(step.signal); err != nil {
			t.Fatal(err)
		}
		select {
		case <-step.w.Ended():
		case <-time.After(patience):
			t.Fatalf("%s: it did not end", f.what)
		}
		if code := step.w.State().ExitCode(); f.graceful && code != 0 {
			t.Errorf("%s: it ended with %d, want 0", f.what, code)
		}
		restart(t, step.w)
		allLive(t, clients)
		waitUsed(t, proxy, step.w.Name)
		f.over = time.Now()
		faults = append(faults, f)
	}
	underLoad()

	writing.stop()
	posting.stop()
	truth := finish(t, conn, clients[0].client)
	// The first is compared with the log and with what was committed, the others with the first.
	for _, b := range clients {
		b.waitEnd(t)
		b.drop()
		b.check(t)
	}
	events := clients[0].events()
	checkEvents(t, clients[0].name, topics, truth, clients[0].begin(), events)
	writing.check(t, clients[0].name, events)
	for _, b := range clients[1:] {
		checkSame(t, b.name, events, b.events())
	}
	posting.check(t, faults, events)
	for _, f := range faults {
		f.check(t, clients, spread)
	}
	t.Logf("%d events, %d clients", len(events), len(clients))
}

// checkSame fails unless a client got the very events that another one got, in the same order.
func checkSame(t *testing.T, name string, want, got []message) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			t.Errorf("%s: %d events did not come, the first is %.200s", name, len(want)-i, want[i].text)
		case i >= len(want):
			t.Errorf("%s: %d events too many came, the first is %.200s", name, len(got)-i, got[i].text)
		case want[i].text != got[i].text:
			t.Errorf("%s: event %d is %.200s, others got %.200s", name, i, got[i].text, want[i].text)
		default:
			continue
		}
		return
	}
}

// waitUsed waits until nginx gives a worker requests again: it leaves one that was down alone for a
// moment, and if the next one ended within it there would be none left.
func waitUsed(t *testing.T, p proxy, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll(ctx, t, "nginx to use "+name+" again", func() bool {
		code, body, _ := ask(t, http.MethodGet, p.both+"/api/dispatch/status", "", "")
		var status clusterStatus
		return code == http.StatusOK && json.Unmarshal(body, &status) == nil && status.Worker.Name == name
	})
}

// startRestartable starts a worker that can be started again on its port. It ends with the test.
func startRestartable(t *testing.T, database, name string, flags ...string) *trumpettest.Worker {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w, err := trumpettest.StartWorker(ctx, trumpettest.WorkerConfig{Binary: binary, Database: database, Name: name, Flags: flags})
	if err != nil {
		t.Fatal(err)
	}
	endWithTest(t, w)
	if err := w.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}

func endWithTest(t *testing.T, w *trumpettest.Worker) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := w.Stop(ctx); err != nil {
			t.Error(err)
		}
		if w.Raced() {
			t.Errorf("worker %s has a data race", w.Name)
		}
		if t.Failed() {
			t.Logf("log of worker %s:\n%s", w.Name, w.Log.Tail(20000))
		}
	})
}

// restart starts a worker that has ended, and waits until it is ready. Somebody else's connection
// may have its port for a moment.
func restart(t *testing.T, w *trumpettest.Worker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll(ctx, t, w.Name+" to start again", func() bool {
		err := w.Start(ctx)
		if err != nil && !strings.Contains(err.Error(), "address already in use") {
			t.Fatal(err)
		}
		return err == nil
	})
	if err := w.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// fault is what was done to a worker.
type fault struct {
	what     string
	graceful bool
	began    time.Time
	over     time.Time // it is back, and so are the clients
}

func (f fault) during(at time.Time) bool { return at.After(f.began) && at.Before(f.over) }

// check checks how clients were sent away and came back. How long that took is only reported.
func (f fault) check(t *testing.T, clients []*returning, spread time.Duration) {
	t.Helper()
	var ends, opens []time.Time
	var away []time.Duration
	failures := 0
	retries := map[string]int{} // what an EventSource was told of when to come back
	for _, b := range clients {
		for i, v := range b.visits {
			if !f.during(v.ended) || i+1 == len(b.visits) {
				continue
			}
			next := b.visits[i+1]
			ends, opens, away = append(ends, v.ended), append(opens, next.opened), append(away, next.ready.Sub(v.ended))
			failures += next.failures
			if b.dialling.Transport == trumpettest.SSE {
				retries[v.retry]++
			}
			if f.graceful && !v.farewell {
				t.Errorf("%s: %s was not told why its connection ended", f.what, b.name)
			}
		}
	}
	if len(ends) < 5 {
		t.Fatalf("%s: only %d clients noticed", f.what, len(ends))
	}
	within := func(times []time.Time) time.Duration {
		return slices.MaxFunc(times, time.Time.Compare).Sub(slices.MinFunc(times, time.Time.Compare))
	}
	slices.Sort(away)
	t.Logf("%s: %d clients left within %v and came back within %v, after %d failures; away p50 %v, max %v", f.what, len(ends),
		within(ends).Round(time.Millisecond), within(opens).Round(time.Millisecond), failures,
		quantile(away, .5).Round(time.Millisecond), quantile(away, 1).Round(time.Millisecond))
	if retries[""] > 0 || len(retries) < 2 {
		t.Errorf("%s: event streams are to come back after %v ms, want different times", f.what, retries)
	}
	if f.graceful && within(ends) < spread/4 {
		t.Errorf("%s: all clients were sent away within %v, want them spread over %v", f.what, within(ends), spread)
	}
}
