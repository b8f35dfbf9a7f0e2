package oracle

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Violation is an invariant that did not hold, with the tale of how it came.
type Violation struct {
	Invariant string
	Client    int // -1 if it is no client's
	Who       string
	What      string
	Story     []string // of the client
	Faults    []string
}

// String tells the story.
func (v Violation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s does not hold: %s: %s\n", v.Invariant, v.Who, v.What)
	for _, part := range []struct {
		title string
		lines []string
	}{{"what happened to it", v.Story}, {"faults", v.Faults}} {
		if len(part.lines) == 0 {
			continue
		}
		fmt.Fprintf(&b, "  %s:\n", part.title)
		for _, line := range part.lines {
			fmt.Fprintf(&b, "    %s\n", line)
		}
	}
	return b.String()
}

// Recovery is how soon clients were live again after faults of a kind.
type Recovery struct {
	Times        int // how often it happened
	Samples      int // clients measured
	Median, Most time.Duration
}

// Report is what a run was.
type Report struct {
	Seed       uint64
	Capture    string
	Slots      int64 // replication slots that there were, one after the other
	Took       time.Duration
	Rests      int64
	Clients    int
	Workers    int
	Violations []Violation

	Committed, Aborted, Unknown   int64 // transactions; unknown are those whose writers never learnt
	Events                        int64 // in the log
	Received, Compared, Bulks     int64 // by clients; compared one by one with the log
	Connections, Resumes          int64
	FromRing, FromLog             int64 // resumes, as workers that still run counted them
	Vanished                      int64
	Boards                        int
	Snapshots, Moves              int64 // by boards: of a topic; rows that entered or left a filter
	Wishes, Refused               int64 // subscribe frames that were granted, and not
	Results, ResultsCompared      int64
	Answered                      Recovery // how soon after a storm live queries were right
	Resets, Endings               map[string]int
	Faults                        map[string]Recovery
	MostHeap, MostRSS, Goroutines float64
	Logs                          []string // of each worker the end, if there are violations
}

// tally counts what the report tells.
type tally struct {
	committed, aborted, unknown atomic.Int64
	events, compared, bulks     atomic.Int64
	connections, resumes, rests atomic.Int64
	vanished                    atomic.Int64
	snapshots, moves, wishes    atomic.Int64
	refused                     atomic.Int64
	results, resultsCompared    atomic.Int64
	slots                       atomic.Int64

	answers         []time.Duration // how soon after a storm live queries were right
	mu              sync.Mutex
	resets, endings map[string]int
	times           map[string]int
	samples         map[string][]time.Duration
	heap, rss, goes float64
	resumed         map[sighting][2]float64 // from the ring, from the log
}

func bump(counts *map[string]int, name string) {
	if *counts == nil {
		*counts = map[string]int{}
	}
	(*counts)[name]++
}

func (t *tally) reset(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	bump(&t.resets, reason)
}

func (t *tally) ending(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	bump(&t.endings, name)
}

func (t *tally) measured(kinds []string, took []time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.samples == nil {
		t.samples = map[string][]time.Duration{}
	}
	for _, kind := range kinds {
		bump(&t.times, kind)
		t.samples[kind] = append(t.samples[kind], took...)
	}
}

func (t *tally) answered(after time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.answers = append(t.answers, after)
}

func (t *tally) scraped(at sighting, metrics map[string]float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.resumed == nil {
		t.resumed = map[sighting][2]float64{}
	}
	t.resumed[at] = [2]float64{metrics[`trumpet_resumes_total{from="ring"}`], metrics[`trumpet_resumes_total{from="log"}`]}
	t.heap = max(t.heap, metrics["go_memstats_heap_inuse_bytes"])
	t.rss = max(t.rss, metrics["process_resident_memory_bytes"])
	t.goes = max(t.goes, metrics["go_goroutines"])
}

func (r *run) report() Report {
	r.mu.Lock()
	violations := slices.Clone(r.violations)
	r.mu.Unlock()
	r.truth.mu.Lock()
	positions := int64(len(r.truth.places))
	r.truth.mu.Unlock()
	t := &r.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	recoveries := map[string]Recovery{}
	for kind, times := range t.times {
		recoveries[kind] = recovery(times, t.samples[kind])
	}
	var ring, log float64
	for _, n := range t.resumed {
		ring, log = ring+n[0], log+n[1]
	}
	var logs []string
	for _, s := range r.stations {
		if len(violations) > 0 {
			logs = append(logs, s.worker.Log.Tail(40_000))
		}
	}
	return Report{
		Logs: logs, FromRing: int64(ring), FromLog: int64(log),
		Boards: r.config.Boards, Snapshots: t.snapshots.Load(), Moves: t.moves.Load(), Wishes: t.wishes.Load(), Refused: t.refused.Load(),
		Results: t.results.Load(), ResultsCompared: t.resultsCompared.Load(), Answered: recovery(len(t.answers), t.answers),
		Seed: r.config.Seed, Capture: r.config.Capture, Slots: t.slots.Load(), Took: time.Since(r.begun), Rests: t.rests.Load(), Clients: len(r.clients), Workers: len(r.stations),
		Violations: violations,
		Committed:  t.committed.Load(), Aborted: t.aborted.Load(), Unknown: t.unknown.Load(),
		Events: positions, Received: t.events.Load(), Compared: t.compared.Load(), Bulks: t.bulks.Load(),
		Connections: t.connections.Load(), Resumes: t.resumes.Load(), Vanished: t.vanished.Load(),
		Resets: maps.Clone(t.resets), Endings: maps.Clone(t.endings), Faults: recoveries,
		MostHeap: t.heap, MostRSS: t.rss, Goroutines: t.goes,
	}
}

func recovery(times int, took []time.Duration) Recovery {
	sorted := slices.Sorted(slices.Values(took))
	r := Recovery{Times: times, Samples: len(sorted)}
	if n := len(sorted); n > 0 {
		r.Median, r.Most = sorted[n/2], sorted[n-1]
	}
	return r
}

// Line is the report in one line.
func (r Report) Line() string {
	broken := 0
	for _, f := range r.Faults {
		broken += f.Times
	}
	return fmt.Sprintf("%v: %d transactions, %d positions, %d events received, %d connections, %d resumes, %d snapshots, %d results, %d faults, %d violations",
		r.Took.Round(time.Second), r.Committed, r.Events, r.Received, r.Connections, r.Resumes, r.Snapshots, r.Results, broken, len(r.Violations))
}

// Markdown is the report as tables.
func (r Report) Markdown() string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", name, fmt.Sprintf(format, args...))
	}
	b.WriteString("| | |\n| --- | --- |\n")
	row("violations", "%d", len(r.Violations))
	row("duration", "%v", r.Took.Round(time.Second))
	row("seed", "%d", r.Seed)
	row("capture; replication slots, one after the other", "%s; %d", r.Capture, r.Slots)
	row("workers, clients, of them with filters and snapshots", "%d, %d, %d", r.Workers, r.Clients, r.Boards)
	row("comparisons with the log, of all clients", "%d", r.Rests)
	row("transactions committed, aborted, of unknown outcome", "%d, %d, %d", r.Committed, r.Aborted, r.Unknown)
	row("positions in the log", "%d", r.Events)
	row("events received by clients; of them bulk", "%d; %d", r.Received, r.Bulks)
	row("connections made; vanished without closing", "%d; %d", r.Connections, r.Vanished)
	row("resumes; of those that workers could still tell at a rest, from memory and from the log", "%d; %d, %d", r.Resumes, r.FromRing, r.FromLog)
	row("snapshots of a table given to clients; rows that entered or left a filter", "%d; %d", r.Snapshots, r.Moves)
	row("subscribe and unsubscribe frames granted, refused for now", "%d, %d", r.Wishes, r.Refused)
	row("results of live queries received; compared with a SELECT at rest", "%d; %d", r.Results, r.ResultsCompared)
	row("live queries right after a storm's end: median, most", "%v, %v", r.Answered.Median.Round(time.Millisecond), r.Answered.Most.Round(time.Millisecond))
	row("resets", "%s", counts(r.Resets))
	row("endings", "%s", counts(r.Endings))
	row("most heap, resident memory and goroutines of a worker at rest", "%.0f MB, %.0f MB, %.0f", r.MostHeap/1e6, r.MostRSS/1e6, r.Goroutines)
	b.WriteString("\n| fault | times | live again: median | most |\n| --- | ---: | ---: | ---: |\n")
	for _, kind := range slices.Sorted(maps.Keys(r.Faults)) {
		f := r.Faults[kind]
		fmt.Fprintf(&b, "| %s | %d | %v | %v |\n", kind, f.Times, f.Median.Round(time.Millisecond), f.Most.Round(time.Millisecond))
	}
	return b.String()
}

func counts(of map[string]int) string {
	if len(of) == 0 {
		return "none"
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		all = append(all, fmt.Sprintf("%s %d", name, of[name]))
	}
	return strings.Join(all, ", ")
}
