package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// benched is what pgbench says it did.
type benched struct {
	tps     float64
	commits int64
}

var (
	tpsLine     = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)
	commitsLine = regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)`)
)

// pgbench has so many writers run a script for some time, each as fast as it can.
func (b *bench) pgbench(ctx context.Context, script string, writers, seconds int) (done benched, err error) {
	program, err := findPgbench(b.server.Bindir())
	if err != nil {
		return done, err
	}
	u, err := url.Parse(b.server.URL("bench"))
	if err != nil {
		return done, err
	}
	password, _ := u.User.Password()
	cmd := exec.CommandContext(ctx, program, "-n", "-M", "prepared", "-c", strconv.Itoa(writers),
		"-j", strconv.Itoa(min(writers, 2)), "-T", strconv.Itoa(seconds), "-f", script, "bench")
	cmd.Env = append(os.Environ(), "PGHOST="+u.Hostname(), "PGPORT="+u.Port(), "PGUSER="+u.User.Username(), "PGPASSWORD="+password)
	out, err := cmd.CombinedOutput()
	if err == nil {
		done, err = parsePgbench(out)
	}
	if err != nil {
		return done, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	return done, nil
}

func parsePgbench(out []byte) (done benched, err error) {
	tps, commits := tpsLine.FindSubmatch(out), commitsLine.FindSubmatch(out)
	if tps == nil || commits == nil {
		return done, errors.New("it does not say what it did")
	}
	if done.tps, err = strconv.ParseFloat(string(tps[1]), 64); err != nil {
		return done, err
	}
	done.commits, err = strconv.ParseInt(string(commits[1]), 10, 64)
	return done, err
}

// findPgbench finds the one that came with the server; not every server comes with one, and then another version's
// does as well.
func findPgbench(bindir string) (string, error) {
	if path, err := exec.LookPath(filepath.Join(bindir, "pgbench")); err == nil {
		return path, nil
	}
	path, err := exec.LookPath("pgbench")
	if err != nil {
		return "", fmt.Errorf("find pgbench, which is neither in %s nor in PATH: %w", bindir, err)
	}
	return path, nil
}
