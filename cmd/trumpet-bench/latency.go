package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// measureLatency commits at a fixed rate, whatever the answers (an open loop: a slow one does
// not hide others), and takes for each commit and client the time from when the commit was due to
// when the client had the event, and from when the commit had returned.
func measureLatency(ctx context.Context, binary string, clients, rate, seconds int) (err error) {
	b, err := newBench(ctx, binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	port, err := freePort()
	if err != nil {
		return err
	}
	w, err := b.startWorker(ctx, port)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop()) }()

	count := rate * seconds
	arrived := make([][]time.Time, clients)
	readCtx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+30*time.Second)
	defer cancel()
	var readers, ready sync.WaitGroup
	ready.Add(clients)
	failures := make(chan error, clients)
	for i := range clients {
		readers.Go(func() {
			conn, _, err := websocket.Dial(readCtx, "ws://"+w.address+"/ws?topics=watched", nil)
			if err != nil {
				ready.Done()
				failures <- err
				return
			}
			defer conn.CloseNow()
			conn.SetReadLimit(-1)
			for first := true; len(arrived[i]) < count; {
				_, frame, err := conn.Read(readCtx)
				if err != nil {
					failures <- fmt.Errorf("client %d has %d of %d events: %w", i, len(arrived[i]), count, err)
					return
				}
				switch {
				case strings.HasPrefix(string(frame), `{"id":`):
					arrived[i] = append(arrived[i], time.Now())
				case first && strings.Contains(string(frame), `"ready"`):
					first = false
					ready.Done()
				}
			}
		})
	}
	ready.Wait()

	due, returned := make([]time.Time, count), make([]time.Time, count)
	begin := time.Now().Add(100 * time.Millisecond)
	for i := range count {
		due[i] = begin.Add(time.Duration(i) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due[i]))
		if _, err := b.conn.Exec(ctx, "update watched set price = price + 1, updated = now() where id = $1", 1+i%1000); err != nil {
			return err
		}
		returned[i] = time.Now()
	}
	readers.Wait()
	close(failures)
	for err := range failures {
		return err
	}

	var fromDue, fromCommit []time.Duration
	for _, times := range arrived {
		for i, at := range times {
			fromDue = append(fromDue, at.Sub(due[i]))
			fromCommit = append(fromCommit, at.Sub(returned[i]))
		}
	}
	fmt.Printf("%d WebSocket clients, %d commits/s for %d s, all %d deliveries arrived.\n\n", clients, rate, seconds, len(fromDue))
	fmt.Println("| from | p50 | p90 | p99 | max |")
	fmt.Println("| --- | ---: | ---: | ---: | ---: |")
	for _, row := range []struct {
		name   string
		values []time.Duration
	}{{"the commit's intended time", fromDue}, {"the commit's return", fromCommit}} {
		slices.Sort(row.values)
		at := func(q float64) time.Duration {
			return row.values[min(int(q*float64(len(row.values))), len(row.values)-1)].Round(10 * time.Microsecond)
		}
		fmt.Printf("| %s | %v | %v | %v | %v |\n", row.name, at(0.5), at(0.9), at(0.99), at(1))
	}
	return nil
}
