package oracle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// fault is a way in which something breaks.
type fault struct {
	// needs is what no other fault may touch at the same time.
	needs string
	// weight is how often it is chosen, compared with others.
	weight int
	// do breaks it, and returns when it is whole again. An error says that it did not happen.
	do func(ctx context.Context, r *run, rng *rand.Rand) error
}

// Fail-over to a standby would be one more fault that needs the server: it would begin with a
// truth.read, promote, point the proxies elsewhere, and tell truth and mayReset what was lost.
const (
	theServer  = "server"
	theWorkers = "workers"
	theNetwork = "network"
	theClients = "clients"
)

// faults are all kinds.
var faults = map[string]fault{
	"postgres-killed":     {theServer, 3, killServer},
	"postgres-restarted":  {theServer, 2, restartServer},
	"postgres-frozen":     {theServer, 3, freezeServer},
	"sessions-terminated": {"", 4, terminateSessions},
	"session-frozen":      {theServer, 4, freezeSession},
	"network-silent":      {theNetwork, 4, network(func(rng *rand.Rand) weather { return weather{holdUp: true, holdDown: true, lose: rng.IntN(2) == 0} })},
	"network-half-open":   {theNetwork, 3, network(func(rng *rand.Rand) weather { up := rng.IntN(2) == 0; return weather{holdUp: up, holdDown: !up} })},
	"network-reset":       {theNetwork, 3, network(func(*rand.Rand) weather { return weather{refuse: true} })},
	"network-slow":        {theNetwork, 2, network(func(rng *rand.Rand) weather { return weather{delay: time.Duration(5+rng.IntN(60)) * time.Millisecond} })},
	"reader-terminated":   {"", 4, terminateReader},
	"reader-frozen":       {theServer, 4, freezeReader},
	"worker-killed":       {theWorkers, 4, killWorker},
	"worker-restarted":    {theWorkers, 3, restartWorker},
	"worker-frozen":       {theWorkers, 3, freezeWorker},
	"live-disturbed":      {theWorkers, 4, disturbKeeper},
	"live-redefined":      {"", 1, redefine},
	"table-locked":        {"", 2, lockTable},
	"log-pruned":          {"", 2, pruneLog},
	"queue-burdened":      {"", 2, burdenQueue},
	"forged":              {"", 3, forge},
	"replayed":            {"", 2, replay},
	"noise":               {"", 2, makeNoise},
	"clients-dropped":     {theClients, 3, dropClients},
	"clients-stalled":     {theClients, 2, stallClients},
}

// Kinds are the names of all faults that there are with a capture.
func Kinds(capture string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(faults)), func(kind string) bool {
		return len(byWAL[capture]) == 0 && strings.HasPrefix(kind, "reader-")
	})
}

// breakThings breaks one thing after the other, or some at once, until the storm is over, and measures
// how soon clients have what is new after everything is whole again.
func (r *run) breakThings(ctx, storm context.Context, rng *rand.Rand) {
	for len(r.config.Faults) > 0 {
		if !pause(storm, time.Duration(rng.Int64N(int64(r.config.Calm)))) {
			return
		}
		count := []int{1, 1, 1, 2, 2, 3}[rng.IntN(6)]
		var group sync.WaitGroup
		var mu sync.Mutex
		var happened []string
		for _, kind := range r.choose(rng, count) {
			own := rand.New(rand.NewPCG(rng.Uint64(), 0))
			group.Go(func() {
				if count > 1 {
					pause(ctx, time.Duration(own.IntN(1500))*time.Millisecond)
				}
				r.happens("%s begins", kind)
				err := faults[kind].do(ctx, r, own)
				if err != nil {
					r.happens("%s did not happen: %v", kind, err)
					return
				}
				r.happens("%s is over", kind)
				mu.Lock()
				defer mu.Unlock()
				happened = append(happened, kind)
			})
		}
		group.Wait()
		r.measure(ctx, happened)
	}
}

// choose picks some kinds that do not touch the same thing.
func (r *run) choose(rng *rand.Rand, count int) (kinds []string) {
	needs := map[string]bool{}
	for range 20 {
		total := 0
		for _, kind := range r.config.Faults {
			total += faults[kind].weight
		}
		n := rng.IntN(total)
		for _, kind := range r.config.Faults {
			f := faults[kind]
			if n -= f.weight; n >= 0 {
				continue
			}
			if !slices.Contains(kinds, kind) && (f.needs == "" || !needs[f.needs]) {
				needs[f.needs] = true
				kinds = append(kinds, kind)
			}
			break
		}
		if len(kinds) == count {
			break
		}
	}
	return kinds
}

// measure takes the time until each client that nothing but the faults disturbs has what is committed
// now.
func (r *run) measure(ctx context.Context, kinds []string) {
	began := time.Now()
	disturbed := map[*client]int64{}
	var clients []*client
	for _, c := range r.clients {
		c.mu.Lock()
		spoiled := c.spoiled
		c.mu.Unlock()
		if c.manner != slow && c.following.Load() && !spoiled {
			disturbed[c] = c.disturbed.Load()
			clients = append(clients, c)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, r.config.Patience)
	defer cancel()
	n, err := r.mark(ctx)
	if err != nil {
		r.fail("", breaks(prompt, "after %v, nothing could be committed: %v", kinds, err))
		return
	}
	took := map[*client]time.Duration{}
	missing := r.await(ctx, n, clients, func(c *client, at time.Time) { took[c] = at.Sub(began) }, func(c *client) bool {
		return c.disturbed.Load() == disturbed[c]
	})
	for _, c := range missing {
		took[c] = time.Since(began)
	}
	for c, d := range took {
		if d > r.config.LiveWithin {
			c.mu.Lock()
			c.fail(breaks(prompt, "after %v it was live again only after %v", kinds, d.Round(time.Millisecond)))
			c.mu.Unlock()
		}
	}
	r.tally.measured(kinds, slices.Collect(maps.Values(took)))
	r.happens("all of %d clients had marker %d", len(took), n)
}

// length is that of a fault.
func (r *run) length(rng *rand.Rand) time.Duration {
	longest := int64(r.config.Longest)
	if rng.IntN(3) > 0 {
		longest /= 4 // more short ones than long ones
	}
	return time.Duration(rng.Int64N(longest + 1))
}

func killServer(ctx context.Context, r *run, rng *rand.Rand) error {
	r.db.mu.Lock()
	defer r.db.mu.Unlock()
	if err := r.db.server.Kill(); err != nil {
		return err
	}
	pause(ctx, r.length(rng)/2)
	return r.db.server.Restart(ctx)
}

func restartServer(ctx context.Context, r *run, _ *rand.Rand) error {
	r.db.mu.Lock()
	defer r.db.mu.Unlock()
	return r.db.server.Restart(ctx)
}

func freezeServer(ctx context.Context, r *run, rng *rand.Rand) error {
	r.db.mu.Lock()
	defer r.db.mu.Unlock()
	postmaster := r.db.server.PID()
	if err := syscall.Kill(postmaster, syscall.SIGSTOP); err != nil { // first, so that it starts nobody
		return fmt.Errorf("freeze postgres: %w", err)
	}
	frozen := append(children(postmaster), postmaster)
	defer func() {
		for _, pid := range frozen {
			_ = syscall.Kill(pid, syscall.SIGCONT) // it may have ended
		}
	}()
	for _, pid := range frozen {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended
	}
	pause(ctx, r.length(rng))
	return nil
}

// children are the processes that a process started, on Linux.
func children(pid int) (pids []int) {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	for field := range strings.FieldsSeq(string(list)) {
		if child, err := strconv.Atoi(field); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

func terminateSessions(ctx context.Context, r *run, rng *rand.Rand) error {
	pattern := []string{"trumpet listen%", "trumpet sequencer%", "trumpet pool%", "trumpet%", "trumpet % w1"}[rng.IntN(5)]
	ended := 0
	for range 1 + rng.IntN(4) {
		bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
		var n int
		err := r.db.pool.QueryRow(bounded, `select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
			where application_name like $1`, pattern).Scan(&n)
		cancel()
		if err == nil {
			ended += n
		}
		pause(ctx, time.Duration(rng.IntN(800))*time.Millisecond)
	}
	if ended == 0 {
		return errors.New("no session was there")
	}
	return nil
}

func freezeSession(ctx context.Context, r *run, rng *rand.Rand) error {
	role := []string{"trumpet listen%", "trumpet sequencer%"}[rng.IntN(2)]
	var pid int
	err := r.db.pool.QueryRow(ctx, "select pid from pg_stat_activity where application_name like $1 order by pid limit 1", role).Scan(&pid)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze session: %w", err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }() // it may have ended
	r.happens("%s: process %d is frozen", role, pid)
	pause(ctx, r.length(rng))
	return nil
}

// network changes the weather for one worker, or for all.
func network(of func(*rand.Rand) weather) func(context.Context, *run, *rand.Rand) error {
	return func(ctx context.Context, r *run, rng *rand.Rand) error {
		w := of(rng)
		stations := r.stations
		if rng.IntN(2) == 0 {
			stations = stations[:1]
		}
		for _, s := range stations {
			s.proxy.set(w)
		}
		r.happens("network of %d workers: %+v", len(stations), w)
		pause(ctx, r.length(rng))
		for _, s := range stations {
			s.proxy.set(weather{})
		}
		return nil
	}
}

func killWorker(ctx context.Context, r *run, rng *rand.Rand) error {
	return killStation(ctx, r, r.stations[rng.IntN(len(r.stations))], rng)
}

func killStation(ctx context.Context, r *run, s *station, rng *rand.Rand) error {
	if err := s.worker.Kill(); err != nil {
		return err
	}
	s.end("signal: killed")
	pause(ctx, r.length(rng)/4)
	return s.again(ctx)
}

func restartWorker(ctx context.Context, r *run, rng *rand.Rand) error {
	return restartStation(ctx, r.stations[rng.IntN(len(r.stations))])
}

func restartStation(ctx context.Context, s *station) error {
	stopping, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := s.worker.Stop(stopping); err != nil {
		return err
	}
	s.end("exit status 0")
	return s.again(ctx)
}

func freezeWorker(ctx context.Context, r *run, rng *rand.Rand) error {
	return freezeStation(ctx, r, r.stations[rng.IntN(len(r.stations))], rng)
}

func freezeStation(ctx context.Context, r *run, s *station, rng *rand.Rand) error {
	if err := s.worker.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	pause(ctx, r.length(rng))
	return s.worker.Signal(syscall.SIGCONT)
}
