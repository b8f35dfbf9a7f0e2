package oracle

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// reader is the process of the server that reads the WAL for a worker.
func (r *run) reader(ctx context.Context) (pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := r.db.pool.QueryRow(ctx, "select active_pid from pg_replication_slots where active_pid is not null limit 1").Scan(&pid); err != nil {
		return 0, fmt.Errorf("find who reads the WAL: %w", err)
	}
	return pid, nil
}

// terminateReader ends the reader as soon as there is one, again and again.
func terminateReader(ctx context.Context, r *run, rng *rand.Rand) error {
	ended := 0
	var last error
	for end := time.Now().Add(r.length(rng)); ended == 0 || time.Now().Before(end); {
		bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
		var n int
		last = r.db.pool.QueryRow(bounded, "select count(*) filter (where pg_terminate_backend(active_pid)) from pg_replication_slots where active_pid is not null").Scan(&n)
		cancel()
		if last == nil {
			ended += n
		}
		pause(ctx, time.Duration(rng.IntN(400))*time.Millisecond)
		if ended == 0 && !time.Now().Before(end) {
			return fmt.Errorf("nobody reads the WAL: %w", last)
		}
	}
	r.happens("the WAL's reader was ended %d times", ended)
	return nil
}

// freezeReader stops the reader for a while. Nobody can step meanwhile, unless it is noticed.
func freezeReader(ctx context.Context, r *run, rng *rand.Rand) error {
	pid, err := r.reader(ctx)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze the WAL's reader: %w", err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }() // it may have ended
	r.happens("the WAL's reader, process %d, is frozen", pid)
	pause(ctx, r.length(rng))
	return nil
}
