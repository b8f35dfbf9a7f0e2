package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// writes says how it is measured what watching costs.
type writes struct {
	rounds, seconds          int
	workers, writers, delays []int
	full                     bool // the table whose WAL is read has REPLICA IDENTITY FULL
}

// wanted is how much of an unwatched table's throughput a table watched by the WAL is to keep, in the cell accepted.
const wanted = 0.85

var accepted = cell{delay: 1000, writers: 16, workers: 1}

// cell is one line of the tables that are printed.
type cell struct{ delay, writers, workers int }

// column is a table that is written to, and whether there is a replication slot meanwhile. While there is one it
// costs every commit of the server, so what is without one is measured before it comes or when it is gone.
type column struct {
	table, title string
	slot         bool
}

// told reports whether the log has what is committed to the table.
func (c column) told() bool { return c.table == "watched" || c.table == "published" }

// columns are in the order of the even rounds: what is compared stands together. All tables are alike, and written to as
// often, so that they age alike.
var columns = []column{
	{"notifying", "bare pg_notify", false}, {"watched", "triggers", false}, {"unwatched", "unwatched", false},
	{"published", "WAL", true}, {"beside", "unwatched, beside the slot", true},
}

// written is what one round of writing to one table gave.
type written struct {
	tps                       float64
	behind                    behind
	sender, workers, postgres float64 // µs of processor time per commit; the sender is one of Postgres's
}

// writeResults are rounds by cell and table.
type writeResults map[cell]map[string][]written

func measureWrites(ctx context.Context, binary string, w writes) (err error) {
	b, err := newBench(ctx, binary, byTriggers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.prepareSlot(ctx, w.full); err != nil {
		return err
	}
	scripts, err := writeScripts()
	if err != nil {
		return err
	}
	defer os.RemoveAll(scripts)

	results := make(writeResults)
	var cells []cell
	for _, n := range w.workers {
		more, err := b.writesWith(ctx, w, n, scripts, results)
		if err != nil {
			return fmt.Errorf("with %d workers: %w", n, err)
		}
		cells = append(cells, more...)
	}
	var version string
	if err := b.conn.QueryRow(ctx, "show server_version").Scan(&version); err != nil {
		return err
	}
	w.print(version, cells, results)
	return nil
}

// prepareSlot makes the tables of the rounds with a slot.
func (b *bench) prepareSlot(ctx context.Context, full bool) error {
	statements := []string{
		"create table published (like unwatched including all); insert into published select * from unwatched",
		"create table beside (like unwatched including all); insert into beside select * from unwatched",
		"vacuum analyze",
	}
	if full {
		statements = append(statements, "alter table published replica identity full")
	}
	for _, statement := range statements {
		if _, err := b.conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// writesWith measures with so many workers attached, and returns what was measured.
func (b *bench) writesWith(ctx context.Context, w writes, n int, scripts string, results writeResults) (cells []cell, err error) {
	var workers []*worker
	defer func() { err = errors.Join(err, stopAll(workers)) }()
	for range n {
		attached, err := b.startWorker(ctx)
		if err != nil {
			return nil, err
		}
		workers = append(workers, attached)
	}
	there := columns
	if n == 0 { // nobody would make the slot, or read it
		there = slices.DeleteFunc(slices.Clone(columns), func(c column) bool { return c.slot })
	} else if err := b.awaitSequenced(ctx); err != nil {
		return nil, err
	}
	hasSlot := false
	for _, delay := range w.delays {
		if err := b.setCommitDelay(ctx, delay); err != nil {
			return nil, err
		}
		for _, writers := range w.writers {
			at := cell{delay, writers, n}
			cells = append(cells, at)
			results[at] = make(map[string][]written)
			for round := range w.rounds {
				order := slices.Clone(there)
				if round%2 == 1 { // so that whatever changes with time hits all alike
					slices.Reverse(order)
				}
				for _, c := range order {
					if err := b.setSlot(ctx, c.slot, &hasSlot); err != nil {
						return nil, err
					}
					one, err := b.write(ctx, c, filepath.Join(scripts, c.table), writers, w.seconds, workers)
					if err != nil {
						return nil, fmt.Errorf("%d writers of %s, commit_delay %d: %w", writers, c.table, delay, err)
					}
					results[at][c.table] = append(results[at][c.table], one)
				}
			}
		}
	}
	return cells, b.setSlot(ctx, false, &hasSlot)
}

// setSlot watches the one table or ceases to, and waits until there is a slot that is read, or none.
func (b *bench) setSlot(ctx context.Context, want bool, has *bool) error {
	if want == *has {
		return nil
	}
	*has = want
	if want {
		if err := b.watch(ctx, "published", byWAL); err != nil {
			return err
		}
		return b.awaitSlot(ctx)
	}
	if _, err := b.conn.Exec(ctx, "select trumpet.unwatch('published')"); err != nil {
		return err
	}
	return b.awaitNoSlot(ctx)
}

// write has one table written to, and waits until workers are done with that, so that the next table is
// not measured with it.
func (b *bench) write(ctx context.Context, c column, script string, writers, seconds int, workers []*worker) (w written, err error) {
	_, from, err := b.head(ctx)
	if err != nil {
		return w, err
	}
	sender, err := b.sender(ctx)
	if err != nil {
		return w, err
	}
	senderCPU, err := sender.cpu()
	if err != nil {
		return w, err
	}
	mark, err := b.mark(workers)
	if err != nil {
		return w, err
	}
	p, err := b.pgbench(ctx, script, writers, seconds)
	if err != nil {
		return w, err
	}
	w.tps = p.tps
	told := c.told() && len(workers) > 0
	if told {
		if w.behind, err = b.awaitLog(ctx, from, p.commits); err != nil {
			return w, err
		}
	}
	if sender != 0 {
		if err := b.awaitSender(ctx); err != nil {
			return w, err
		}
	}
	used, err := b.since(mark)
	if err != nil {
		return w, err
	}
	senderNow, err := sender.cpu()
	if err != nil {
		return w, fmt.Errorf("the slot's reader is another one now: %w", err)
	}
	n := float64(max(1, p.commits))
	w.sender, w.workers = float64((senderNow-senderCPU).Microseconds())/n, float64(used.wCPU.Microseconds())/n
	w.postgres = float64(used.pgCPU.Microseconds()) / n
	if told {
		err = b.verifyLog(ctx, c.table, from, p.commits)
	}
	return w, err
}

// of picks one value of each round.
func (r writeResults) of(c cell, table string, value func(w written) float64) []float64 {
	var values []float64
	for _, w := range r[c][table] {
		values = append(values, value(w))
	}
	return values
}

func (r writeResults) tps(c cell, table string) float64 {
	return median(r.of(c, table, func(w written) float64 { return w.tps }))
}

func (w writes) print(version string, cells []cell, r writeResults) {
	fmt.Printf("PostgreSQL %s, medians of %d rounds of %d s, transactions/s of one-row updates by primary key.\n\n", version, w.rounds, w.seconds)
	fmt.Println("| commit_delay | writers | workers | unwatched | bare pg_notify | watched | watched / unwatched | watched / bare |")
	fmt.Println("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, c := range cells {
		unwatched, bare, watched := r.tps(c, "unwatched"), r.tps(c, "notifying"), r.tps(c, "watched")
		fmt.Printf("| %d µs | %d | %d | %.0f | %.0f | %.0f | %.2f | %.1f |\n", c.delay, c.writers, c.workers, unwatched, bare, watched, watched/unwatched, watched/bare)
	}
	cells = slices.DeleteFunc(slices.Clone(cells), func(c cell) bool { return len(r[c]["published"]) == 0 })
	if len(cells) == 0 {
		return
	}
	identity := ""
	if w.full {
		identity = " with REPLICA IDENTITY FULL"
	}
	fmt.Printf("\nIn the same rounds a table watched by the WAL%s, and an unwatched one beside it, whose commits are read through the slot too.\n\n", identity)
	fmt.Println("| commit_delay | writers | workers | unwatched, no slot | unwatched, beside the slot | beside / unwatched | watched by the WAL | WAL / unwatched | WAL / beside | WAL / triggers |")
	fmt.Println("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, c := range cells {
		unwatched, beside, watched, published := r.tps(c, "unwatched"), r.tps(c, "beside"), r.tps(c, "watched"), r.tps(c, "published")
		fmt.Printf("| %d µs | %d | %d | %.0f | %.0f | %.2f | %.0f | %.2f | %.2f | %.2f |\n",
			c.delay, c.writers, c.workers, unwatched, beside, beside/unwatched, published, published/unwatched, published/beside, published/watched)
	}
	fmt.Print("\nEvery commit to the two watched tables was in the log, and the newest event of each row is what the table has. How far the log was behind when the writers stopped, the worst of the rounds, and processor time:\n\n")
	fmt.Println("| commit_delay | writers | workers | | behind, commits | behind, s | walsender CPU µs/commit | workers CPU µs/commit | Postgres CPU µs/commit |")
	fmt.Println("| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
	for _, c := range cells {
		for _, column := range columns {
			commits, seconds := "", ""
			if column.told() {
				commits = thousands(slices.Max(r.of(c, column.table, func(w written) float64 { return float64(w.behind.commits) })))
				seconds = fmt.Sprintf("%.3f", slices.Max(r.of(c, column.table, func(w written) float64 { return w.behind.time.Seconds() })))
			}
			fmt.Printf("| %d µs | %d | %d | %s | %s | %s | %.1f | %.1f | %.1f |\n", c.delay, c.writers, c.workers, column.title, commits, seconds,
				median(r.of(c, column.table, func(w written) float64 { return w.sender })),
				median(r.of(c, column.table, func(w written) float64 { return w.workers })),
				median(r.of(c, column.table, func(w written) float64 { return w.postgres })))
		}
	}
	if slices.Contains(cells, accepted) {
		fmt.Println("\n" + r.verdict())
	}
}

// verdict says whether the WAL capture keeps what is wanted of it.
func (r writeResults) verdict() string {
	kept := r.tps(accepted, "published") / r.tps(accepted, "unwatched")
	var each []string
	unwatched := r[accepted]["unwatched"]
	for i, w := range r[accepted]["published"] {
		each = append(each, ratio(w.tps/unwatched[i].tps))
	}
	met := "met"
	if kept < wanted {
		met = "not met"
	}
	return fmt.Sprintf("A table watched by the WAL, with %d writers, a flush of %d µs and one worker, keeps %.3f of the unwatched table's throughput (by round: %s); %.2f is wanted: %s.",
		accepted.writers, accepted.delay, kept, strings.Join(each, ", "), wanted, met)
}

func writeScripts() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "trumpet-bench-"); err != nil {
		return "", err
	}
	for _, c := range columns {
		script := "\\set id random(1, 100000)\nupdate " + c.table +
			" set status = case status when 'open' then 'done' else 'open' end, updated = now() where id = :id;\n"
		if err := os.WriteFile(filepath.Join(dir, c.table), []byte(script), 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// setCommitDelay stands in for a disk whose flush takes that long: every commit waits so long
// before it flushes.
func (b *bench) setCommitDelay(ctx context.Context, microseconds int) error {
	for _, statement := range []string{
		"alter system set commit_siblings = 0",
		fmt.Sprintf("alter system set commit_delay = %d", microseconds),
		"select pg_reload_conf()",
	} {
		if _, err := b.conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

func median(values []float64) float64 {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}
