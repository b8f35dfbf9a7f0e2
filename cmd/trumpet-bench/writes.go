package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/postgres"
)

// cell is one column of the table of writes.
type cell struct{ delay, writers, workers int }

var tables = []string{"unwatched", "notifying", "watched"}

func measureWrites(ctx context.Context, binary string, rounds, seconds int) (err error) {
	b, err := newBench(ctx, binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	scripts, err := writeScripts()
	if err != nil {
		return err
	}
	defer os.RemoveAll(scripts)

	results := make(map[string][]float64) // by cell and table
	var cells []cell
	for _, workers := range []int{0, 1, 2} {
		var attached []*worker
		for range workers {
			w, err := b.startWorker(ctx)
			if err != nil {
				return err
			}
			attached = append(attached, w)
		}
		for _, delay := range []int{0, 1000} {
			if err := b.setCommitDelay(ctx, delay); err != nil {
				return err
			}
			for _, writers := range []int{1, 16} {
				c := cell{delay, writers, workers}
				cells = append(cells, c)
				for range rounds {
					for _, table := range tables { // in turn, so that drift hits all alike
						tps, err := b.pgbench(ctx, filepath.Join(scripts, table), writers, seconds)
						if err != nil {
							return err
						}
						key := fmt.Sprint(c, table)
						results[key] = append(results[key], tps)
					}
				}
			}
		}
		for _, w := range attached {
			if err := w.stop(); err != nil {
				return fmt.Errorf("stop worker: %w", err)
			}
		}
	}
	var version string
	if err := b.conn.QueryRow(ctx, "show server_version").Scan(&version); err != nil {
		return err
	}
	fmt.Printf("PostgreSQL %s, medians of %d rounds of %d s, transactions/s of one-row updates by primary key.\n\n", version, rounds, seconds)
	fmt.Println("| commit_delay | writers | workers | unwatched | bare pg_notify | watched | watched / unwatched | watched / bare |")
	fmt.Println("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for _, c := range cells {
		m := make(map[string]float64)
		for _, table := range tables {
			m[table] = median(results[fmt.Sprint(c, table)])
		}
		fmt.Printf("| %d µs | %d | %d | %.0f | %.0f | %.0f | %.2f | %.1f |\n", c.delay, c.writers, c.workers,
			m["unwatched"], m["notifying"], m["watched"], m["watched"]/m["unwatched"], m["watched"]/m["notifying"])
	}
	return nil
}

func writeScripts() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "trumpet-bench-"); err != nil {
		return "", err
	}
	for _, table := range tables {
		script := "\\set id random(1, 100000)\nupdate " + table +
			" set status = case status when 'open' then 'done' else 'open' end, updated = now() where id = :id;\n"
		if err := os.WriteFile(filepath.Join(dir, table), []byte(script), 0o600); err != nil {
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

var tpsLine = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)

func (b *bench) pgbench(ctx context.Context, script string, writers, seconds int) (tps float64, err error) {
	bindir, err := postgres.FindBindir()
	if err != nil {
		return 0, err
	}
	u, err := url.Parse(b.server.URL("bench"))
	if err != nil {
		return 0, err
	}
	password, _ := u.User.Password()
	cmd := exec.CommandContext(ctx, filepath.Join(bindir, "pgbench"), "-n", "-M", "prepared", "-c", strconv.Itoa(writers),
		"-j", strconv.Itoa(min(writers, 2)), "-T", strconv.Itoa(seconds), "-f", script, "bench")
	cmd.Env = append(os.Environ(), "PGHOST="+u.Hostname(), "PGPORT="+u.Port(), "PGUSER="+u.User.Username(), "PGPASSWORD="+password)
	out, err := cmd.CombinedOutput()
	match := tpsLine.FindSubmatch(out)
	if err != nil || match == nil {
		return 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	return strconv.ParseFloat(string(match[1]), 64)
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func waitReady(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("worker on %s is not ready: %w", address, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func median(values []float64) float64 {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}
