package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// resumption is what measureResume found.
type resumption struct {
	cpu            time.Duration // of the worker
	before, after  int64         // the worker's resident memory, in bytes
	peak           int64
	pages          int64 // of the log
	connections    int   // to Postgres, the most at once
	failures       []error
	deliveries     int64
	readyWebSocket time.Duration
	readySSE       time.Duration
}

// measureResume lets many clients come back at once from an id that only the log knows. Each must
// get everything after it, once and in order.
func measureResume(ctx context.Context, binary string, clients, events int, settle time.Duration) (err error) {
	if err := allowFiles(clients + 100); err != nil {
		return err
	}
	b, err := newBench(ctx, binary, byTriggers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	since, last, err := b.writeHistory(ctx, events)
	if err != nil {
		return err
	}
	// A worker that starts has only the newest records in memory.
	w, err := b.startWorker(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop()) }()

	result, err := b.resume(ctx, w, clients, since, last, settle)
	if err != nil {
		return err
	}
	var version string
	if err := b.conn.QueryRow(ctx, "show server_version").Scan(&version); err != nil {
		return err
	}
	fmt.Printf("PostgreSQL %s, one worker; %d clients, half WebSocket and half SSE, resume at once from %d events back.\n\n", version, clients, events)
	fmt.Println("| | |")
	fmt.Println("| --- | ---: |")
	for _, row := range [][2]string{
		{"clients", strconv.Itoa(clients)},
		{"events each", strconv.Itoa(events)},
		{"deliveries in all", strconv.FormatInt(result.deliveries, 10)},
		{"clients that missed, doubled or reordered anything", strconv.Itoa(len(result.failures))},
		{"time until the last WebSocket is ready", result.readyWebSocket.Round(10 * time.Millisecond).String()},
		{"time until the last SSE stream is ready", result.readySSE.Round(10 * time.Millisecond).String()},
		{"worker's CPU time", result.cpu.Round(10 * time.Millisecond).String()},
		{"worker's memory before", mebibytes(result.before)},
		{"worker's memory, most", mebibytes(result.peak)},
		{fmt.Sprintf("worker's memory %v after", settle), mebibytes(result.after)},
		{"pages of the log read", strconv.FormatInt(result.pages, 10)},
		{"connections to Postgres, most at once", strconv.Itoa(result.connections)},
	} {
		fmt.Printf("| %s | %s |\n", row[0], row[1])
	}
	if len(result.failures) > 0 {
		return fmt.Errorf("%d of %d clients failed, such as: %w", len(result.failures), clients, result.failures[0])
	}
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// writeHistory commits events, each in its own transaction, and returns the id before them, and
// the last one's position.
func (b *bench) writeHistory(ctx context.Context, events int) (since string, last int64, err error) {
	w, err := b.startWorker(ctx)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	var position int64
	if since, position, err = b.head(ctx); err != nil {
		return "", 0, err
	}
	last = position + int64(events)
	if _, err := b.conn.Exec(ctx, "set synchronous_commit = off"); err != nil {
		return "", 0, err
	}
	_, err = b.conn.Exec(ctx, fmt.Sprintf(`do $$ begin
		for i in 1..%d loop
			update watched set price = price + 1, updated = now() where id = 1 + i %% 1000;
			commit;
		end loop; end $$`, events), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return "", 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for position < last {
		if _, position, err = b.head(ctx); err != nil {
			return "", 0, fmt.Errorf("wait for position %d of the log, it is at %d: %w", last, position, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if position != last {
		return "", 0, fmt.Errorf("the log is at position %d, not %d: somebody else writes", position, last)
	}
	return since, last, nil
}

// head returns the log's newest id.
func (b *bench) head(ctx context.Context) (id string, position int64, err error) {
	var ordinal, tag int32
	row := b.conn.QueryRow(ctx, "select position, last_ordinal, tag from trumpet.head()")
	if err := row.Scan(&position, &ordinal, &tag); err != nil {
		return "", 0, err
	}
	return fmt.Sprintf("%d.%d-%08x", position, ordinal, uint32(tag)), position, nil
}

func (b *bench) resume(ctx context.Context, w *worker, clients int, since string, last int64, settle time.Duration) (*resumption, error) {
	result := &resumption{}
	pid := w.cmd.Process.Pid
	var err error
	if result.before, err = resident(pid); err != nil {
		return nil, err
	}
	cpu, err := cpuTime(pid)
	if err != nil {
		return nil, err
	}
	pages, err := w.counter(ctx, "trumpet_log_pages_total")
	if err != nil {
		return nil, err
	}

	readCtx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var readers sync.WaitGroup
	returning := make([]resumer, clients)
	begun := time.Now()
	for i := range returning {
		r := &returning[i]
		r.sse, r.address, r.since, r.last = i%2 == 1, w.address, since, last
		readers.Go(func() {
			r.err = r.run(readCtx)
			r.ready = time.Since(begun)
		})
	}
	done := make(chan struct{})
	go func() { readers.Wait(); close(done) }()
	if err := b.sample(ctx, pid, result, done); err != nil {
		cancel()
		<-done
		return nil, err
	}
	if result.pages, err = w.counter(ctx, "trumpet_log_pages_total"); err != nil {
		return nil, err
	}
	if result.cpu, err = cpuTime(pid); err != nil {
		return nil, err
	}
	result.pages, result.cpu = result.pages-pages, result.cpu-cpu
	for i := range returning {
		r := &returning[i]
		result.deliveries += r.count
		if r.err != nil {
			result.failures = append(result.failures, fmt.Errorf("client %d after %d events: %w", i, r.count, r.err))
		}
		if r.sse {
			result.readySSE = max(result.readySSE, r.ready)
		} else {
			result.readyWebSocket = max(result.readyWebSocket, r.ready)
		}
	}
	for i := range returning {
		returning[i].close()
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	result.after, err = resident(pid)
	return result, err
}

// sample notes the most memory and connections until done.
func (b *bench) sample(ctx context.Context, pid int, result *resumption, done <-chan struct{}) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		memory, err := resident(pid)
		if err != nil {
			return err
		}
		var connections int
		err = b.conn.QueryRow(ctx, `select count(*) from pg_stat_activity
			where backend_type = 'client backend' and pid <> pg_backend_pid()`).Scan(&connections)
		if err != nil {
			return err
		}
		result.peak, result.connections = max(result.peak, memory), max(result.connections, connections)
		select {
		case <-ticker.C:
		case <-done:
			return nil
		}
	}
}

// counter reads one of the worker's metrics.
func (w *worker) counter(ctx context.Context, name string) (int64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.address+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(io.LimitReader(response.Body, 1<<20))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			return int64(n), err
		}
	}
	return 0, fmt.Errorf("the worker has no metric %s", name)
}
