package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// station is a worker with the network between it and Postgres.
type station struct {
	run    *run
	index  int
	worker *trumpettest.Worker
	proxy  *proxy

	mu      sync.Mutex
	up      bool
	process int                // counts the worker's processes, from 1
	atStart map[string]float64 // the metrics of this process, when it was ready
	seen    map[string]int     // what clients of this process saw: endings, resets, resumes
	blind   int                // connections to it of which clients did not see the end
}

// sighting names one process of a station; 0 where nobody can tell which.
type sighting struct{ station, process int }

func (s sighting) String() string {
	return fmt.Sprintf("worker %d (process %d)", s.station+1, s.process)
}

// startTimeout bounds a worker's start; Postgres may be away for a part of it.
const startTimeout = 90 * time.Second

func newStation(ctx context.Context, r *run, index int) (*station, error) {
	target := fmt.Sprintf("127.0.0.1:%d", r.db.server.Port())
	p, err := newProxy(ctx, target)
	if err != nil {
		return nil, err
	}
	database, err := r.db.through(p.address())
	if err != nil {
		p.close()
		return nil, err
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	w, err := trumpettest.StartWorker(starting, trumpettest.WorkerConfig{
		Binary: r.config.Binary, Database: database, Name: fmt.Sprintf("w%d", index+1),
	})
	if err != nil {
		p.close()
		return nil, err
	}
	s := &station{run: r, index: index, worker: w, proxy: p}
	return s, s.begin(starting)
}

// begin waits until a process is ready, and counts it.
func (s *station) begin(ctx context.Context) error {
	s.mu.Lock()
	s.process++
	s.seen, s.blind, s.atStart, s.up = map[string]int{}, 0, nil, true
	s.mu.Unlock()
	if err := s.worker.WaitReady(ctx); err != nil {
		return err
	}
	metrics, err := s.worker.Metrics(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.atStart = metrics
	return nil
}

// again starts the worker on its port, insistently, as a service manager does.
func (s *station) again(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	if err := insistently(ctx, startTimeout, s.worker.Start); err != nil {
		return err
	}
	return s.begin(ctx)
}

// end notes that the process has ended, and looks at how.
func (s *station) end(expected string) {
	s.mu.Lock()
	s.up = false
	s.mu.Unlock()
	if s.worker.Raced() {
		s.run.fail(s.worker.Name, breaks(ordered, "the race detector found something:\n%s", s.worker.Log.Tail(4000)))
	}
	if state := s.worker.State(); state != nil && expected != "" && !strings.Contains(state.String(), expected) {
		s.run.fail(s.worker.Name, breaks(bounded, "it ended with %s, not %s:\n%s", state, expected, s.worker.Log.Tail(4000)))
	}
}

// sight is the process that runs now.
func (s *station) sight() sighting {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sighting{s.index, s.process}
}

// anyStation is one that is up, if any is.
func (r *run) anyStation(rng *rand.Rand) *station {
	first := rng.IntN(len(r.stations))
	for i := range r.stations {
		s := r.stations[(first+i)%len(r.stations)]
		s.mu.Lock()
		up := s.up
		s.mu.Unlock()
		if up {
			return s
		}
	}
	return r.stations[first]
}

// seen counts what a client saw of a process: an ending, or something else.
func (r *run) seen(conn *connection, ending, what string) {
	s := r.stations[conn.at.station]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != conn.at.process {
		return
	}
	switch {
	case what != "":
		s.seen[what]++
	case ending != "":
		s.seen["ending "+ending]++
		r.tally.ending(ending)
	default:
		s.blind++
	}
}

// counters are what of a worker's metrics explains what clients saw.
func counterOf(what string) string {
	kind, name, _ := strings.Cut(what, " ")
	switch kind {
	case "ending":
		return fmt.Sprintf("trumpet_endings_total{ending=%q}", name)
	case "reset":
		return fmt.Sprintf("trumpet_resets_total{reason=%q}", name)
	}
	return ""
}

// Bounds of a worker at rest, beside what it had when it was ready and what each connection takes.
const (
	someGoroutines = 40
	someFiles      = 40
	heapBound      = 400 << 20
)

// inspect compares a worker's metrics with what it had at its start, and with what clients saw.
func (s *station) inspect(ctx context.Context) *broken {
	if state := s.worker.State(); state != nil {
		return breaks(bounded, "it has ended: %s\n%s", state, s.worker.Log.Tail(8000))
	}
	metrics, err := s.worker.Metrics(ctx)
	if err != nil {
		return breaks(bounded, "%v\n%s", err, s.worker.Log.Tail(4000))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run.tally.scraped(sighting{s.index, s.process}, metrics)
	connections := metrics[`trumpet_connections{transport="websocket"}`] + metrics[`trumpet_connections{transport="sse"}`]
	for _, of := range []struct {
		metric string
		bound  float64
	}{
		{"go_goroutines", s.atStart["go_goroutines"] + 3*connections + someGoroutines},
		{"process_open_fds", s.atStart["process_open_fds"] + connections + someFiles},
		{"go_memstats_heap_inuse_bytes", heapBound},
	} {
		if got := metrics[of.metric]; got > of.bound {
			return breaks(bounded, "at rest, with %v connections, %s is %v; at the start it was %v", connections, of.metric, got, s.atStart[of.metric])
		}
	}
	for what, n := range s.seen {
		if what == "resumed" {
			all := metrics[`trumpet_resumes_total{from="ring"}`] + metrics[`trumpet_resumes_total{from="log"}`]
			if all < float64(n) {
				return breaks(counted, "%d clients resumed, %v were counted", n, all)
			}
		} else if got := metrics[counterOf(what)]; got < float64(n) {
			return breaks(counted, "clients saw %q %d times, %v were counted", what, n, got)
		} else if got > float64(n+s.blind) {
			return breaks(counted, "clients saw %q %d times, and not the end of %d connections; %v were counted", what, n, s.blind, got)
		}
	}
	return nil
}

// letGo fails unless the worker has no connection left, within the promised time.
func (s *station) letGo(ctx context.Context) *broken {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	var connections, goroutines float64
	err := insistently(ctx, 5*time.Second, func(ctx context.Context) error {
		metrics, err := s.worker.Metrics(ctx)
		if err != nil {
			return err
		}
		connections = metrics[`trumpet_connections{transport="websocket"}`] + metrics[`trumpet_connections{transport="sse"}`]
		goroutines = metrics["go_goroutines"]
		s.mu.Lock()
		defer s.mu.Unlock()
		if connections > 0 || goroutines > s.atStart["go_goroutines"]+someGoroutines/2 || metrics["process_open_fds"] > s.atStart["process_open_fds"]+someFiles/2 {
			return errors.New("it holds something still")
		}
		return nil
	})
	if err != nil {
		return breaks(bounded, "with all clients gone or vanished it still has %v connections and %v goroutines", connections, goroutines)
	}
	return nil
}

func (s *station) close(ctx context.Context) error {
	_ = s.worker.Signal(syscall.SIGCONT) // or it could not end
	err := s.worker.Stop(ctx)
	s.end("exit status 0")
	s.proxy.close()
	return err
}
