package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// ingestRound is what one number of workers did in one round.
type ingestRound struct {
	commits  float64 // a second, as the writers saw it
	through  float64 // a second, until the clients had the last one
	behind   float64 // seconds that the clients were behind at the writers' end
	step     float64 // µs of the sequencer's function for each record
	records  float64 // for each step that found any
	workers  float64 // µs of the workers' processor time for each record
	postgres float64 // µs of Postgres's, everything included
	sender   float64 // µs of these that the slot's reader took
}

// measureIngest lets pgbench write as fast as it can, and sees how fast workers sequence, hear, decode and give that
// to the clients of one of them.
func measureIngest(ctx context.Context, binary string, in ingest) (err error) {
	b, err := startBench(ctx, binary, map[string]string{"track_functions": "pl"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.prepare(ctx, in.by); err != nil {
		return err
	}
	scripts, err := writeScripts()
	if err != nil {
		return err
	}
	defer os.RemoveAll(scripts)
	rounds := make(map[int][]ingestRound)
	for range in.rounds {
		for _, n := range in.workers {
			r, err := b.ingest(ctx, in, n, filepath.Join(scripts, "watched"))
			if err != nil {
				return fmt.Errorf("with %d workers: %w", n, err)
			}
			rounds[n] = append(rounds[n], r)
		}
	}
	var version string
	if err := b.conn.QueryRow(ctx, "show server_version").Scan(&version); err != nil {
		return err
	}
	fmt.Printf("PostgreSQL %s, %d writers for %v to a table watched by %s, %d WebSocket clients on one of the workers, medians of %d rounds. Nobody missed an event or got one twice.\n\n",
		version, in.writers, in.length, in.by.title(), in.clients, in.rounds)
	fmt.Println("| workers | commits/s | commits/s to the clients | behind at the end s | sequencer µs/commit | commits/step | workers CPU µs/commit | Postgres CPU µs/commit | walsender's part of it |")
	fmt.Println("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, n := range in.workers {
		value := func(of func(r ingestRound) float64) float64 {
			var values []float64
			for _, r := range rounds[n] {
				values = append(values, of(r))
			}
			return median(values)
		}
		fmt.Printf("| %d | %s | %s | %s | %s | %s | %s | %s | %s |\n", n,
			thousands(value(func(r ingestRound) float64 { return r.commits })), thousands(value(func(r ingestRound) float64 { return r.through })),
			ratio(value(func(r ingestRound) float64 { return r.behind })), tenths(value(func(r ingestRound) float64 { return r.step })),
			tenths(value(func(r ingestRound) float64 { return r.records })), tenths(value(func(r ingestRound) float64 { return r.workers })),
			tenths(value(func(r ingestRound) float64 { return r.postgres })), tenths(value(func(r ingestRound) float64 { return r.sender })))
	}
	return nil
}

// stepped is what steps have done so far, in all sessions that have told.
type stepped struct {
	calls int64
	time  float64 // ms, with what it took to write down what was read from the WAL
}

func (b *bench) stepped(ctx context.Context) (s stepped, err error) {
	err = b.conn.QueryRow(ctx, `select coalesce(sum(calls) filter (where funcname <> 'wal_append'), 0), coalesce(sum(total_time), 0)
		from pg_stat_user_functions where schemaname = 'trumpet' and funcname in ('sequence', 'sequence_until', 'wal_append')`).Scan(&s.calls, &s.time)
	return s, err
}

func (b *bench) ingest(ctx context.Context, in ingest, workers int, script string) (r ingestRound, err error) {
	var all []*worker
	defer func() {
		for _, w := range all {
			err = errors.Join(err, w.stop())
		}
	}()
	for range workers {
		w, err := b.startWorker(ctx)
		if err != nil {
			return r, err
		}
		all = append(all, w)
	}
	if in.by == byWAL {
		if err := b.awaitSlot(ctx); err != nil {
			return r, err
		}
	}
	sender, err := b.sender(ctx)
	if err != nil {
		return r, err
	}
	senderCPU, err := sender.cpu()
	if err != nil {
		return r, err
	}
	before, err := b.stepped(ctx)
	if err != nil {
		return r, err
	}
	s, head, err := b.listen(ctx, all[0].address, audience{clients: in.clients, topics: []string{"watched"}, messages: committed})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	from, err := b.mark(all)
	if err != nil {
		return r, err
	}
	done, err := b.pgbench(ctx, script, in.writers, int(in.length.Seconds()))
	if err != nil {
		return r, err
	}
	r.commits = done.tps
	written, records := time.Now(), done.commits
	for s.total.Load() < records*int64(in.clients) {
		if err := errors.Join(s.failed(), sleep(ctx, 2*time.Millisecond)); err != nil {
			return r, err
		}
		if time.Since(written) > 2*time.Minute {
			return r, fmt.Errorf("%d of %d deliveries came", s.total.Load(), records*int64(in.clients))
		}
	}
	finished := time.Now()
	_, now, err := b.head(ctx)
	if err != nil {
		return r, err
	}
	if now-head != records {
		return r, fmt.Errorf("%d commits are %d positions of the log", records, now-head)
	}
	if err := s.complete(now); err != nil {
		return r, err
	}
	used, err := b.since(from)
	if err != nil {
		return r, err
	}
	senderNow, err := sender.cpu()
	if err != nil {
		return r, err
	}
	// A session tells its statistics when it has been idle for a second (PostgreSQL manual, 28.2).
	after := before
	for end := time.Now().Add(10 * time.Second); after.calls == before.calls && time.Now().Before(end); {
		if err := sleep(ctx, 1500*time.Millisecond); err != nil {
			return r, err
		}
		if after, err = b.stepped(ctx); err != nil {
			return r, err
		}
	}
	n := float64(records)
	r.through = n / finished.Sub(from.at).Seconds()
	r.behind = finished.Sub(written).Seconds()
	r.step, r.records = 1000*(after.time-before.time)/n, n/float64(max(after.calls-before.calls, 1))
	r.workers, r.postgres = float64(used.wCPU.Microseconds())/n, float64(used.pgCPU.Microseconds())/n
	r.sender = float64((senderNow - senderCPU).Microseconds()) / n
	return r, nil
}

// begin says which message is the last before the first that clients get.
func (s *sink) begin(number int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.conns {
		s.conns[i].last = number
	}
}
