package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience bounds waits. Only the first reading of a very big table needs so much.
const patience = 5 * time.Minute

// writer commits at a fixed rate, whatever the answers.
type writer struct {
	conn      *pgx.Conn
	statement string // its parameter counts the changes, from 1
	count     int64  // of all that were made
}

// run commits for that long and returns when each commit had returned; their places are their
// numbers.
func (w *writer) run(ctx context.Context, rate int, length time.Duration) ([]commit, error) {
	var commits []commit
	begin := time.Now()
	for i := range int(length.Seconds() * float64(rate)) {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		tag, err := w.conn.Exec(ctx, w.statement, w.count+1)
		if err != nil {
			return nil, fmt.Errorf("change: %w", err)
		}
		if tag.RowsAffected() != 1 {
			return nil, fmt.Errorf("change %d found %d rows, and must change one", w.count+1, tag.RowsAffected())
		}
		w.count++
		commits = append(commits, commit{w.count, time.Now()})
	}
	return commits, nil
}

// locate puts positions of the log in the place of the commits' numbers: those of the events that
// an observer of a table had, one for each commit, in order.
func locate(ctx context.Context, observer *crowd, topic string, commits []commit) error {
	err := observer.await(ctx, fmt.Sprintf("%d events", len(commits)), func(w *watcher) bool {
		return len(w.arrivals[topic]) >= len(commits)
	})
	if err != nil {
		return err
	}
	seen := observer.watchers[0].arrivals[topic]
	if len(seen) != len(commits) {
		return fmt.Errorf("%d events of %s for %d commits", len(seen), topic, len(commits))
	}
	for i := range commits {
		commits[i].place = seen[i].place
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
