package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// measureLatency commits at a fixed rate, whatever the answers (an open loop: a slow one does
// not hide others), and takes for each commit and client the time from when the commit was due to
// when the client had the event, and from when the commit had returned.
func measureLatency(ctx context.Context, binary string, by capture, clients, rate, seconds int) (err error) {
	b, err := newBench(ctx, binary, by)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	w, err := b.startWorker(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	if by == byWAL {
		if err := b.awaitSlot(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("%d clients, %d commits/s for %d s over each transport to a table watched by %s, all %d deliveries arrived.\n\n", clients, rate, seconds, by.title(), 2*rate*seconds*clients)
	fmt.Println("| | from | p50 | p90 | p99 | max |")
	fmt.Println("| --- | --- | ---: | ---: | ---: | ---: |")
	for _, format := range formats {
		a := audience{clients: clients, topics: []string{"watched"}, sse: format.name == "sse", messages: committed}
		fromDue, fromCommit, err := b.latencies(ctx, w.address, a, rate, rate*seconds)
		if err != nil {
			return fmt.Errorf("%s: %w", format.title, err)
		}
		for _, row := range []struct {
			name   string
			values []time.Duration
		}{{"the commit's intended time", fromDue}, {"the commit's return", fromCommit}} {
			q := quantiles(row.values, 0.5, 0.9, 0.99, 1)
			for i := range q {
				q[i] = q[i].Round(10 * time.Microsecond)
			}
			fmt.Printf("| %s | %s | %v | %v | %v | %v |\n", format.title, row.name, q[0], q[1], q[2], q[3])
		}
	}
	return nil
}

func (b *bench) latencies(ctx context.Context, address string, a audience, rate, count int) (fromDue, fromCommit []time.Duration, err error) {
	s, head, err := b.listen(ctx, address, a)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	s.recording(true)
	due, returned := make([]time.Time, count), make([]time.Time, count)
	begin := time.Now().Add(100 * time.Millisecond)
	for i := range count {
		due[i] = begin.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if err := sleep(ctx, time.Until(due[i])); err != nil {
			return nil, nil, err
		}
		if _, err := b.conn.Exec(ctx, "update watched set price = price + 1, updated = now() where id = $1", 1+i%1000); err != nil {
			return nil, nil, err
		}
		returned[i] = time.Now()
	}
	for end := time.Now().Add(30 * time.Second); s.total.Load() < int64(count*a.clients); {
		if err := errors.Join(s.failed(), sleep(ctx, time.Millisecond)); err != nil {
			return nil, nil, err
		}
		if time.Now().After(end) {
			return nil, nil, fmt.Errorf("%d of %d deliveries came", s.total.Load(), count*a.clients)
		}
	}
	for _, arrived := range s.recording(false) {
		i := arrived.number - head - 1
		fromDue = append(fromDue, arrived.at.Sub(due[i]))
		fromCommit = append(fromCommit, arrived.at.Sub(returned[i]))
	}
	return fromDue, fromCommit, nil
}

// listen connects an audience that is given all events from now on, of which there are none yet. head is where
// the log ends.
func (b *bench) listen(ctx context.Context, address string, a audience) (s *sink, head int64, err error) {
	if _, head, err = b.head(ctx); err != nil {
		return nil, 0, err
	}
	if s, err = dialSink(address, a); err != nil {
		return nil, 0, err
	}
	s.begin(head)
	if err := s.awaitReady(ctx); err != nil {
		return nil, 0, errors.Join(err, s.close())
	}
	return s, head, nil
}
