package integration

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// A worker that may open few files has as many clients as it can, and tells the others so. Connections
// that say nothing take no file that it needs: its clients go on, and it comes back to Postgres.
func TestFewFiles(t *testing.T) {
	t.Parallel()
	const files, places = 200, 102 // what is left of the files when a worker's own and a quarter are taken off
	url, conn := newDatabase(t)
	process, err := trumpettest.StartWorker(t.Context(), trumpettest.WorkerConfig{
		Binary: binary, Database: url, Name: "w1",
		Wrap: func(cmd *exec.Cmd) {
			cmd.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, files)}, cmd.Args...)
			cmd.Path = "/bin/sh"
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{name: "w1", addr: process.Address}
	t.Cleanup(func() {
		if err := process.Stop(context.WithoutCancel(t.Context())); err != nil || process.Raced() {
			t.Errorf("the worker ended badly (%v):\n%s", err, process.Log.Tail(20000))
		}
	})
	w.waitReady(t)
	if n := strings.Count(process.Log.String(), "LimitNOFILE"); n != 1 {
		t.Errorf("it says %d times that it may open too few files, want once:\n%s", n, process.Log.String())
	}

	var clients []*client
	for i := range places {
		clients = append(clients, dial(t, w, dialling{transport: transports[i%2], topics: "dispatch"}))
	}
	for _, c := range clients {
		c.ready(t)
	}
	refusedByLimit(t, w, dialling{topics: "dispatch"})

	// As many as the kernel takes: most wait in its queue.
	var dialer net.Dialer
	for range 2 * files {
		silent, err := dialer.DialContext(t.Context(), "tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
	}
	broadcast(t, conn, quoted("while others are silent"))
	// All its sessions are gone, and have to be opened anew.
	pgtest.Exec(t, conn, "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'trumpet %' and datname = current_database()")
	broadcast(t, conn, quoted("after the sessions"))
	for _, c := range clients {
		c.waitData(t, quoted("while others are silent"))
		c.waitData(t, quoted("after the sessions"))
		c.check(t)
	}

	// A place that is free is given again.
	clients[0].drop()
	clients[1].drop()
	for _, kind := range transports {
		poll(t.Context(), t, "a place for a "+string(kind), func() bool {
			return dial(t, w, dialling{transport: kind, topics: "dispatch"}).first(t).Type == "ready"
		})
	}
	if log := process.Log.String(); strings.Contains(log, "too many open files") {
		t.Errorf("it ran out of files:\n%s", process.Log.Tail(20000))
	}
}

// Clients of one address, as the proxy tells it, have a bound of their own; the others do not feel it.
func TestConnectionsPerAddress(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	w := startWorker(t, url, "w1", "--max-connections-per-address", "3")
	one := dialling{topics: "dispatch", forwardedFor: "198.51.100.1, 192.0.2.1"}
	var clients []*client
	for i := range 3 {
		one.transport = transports[i%2]
		clients = append(clients, dial(t, w, one))
	}
	for _, c := range clients {
		c.ready(t)
	}
	refusedByLimit(t, w, one)
	for i := range 4 { // from elsewhere, and from this machine
		from := []string{"", "192.0.2.2"}[i%2]
		c := dial(t, w, dialling{transport: transports[i/2], topics: "dispatch", forwardedFor: from})
		c.ready(t)
		clients = append(clients, c)
	}
	broadcast(t, conn, quoted("to all"))
	for _, c := range clients {
		c.waitData(t, quoted("to all"))
		c.check(t)
	}
	scraping := trumpettest.Worker{Name: w.name, Address: w.addr}
	metrics, err := scraping.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		`trumpet_refused_total{bound="address"}`: 2, `trumpet_refused_total{bound="total"}`: 0, `trumpet_endings_total{ending="limit"}`: 2,
	} {
		if metrics[name] != want {
			t.Errorf("%s is %v, want %v", name, metrics[name], want)
		}
	}
	if n := strings.Count(w.log.String(), "an address has as many connections"); n != 1 {
		t.Errorf("the log says it %d times, want once", n)
	}
}

// refusedByLimit dials with both transports and expects to be told that there is no place.
func refusedByLimit(t *testing.T, w *worker, d dialling) {
	t.Helper()
	for _, kind := range transports {
		d.transport = kind
		c := dial(t, w, d)
		select {
		case <-c.ended:
		case <-time.After(patience):
			t.Fatalf("%s was let in", c.name)
		}
		switch kind {
		case webSocket:
			if c.close.Code != 4009 {
				t.Errorf("%s: %v, want close code 4009", c.name, c.err)
			}
		case sse:
			if m := c.control(t, "error"); m.Code != "limit" || c.retry == "" {
				t.Errorf("%s: %+v, retry %q, want limit and when to come back", c.name, m, c.retry)
			}
		}
	}
}
