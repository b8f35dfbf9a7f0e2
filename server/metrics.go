package server

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics serves what Prometheus scrapes. Nothing is counted for it: it reads the hub's and
// the bus's own counters when it is asked.
func (s *Server) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collector{s},
	)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("trumpet_"+name, help, labels, nil)
}

var (
	descInfo        = describe("info", "Always 1; says which worker and version this is.", "worker", "version")
	descConnections = describe("connections", "Clients connected.", "transport")
	descLagging     = describe("lagging_connections", "Clients that have not taken all that they were given.")
	descLagged      = describe("lags_total", "How often a client began to lag.")
	descEvents      = describe("events_total", "Events that came from the bus.")
	descDeliveries  = describe("deliveries_total", "Events written to clients.")
	descBytes       = describe("sent_bytes_total", "Bytes written to clients.")
	descWrites      = describe("writes_total", "Write system calls to clients.")
	descEndings     = describe("endings_total", "Clients sent away, by reason.", "ending")
	descRefused     = describe("refused_total", "Newcomers for whom there was no place, by bound.", "bound")
	descGateWaits   = describe("accept_waits_total", "How often newcomers had to wait because too many connections were no clients.")
	descResets      = describe("resets_total", "Clients told to fetch their state anew, by reason.", "reason")
	descResumes     = describe("resumes_total", "Clients that came back and missed nothing, by where that was read.", "from")
	descLogPages    = describe("log_pages_total", "Pages of the log read for clients that came back.")
	descSnapshots   = describe("snapshots_total", "Snapshots read from tables.")
	descSnapClients = describe("snapshot_clients_total", "Clients that were given a snapshot; those who asked for the same at about the same time share one.")
	descRingEvents  = describe("ring_events", "Recent events in memory.")
	descRingBytes   = describe("ring_bytes", "Memory that recent events are estimated to take.")
	descBus         = describe("bus_connected", "1 while this worker hears Postgres.")
	descHeard       = describe("bus_last_heard_seconds", "How long ago Postgres was heard.")
	descPosition    = describe("bus_position", "The log's position that this worker has reached.")
	descSequencing  = describe("bus_sequencing", "1 while this worker has sequencer duty.")
	descQueue       = describe("bus_queue_usage", "How much of Postgres's notification queue is taken, from 0 to 1.")
	descWALRetained = describe("bus_wal_retained_bytes", "WAL that the replication slot keeps from being removed; missing without a slot.")
	descWALLag      = describe("bus_wal_lag_bytes", "WAL that the slot's reader has not confirmed; missing without a slot.")
	descWALSafe     = describe("bus_wal_safe_bytes", "WAL that can be written until Postgres gives the slot up (max_slot_wal_keep_size); missing if nothing bounds it.")
	descReconnects  = describe("bus_reconnects_total", "How often the listening session was lost.")
	descSteps       = describe("bus_steps_total", "Steps of the sequencer that this worker made.")
	descSequenced   = describe("bus_sequenced_total", "Records that this worker gave a position.")
	descGaps        = describe("bus_gaps_total", "How often notifications were missing and the log was read instead.")
	descLogReads    = describe("bus_log_reads_total", "Pages read from the log, for the bus itself and for clients.")
	descRewinds     = describe("bus_rewinds_total", "How often the log had lost what was given already.")
	descForged      = describe("bus_forged_total", "Notifications that nobody entitled had signed, dropped.")
	descMalformed   = describe("bus_malformed_total", "Lines and rows that could not be understood; a bulk event was given, or the log read, instead.")
	descDropped     = describe("bus_dropped_total", "Raw notifications that were dropped: no room, no valid event, or nobody there yet.")
	descPruned      = describe("bus_pruned_total", "Records that this worker pruned.")

	descLiveRunning    = describe("live_running", "1 while this worker runs the live queries of all.")
	descLiveRuns       = describe("live_runs_total", "Runs of live queries, and reads of live aggregates, by this worker.")
	descLiveFailures   = describe("live_failures_total", "Those that failed or took too long.")
	descLivePublished  = describe("live_published_total", "Results of live queries that this worker published.")
	descLiveUnchanged  = describe("live_unchanged_total", "Results that were what was published before.")
	descLiveRecomputes = describe("live_recomputes_total", "Live aggregates read anew, because what changed could not be followed.")
	descLiveRepairs    = describe("live_repairs_total", "Live aggregates that were found to differ from their table, and repaired.")
)

type collector struct{ server *Server }

// Describe says nothing, which leaves Collect free: nothing is read before it is asked for.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	count := func(desc *prometheus.Desc, value uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	config := &c.server.config
	stats, bus := config.Hub.Stats(), config.Cluster.Status()

	gauge(descInfo, 1, config.Worker, config.Version)
	gauge(descConnections, float64(stats.WebSockets), "websocket")
	gauge(descConnections, float64(stats.Streams), "sse")
	gauge(descLagging, float64(stats.Lagging))
	count(descLagged, stats.Lagged)
	count(descEvents, stats.Events)
	count(descDeliveries, stats.Deliveries)
	count(descBytes, stats.Bytes)
	count(descWrites, stats.Writes)
	for ending, n := range stats.Endings {
		count(descEndings, n, ending)
	}
	count(descRefused, c.server.places.full.Load(), "total")
	count(descRefused, c.server.places.crowded.Load(), "address")
	if gate := c.server.gate.Load(); gate != nil {
		count(descGateWaits, gate.waits.Load())
	}
	for reason, n := range stats.Resets {
		count(descResets, n, string(reason))
	}
	count(descResumes, stats.ResumesFromRing, "ring")
	count(descResumes, stats.ResumesFromLog, "log")
	count(descLogPages, stats.LogPages)
	count(descSnapshots, stats.Snapshots)
	count(descSnapClients, stats.SnapshotClients)
	gauge(descRingEvents, float64(stats.RingEvents))
	gauge(descRingBytes, float64(stats.RingBytes))
	gauge(descBus, flag(bus.Connected))
	if !bus.LastHeard.IsZero() {
		gauge(descHeard, time.Since(bus.LastHeard).Seconds())
	}
	gauge(descPosition, float64(bus.Head.Position))
	gauge(descSequencing, flag(bus.Sequencing))
	gauge(descQueue, bus.QueueUsage)
	if bus.WALSlot != "" {
		gauge(descWALRetained, float64(bus.WALRetained))
		gauge(descWALLag, float64(bus.WALLag))
		if bus.WALSafe >= 0 {
			gauge(descWALSafe, float64(bus.WALSafe))
		}
	}
	gauge(descLiveRunning, flag(bus.LiveRunning))
	for desc, n := range map[*prometheus.Desc]int64{
		descReconnects: bus.Reconnects, descSteps: bus.Steps, descSequenced: bus.Sequenced, descGaps: bus.Gaps,
		descLogReads: bus.LogReads, descRewinds: bus.Rewinds, descForged: bus.Forged, descMalformed: bus.Malformed,
		descDropped: bus.Dropped, descPruned: bus.Pruned,
		descLiveRuns: bus.LiveRuns, descLiveFailures: bus.LiveFailures, descLivePublished: bus.LivePublished,
		descLiveUnchanged: bus.LiveUnchanged, descLiveRecomputes: bus.LiveRecomputes, descLiveRepairs: bus.LiveRepairs,
	} {
		count(desc, uint64(n))
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
