package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// others are how long events of the other topic took to clients.
type others struct {
	p50, longest   time.Duration // from their commit's return
	longestFromDue time.Duration // from when their commit was due
}

// otherWriter commits to the other topic at fixed times, whatever the answers.
type otherWriter struct {
	conn     *pgx.Conn
	interval time.Duration

	due     []time.Time
	commits []commit // when they returned
	err     error
	end     context.CancelFunc
	done    chan struct{}
}

func (o *otherWriter) start(ctx context.Context) {
	ctx, o.end = context.WithCancel(ctx)
	o.done = make(chan struct{})
	go func() {
		defer close(o.done)
		o.err = o.run(ctx)
	}()
}

func (o *otherWriter) run(ctx context.Context) error {
	statements := []string{"insert into other values ($1, 'a note')", "select trumpet.broadcast('other', to_jsonb($1::int))"}
	begin := time.Now()
	for i := 0; ; i++ {
		due := begin.Add(time.Duration(i) * o.interval)
		if sleep(ctx, time.Until(due)) != nil {
			return nil
		}
		// The last one too is to end: who is told to stop does not know whether it was committed.
		if _, err := o.conn.Exec(context.WithoutCancel(ctx), statements[i%2], i); err != nil {
			return fmt.Errorf("commit to the other topic: %w", err)
		}
		o.due, o.commits = append(o.due, due), append(o.commits, commit{int64(i), time.Now()})
	}
}

// stop ends it and waits.
func (o *otherWriter) stop() error {
	o.end()
	<-o.done
	return o.err
}

// waits are how long the events took to clients whose commits were due in some time, each of which has them all.
func (o *otherWriter) waits(c *crowd, from, until time.Time) (took others) {
	var all []time.Duration
	for _, w := range c.watchers {
		w.mu.Lock()
		for i, a := range w.arrivals[otherTopic] {
			if o.due[i].Before(from) || o.due[i].After(until) {
				continue
			}
			all = append(all, max(0, a.at.Sub(o.commits[i].at)))
			took.longestFromDue = max(took.longestFromDue, a.at.Sub(o.due[i]))
		}
		w.mu.Unlock()
	}
	if len(all) > 0 {
		q := quantiles(all, 0.5, 1)
		took.p50, took.longest = q[0], q[1]
	}
	return took
}

// inOrder checks that every client has so many events of a topic, each once and in the log's order.
func (c *crowd) inOrder(topic string, n int) error {
	for i, w := range c.watchers {
		w.mu.Lock()
		got := slices.Clone(w.arrivals[topic])
		w.mu.Unlock()
		if len(got) != n {
			return fmt.Errorf("client %d was given %d events of %s for %d commits", i, len(got), topic, n)
		}
		for j := 1; j < n; j++ {
			if got[j].place <= got[j-1].place {
				return fmt.Errorf("client %d was given position %d of %s after %d", i, got[j].place, topic, got[j-1].place)
			}
		}
	}
	return nil
}
