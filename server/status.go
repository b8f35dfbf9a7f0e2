package server

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/julienschmidt/httprouter"
)

const (
	// censusAge is how old other workers' answers may be: however often the status is
	// asked for, the bus is asked once in this time.
	censusAge     = time.Second
	censusTimeout = 3 * time.Second
)

// workerStatus is what one worker tells of itself.
type workerStatus struct {
	Name        string `json:"name"`
	Boards      int64  `json:"boards"`  // WebSockets
	Streams     int64  `json:"streams"` // SSE
	Connected   bool   `json:"connected"`
	Head        string `json:"head"`
	LastHeardMS int64  `json:"last_heard_ms"` // since Postgres was heard; -1: never
	Sequencing  bool   `json:"sequencing"`
	Lagging     int64  `json:"lagging"`
	Version     string `json:"version"`

	WAL *walStatus `json:"wal,omitempty"` // of the WAL capture; missing without it
}

// walStatus is the replication slot, which is one for all workers.
type walStatus struct {
	Slot     string `json:"slot"`  // empty: it is yet to be made
	State    string `json:"state"` // Postgres's wal_status, or gone
	Retained int64  `json:"retained_bytes"`
	Lag      int64  `json:"lag_bytes"`
	Safe     *int64 `json:"safe_bytes,omitempty"` // missing: nothing bounds what it retains
}

type clusterStatus struct {
	Worker   workerStatus   `json:"worker"`
	Workers  []workerStatus `json:"workers"`
	Alive    int            `json:"alive"`
	Answered int            `json:"answered"`
	Boards   int64          `json:"boards"`
	Streams  int64          `json:"streams"`
}

func (s *Server) local() workerStatus {
	bus, stats := s.config.Cluster.Status(), s.config.Hub.Stats()
	heard := int64(-1)
	if !bus.LastHeard.IsZero() {
		heard = max(0, time.Since(bus.LastHeard).Milliseconds())
	}
	var wal *walStatus
	if bus.WALWanted || bus.WALSlot != "" {
		wal = &walStatus{Slot: bus.WALSlot, State: bus.WALState, Retained: bus.WALRetained, Lag: bus.WALLag}
		if bus.WALSafe >= 0 && bus.WALSlot != "" {
			wal.Safe = &bus.WALSafe
		}
	}
	return workerStatus{
		WAL:         wal,
		Name:        s.config.Worker,
		Boards:      stats.WebSockets,
		Streams:     stats.Streams,
		Connected:   bus.Connected,
		Head:        bus.Head.String(),
		LastHeardMS: heard,
		Sequencing:  bus.Sequencing,
		Lagging:     stats.Lagging,
		Version:     s.config.Version,
	}
}

// Answer is what this worker tells others that ask over the bus.
func (s *Server) Answer() json.RawMessage {
	answer, err := json.Marshal(s.local())
	if err != nil {
		return json.RawMessage("null") // cannot be: strings and numbers
	}
	return answer
}

func (s *Server) status(w http.ResponseWriter, r *http.Request, _ httprouter.Params) {
	workers, alive := s.census.take(r.Context(), s.config.Cluster)
	status := clusterStatus{Worker: s.local(), Workers: workers, Alive: alive}
	status.Answered = len(workers)
	if len(workers) == 0 {
		// The bus could not be asked; this worker at least is there.
		status.Workers, status.Alive = []workerStatus{status.Worker}, 1
	}
	for i := range status.Workers {
		status.Boards += status.Workers[i].Boards
		status.Streams += status.Workers[i].Streams
	}
	writeJSON(w, status)
}

// census is the newest answers of all workers.
type census struct {
	mu      sync.Mutex
	taken   time.Time
	asking  chan struct{} // closed when the answers are there; nil while nobody asks
	workers []workerStatus
	alive   int
}

// take returns the answers of all workers, asking for them if they are old. All who come
// meanwhile share one question. Who asks does so for all, so its own going away does not
// end it.
func (c *census) take(ctx context.Context, cluster Cluster) ([]workerStatus, int) {
	c.mu.Lock()
	if c.asking != nil {
		asking := c.asking
		c.mu.Unlock()
		select {
		case <-asking:
		case <-ctx.Done():
		}
		c.mu.Lock()
	} else if time.Since(c.taken) >= censusAge {
		asking := make(chan struct{})
		c.asking = asking
		c.mu.Unlock()
		workers, alive := ask(context.WithoutCancel(ctx), cluster)
		c.mu.Lock()
		c.workers, c.alive, c.taken, c.asking = workers, alive, time.Now(), nil
		close(asking)
	}
	defer c.mu.Unlock()
	return slices.Clone(c.workers), c.alive
}

func ask(ctx context.Context, cluster Cluster) ([]workerStatus, int) {
	ctx, cancel := context.WithTimeout(ctx, censusTimeout)
	defer cancel()
	answers, alive, err := cluster.Ask(ctx)
	if err != nil {
		return nil, 0 // this worker's own status says that the bus is not connected
	}
	workers := make([]workerStatus, 0, len(answers))
	for _, answer := range answers {
		var w workerStatus
		// Another version's answer may lack members, or have more.
		if json.Unmarshal(answer, &w) == nil && w.Name != "" {
			workers = append(workers, w)
		}
	}
	slices.SortFunc(workers, func(a, b workerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return workers, alive
}
