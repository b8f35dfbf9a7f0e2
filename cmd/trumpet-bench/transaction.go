package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// transaction says how one huge transaction is measured.
type transaction struct {
	rows, rounds   int
	interval, rest time.Duration
}

// hugeRun is what one huge transaction did.
type hugeRun struct {
	statement, commit time.Duration
	event             time.Duration // from the commit's return until the last client had the bulk event
	atRest, meanwhile others

	resident, heap         usage
	worker, sender, server time.Duration // processor time, until the event was there
}

// hugeWays are how the table is watched. The first is not watched at all.
var hugeWays = []struct {
	title string
	by    capture
}{{"unwatched", ""}, {"triggers", byTriggers}, {"WAL", byWAL}}

const (
	hugeTopic  = "huge"
	otherTopic = "other"
)

// measureTransaction inserts many rows in one transaction into a table, while another topic goes on getting an event
// now and then, in turn from a trigger and from trumpet.broadcast.
func measureTransaction(ctx context.Context, binary string, t transaction) (err error) {
	b, err := startBench(ctx, binary, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if _, err := b.conn.Exec(ctx, "create table other (id int primary key, note text)"); err != nil {
		return err
	}
	if err := b.watch(ctx, otherTopic, byTriggers); err != nil {
		return err
	}
	runs := make(map[string][]hugeRun)
	for round := range t.rounds {
		order := slices.Clone(hugeWays)
		if round%2 == 1 { // so that whatever changes with time hits all alike
			slices.Reverse(order)
		}
		for _, way := range order {
			r, err := b.huge(ctx, t, way.by)
			if err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, way.title, err)
			}
			runs[way.title] = append(runs[way.title], r)
		}
	}
	var version string
	if err := b.conn.QueryRow(ctx, "show server_version").Scan(&version); err != nil {
		return err
	}
	t.print(version, runs)
	return nil
}

// huge measures once, with a table and a worker of its own.
func (b *bench) huge(ctx context.Context, t transaction, by capture) (r hugeRun, err error) {
	for _, statement := range []string{
		"truncate other",
		"create table huge (id int primary key, status text, price numeric(10,2), title text, updated timestamptz)",
		"checkpoint", // not in the middle
	} {
		if _, err := b.conn.Exec(ctx, statement); err != nil {
			return r, err
		}
	}
	if by != "" {
		if err := b.watch(ctx, hugeTopic, by); err != nil {
			return r, err
		}
	}
	defer func() {
		if err != nil {
			return // the server ends next
		}
		_, err = b.conn.Exec(ctx, "drop table huge")
	}()
	w, err := b.startWorker(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	if by == byWAL {
		if err := b.awaitSlot(ctx); err != nil {
			return r, err
		}
	}
	if err := b.awaitSequenced(ctx); err != nil {
		return r, err
	}
	clients := gather(ctx, []*worker{w}, 2, hugeTopic, otherTopic)
	defer clients.leave()
	if err := clients.ready(ctx, false); err != nil {
		return r, err
	}
	clients.forget()
	if r, err = b.hugeBeside(ctx, t, by != "", w, clients); err != nil || by != byWAL {
		return r, err
	}
	if _, err := b.conn.Exec(ctx, "select trumpet.unwatch('huge')"); err != nil {
		return r, err
	}
	return r, b.awaitNoSlot(ctx)
}

// hugeBeside runs the transaction, and beside it the commits to the other topic.
func (b *bench) hugeBeside(ctx context.Context, t transaction, told bool, w *worker, clients *crowd) (r hugeRun, err error) {
	pid := w.cmd.Process.Pid
	conn, err := b.connect(ctx, "bench")
	if err != nil {
		return r, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	o := &otherWriter{conn: conn, interval: t.interval}
	o.start(ctx)
	h := &heapWatch{worker: w}
	defer func() { err = errors.Join(err, o.stop(), h.stop()) }()
	if err := sleep(ctx, t.rest); err != nil {
		return r, err
	}

	if err := forgetMostResident(pid); err != nil {
		return r, err
	}
	if r.resident.before, err = resident(pid); err != nil {
		return r, err
	}
	if r.heap.before, err = h.start(ctx); err != nil {
		return r, err
	}
	sender, err := b.sender(ctx)
	if err != nil {
		return r, err
	}
	senderCPU, err := sender.cpu()
	if err != nil {
		return r, err
	}
	mark, err := b.mark([]*worker{w})
	if err != nil {
		return r, err
	}
	began := time.Now()
	if _, err := b.conn.Exec(ctx, "begin"); err != nil {
		return r, err
	}
	if _, err := b.conn.Exec(ctx, fmt.Sprintf("insert into huge select g, 'open', g, 'Boiler service at number ' || g, now() from generate_series(1, %d) g", t.rows)); err != nil {
		return r, err
	}
	inserted := time.Now()
	if _, err := b.conn.Exec(ctx, "commit"); err != nil {
		return r, err
	}
	committed := time.Now()
	r.statement, r.commit = inserted.Sub(began), committed.Sub(inserted)
	if told {
		if err := clients.await(ctx, "the bulk event", func(w *watcher) bool { return len(w.arrivals[hugeTopic]) > 0 }); err != nil {
			return r, err
		}
	}
	over := time.Now()
	used, err := b.since(mark)
	if err != nil {
		return r, err
	}
	senderNow, err := sender.cpu()
	if err != nil {
		return r, fmt.Errorf("the slot's reader is another one now: %w", err)
	}
	r.worker, r.server, r.sender = used.wCPU, used.pgCPU, senderNow-senderCPU

	if err := sleep(ctx, t.rest); err != nil { // what else would come of it comes
		return r, err
	}
	if err := errors.Join(o.stop(), h.stop()); err != nil {
		return r, err
	}
	r.heap.most = h.most
	if r.resident.most, err = mostResident(pid); err != nil {
		return r, err
	}
	if err := locate(ctx, clients, otherTopic, o.commits); err != nil {
		return r, err
	}
	if err := clients.inOrder(otherTopic, len(o.commits)); err != nil {
		return r, err
	}
	if told {
		if r.event, err = clients.oneBulk(t.rows, committed); err != nil {
			return r, err
		}
		over = committed.Add(max(0, r.event))
	}
	r.atRest, r.meanwhile = o.waits(clients, began.Add(-t.rest), began.Add(-t.interval)), o.waits(clients, began, over)
	return r, nil
}

// oneBulk checks that every client has one event of the huge transaction and no more, and returns how long the last
// one waited for it.
func (c *crowd) oneBulk(rows int, committed time.Time) (longest time.Duration, err error) {
	for i, w := range c.watchers {
		w.mu.Lock()
		got, message := w.arrivals[hugeTopic], w.last[hugeTopic]
		w.mu.Unlock()
		if len(got) != 1 {
			return 0, fmt.Errorf("client %d was given %d events of one transaction, the last of them %.400s", i, len(got), message)
		}
		var event struct {
			Op, Statement string
			Rows          int
		}
		if err := json.Unmarshal([]byte(message), &event); err != nil {
			return 0, fmt.Errorf("client %d: %w", i, err)
		}
		if event.Op != "bulk" || event.Statement != "insert" || event.Rows != rows {
			return 0, fmt.Errorf("client %d was given %.400s", i, message)
		}
		longest = max(longest, got[0].at.Sub(committed))
	}
	return longest, nil
}

func (t transaction) print(version string, runs map[string][]hugeRun) {
	fmt.Printf("PostgreSQL %s, one worker with two clients, one transaction that inserts %s rows, medians of %d rounds, of memory the most. Each client was given one bulk event for the transaction, and every event of the other topic, in order.\n\n",
		version, thousands(float64(t.rows)), t.rounds)
	seconds := func(of func(r hugeRun) time.Duration) hugeValue {
		return func(all []hugeRun) string { return ratio(middle(all, of).Seconds()) }
	}
	printHuge(runs, []hugeColumn{
		{"insert s", seconds(func(r hugeRun) time.Duration { return r.statement })},
		{"commit ms", func(all []hugeRun) string {
			return tenths(milliseconds(middle(all, func(r hugeRun) time.Duration { return r.commit })))
		}},
		{"commit to bulk event ms", func(all []hugeRun) string {
			if took := middle(all, func(r hugeRun) time.Duration { return r.event }); took != 0 {
				return tenths(milliseconds(took))
			}
			return "" // nobody watches it
		}},
		{"worker CPU s", seconds(func(r hugeRun) time.Duration { return r.worker })},
		{"Postgres CPU s", seconds(func(r hugeRun) time.Duration { return r.server })},
		{"walsender's part of it", seconds(func(r hugeRun) time.Duration { return r.sender })},
		{"worker's memory MiB", mostUsed(func(r hugeRun) int64 { return r.resident.before })},
		{"most", mostUsed(func(r hugeRun) int64 { return r.resident.most })},
		{"its Go heap MiB", mostUsed(func(r hugeRun) int64 { return r.heap.before })},
		{"most", mostUsed(func(r hugeRun) int64 { return r.heap.most })},
	})
	fmt.Printf("\nAnother topic has an event every %v, in turn from a trigger and from trumpet.broadcast. From its commit's return until a client has it, ms; the longest of all rounds:\n\n", t.interval)
	wait := func(of func(r hugeRun) time.Duration) hugeValue {
		return func(all []hugeRun) string { return tenths(milliseconds(middle(all, of))) }
	}
	longest := func(of func(r hugeRun) time.Duration) hugeValue {
		return func(all []hugeRun) string {
			return tenths(milliseconds(of(slices.MaxFunc(all, func(x, y hugeRun) int { return cmp.Compare(of(x), of(y)) }))))
		}
	}
	printHuge(runs, []hugeColumn{
		{"before: p50", wait(func(r hugeRun) time.Duration { return r.atRest.p50 })},
		{"longest", longest(func(r hugeRun) time.Duration { return r.atRest.longest })},
		{"meanwhile: p50", wait(func(r hugeRun) time.Duration { return r.meanwhile.p50 })},
		{"longest", longest(func(r hugeRun) time.Duration { return r.meanwhile.longest })},
		{"longest, from the commit's intended time", longest(func(r hugeRun) time.Duration { return r.meanwhile.longestFromDue })},
	})
}

// hugeColumn is a column of a table with a line for each way to watch.
type hugeColumn struct {
	title string
	value hugeValue
}

// hugeValue is what all rounds together are shown as.
type hugeValue func(all []hugeRun) string

func printHuge(runs map[string][]hugeRun, columns []hugeColumn) {
	titles := []string{""}
	for _, c := range columns {
		titles = append(titles, c.title)
	}
	fmt.Println("| " + strings.Join(titles, " | ") + " |")
	fmt.Println("| ---" + strings.Repeat(" | ---:", len(columns)) + " |")
	for _, way := range hugeWays {
		cells := []string{way.title}
		for _, c := range columns {
			cells = append(cells, c.value(runs[way.title]))
		}
		fmt.Println("| " + strings.Join(cells, " | ") + " |")
	}
}

func middle(all []hugeRun, of func(r hugeRun) time.Duration) time.Duration {
	values := make([]time.Duration, len(all))
	for i, r := range all {
		values[i] = of(r)
	}
	return quantiles(values, 0.5)[0]
}

func mostUsed(of func(r hugeRun) int64) hugeValue {
	return func(all []hugeRun) string {
		return tenths(float64(of(slices.MaxFunc(all, func(x, y hugeRun) int { return cmp.Compare(of(x), of(y)) }))) / (1 << 20))
	}
}
