package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// statementLog has Postgres write down every statement that a client sends, with who sent it. The
// bench's own sessions turn it off for themselves.
var statementLog = map[string]string{"log_statement": "all", "log_line_prefix": "%a|", "log_autovacuum_min_duration": "-1", "log_checkpoints": "off"}

// mark is a moment in the life of a server and its workers.
type mark struct {
	at            time.Time
	log           int64 // how long the server's log is
	pgCPU, wCPU   time.Duration
	workerOfMarks []*worker
}

// cost is what happened between a mark and now.
type cost struct {
	elapsed       time.Duration
	onTables      int // statements that name one of the tables
	own           int // all others of the workers
	pgCPU, wCPU   time.Duration
	statementsRun map[string]int // on the tables, by their first words
}

func (c cost) perMinute(n int) float64 { return float64(n) / c.elapsed.Minutes() }

func (b *bench) mark(workers []*worker) (mark, error) {
	m := mark{at: time.Now(), workerOfMarks: workers}
	stat, err := os.Stat(b.server.Log())
	if err != nil {
		return m, err
	}
	m.log = stat.Size()
	if m.pgCPU, err = b.serverCPU(); err != nil {
		return m, err
	}
	for _, w := range workers {
		cpu, err := cpuTime(w.cmd.Process.Pid)
		if err != nil {
			return m, err
		}
		m.wCPU += cpu
	}
	return m, nil
}

// atRest is what the server and workers do in a time in which nothing changes.
func (b *bench) atRest(ctx context.Context, workers []*worker, length time.Duration) (cost, error) {
	m, err := b.mark(workers)
	if err != nil {
		return cost{}, err
	}
	if err := sleep(ctx, length); err != nil {
		return cost{}, err
	}
	return b.since(m)
}

// since is what a mark's server and workers have done since, and who asked for it.
func (b *bench) since(m mark) (cost, error) {
	now, err := b.mark(m.workerOfMarks)
	if err != nil {
		return cost{}, err
	}
	c := cost{elapsed: now.at.Sub(m.at), pgCPU: now.pgCPU - m.pgCPU, wCPU: now.wCPU - m.wCPU}
	file, err := os.Open(b.server.Log())
	if err != nil {
		return cost{}, err
	}
	defer file.Close()
	text := make([]byte, now.log-m.log)
	if _, err := file.ReadAt(text, m.log); err != nil {
		return cost{}, fmt.Errorf("read log of postgres: %w", err)
	}
	c.count(text)
	return c, nil
}

var (
	statementStart = regexp.MustCompile(`^([^|\n]*)\|LOG:  (?:statement|execute [^:]*): `)
	onTables       = regexp.MustCompile(`\b(customers|jobs|invoices|payments)\b`)
)

// count reads log lines. A statement's further lines begin with a tab.
func (c *cost) count(text []byte) {
	c.statementsRun = make(map[string]int)
	var who, statement string
	flush := func() {
		switch {
		case statement == "" || who == benchName:
		case onTables.MatchString(statement):
			c.onTables++
			words := strings.Join(strings.Fields(statement), " ")
			c.statementsRun[words[:min(len(words), 60)]]++
		default:
			c.own++
		}
		statement = ""
	}
	for line := range bytes.Lines(text) {
		if line[0] == '\t' {
			if statement != "" {
				statement += string(line)
			}
			continue
		}
		flush()
		if match := statementStart.FindSubmatch(line); match != nil {
			who, statement = string(match[1]), string(line[len(match[0]):])
		}
	}
	flush()
}

// serverCPU is the processor time of all the server's processes, those that have ended included.
func (b *bench) serverCPU() (time.Duration, error) {
	pidFile, err := os.ReadFile(filepath.Join(b.server.Dir(), "data", "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(pidFile), "\n")
	postmaster, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return 0, err
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	var total time.Duration
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err != nil {
			continue
		}
		stat, err := readStat(pid)
		if err != nil {
			continue // it has ended meanwhile
		}
		switch {
		case pid == postmaster:
			total += stat.own + stat.children
		case stat.parent == postmaster:
			total += stat.own
		}
	}
	return total, nil
}

// processStat is what /proc says of a process.
type processStat struct {
	parent        int
	own, children time.Duration // processor time; of children that have ended and were waited for
}

func readStat(pid int) (processStat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processStat{}, err
	}
	// After the name, which may hold anything, in parentheses: fields 3, 4, …
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return processStat{}, fmt.Errorf("process %d: short stat", pid)
	}
	var n [15]int64
	for _, i := range []int{1, 11, 12, 13, 14} {
		if n[i], err = strconv.ParseInt(fields[i], 10, 64); err != nil {
			return processStat{}, fmt.Errorf("process %d: %w", pid, err)
		}
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Go runs on Linux
	return processStat{int(n[1]), time.Duration(n[11]+n[12]) * tick, time.Duration(n[13]+n[14]) * tick}, nil
}

// cpuTime is how much processor time a process has used.
func cpuTime(pid int) (time.Duration, error) {
	stat, err := readStat(pid)
	return stat.own, err
}
