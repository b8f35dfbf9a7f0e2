package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// disturbKeeper kills, stops, or freezes the worker that runs the live queries, or one of its sessions.
func disturbKeeper(ctx context.Context, r *run, rng *rand.Rand) error {
	s, err := r.keeper(ctx)
	if err != nil {
		return err
	}
	how := rng.IntN(5)
	r.happens("%s runs the live queries, and is %s", s.worker.Name, []string{"killed", "restarted", "frozen", "cut from a session", "frozen in a session"}[how])
	switch how {
	case 0:
		return killStation(ctx, r, s, rng)
	case 1:
		return restartStation(ctx, s)
	case 2:
		return freezeStation(ctx, r, s, rng)
	}
	var pid int
	if err := r.db.pool.QueryRow(ctx, `select pid from pg_stat_activity where application_name in ('trumpet live ' || $1, 'trumpet pool ' || $1)
		order by random() limit 1`, s.worker.Name).Scan(&pid); err != nil {
		return fmt.Errorf("find a session of live queries: %w", err)
	}
	if how == 3 {
		_, err := r.db.pool.Exec(ctx, "select pg_terminate_backend($1)", pid)
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze session: %w", err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }() // it may have ended
	pause(ctx, r.length(rng))
	return nil
}

// lockTable keeps everybody from a table: writers give up, live queries grow stale, snapshots wait.
func lockTable(ctx context.Context, r *run, rng *rand.Rand) error {
	return r.withSession(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		table := []string{"jobs", "customers"}[rng.IntN(2)]
		if _, err := conn.Exec(ctx, "set lock_timeout = '2s'; begin; lock table "+table); err != nil {
			return fmt.Errorf("lock table: %w", err)
		}
		pause(ctx, r.length(rng)/2)
		_, err := conn.Exec(ctx, "rollback")
		return err
	})
}

// redefine drops a live query and defines it anew, in one transaction or in two.
func redefine(ctx context.Context, r *run, rng *rand.Rand) error {
	q := liveQueries[rng.IntN(len(liveQueries))]
	r.happens("%s is defined anew", q.name)
	return insistently(ctx, 10*time.Second, func(ctx context.Context) error {
		conn, err := r.db.connect(ctx, "oracle fault")
		if err != nil {
			return err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		_, err = conn.Exec(ctx, "select trumpet.drop_live_query(name) from trumpet.live where name = '"+q.name+"'")
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		_, err = conn.Exec(ctx, q.define)
		return err
	})
}
