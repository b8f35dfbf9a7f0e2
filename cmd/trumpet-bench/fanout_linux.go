package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// targets are what is measured, each in both formats. A peer is a program of its own, which is given as a flag.
var targets = []struct{ name, title string }{
	{"loop", "bare loop"},
	{"hub", "Trumpet"},
	{"centrifuge", "centrifuge"},
}

// targets are those that are there.
func (f fanout) targets() []struct{ name, title string } {
	if f.centrifuge == "" {
		return targets[:2]
	}
	return targets
}

// formats are the two transports.
var formats = []struct{ name, title string }{
	{"websocket", "WebSocket"},
	{"sse", "SSE"},
}

// fanoutRound is what one target did in one round.
type fanoutRound struct {
	connect     float64 // seconds, until all were ready
	idle, after float64 // KiB of resident memory per connection
	one, flat   pace
	p50, p99    float64 // milliseconds, in the open loop
	worst       float64
}

// pace is how fast a target gave messages, and what that took.
type pace struct {
	deliveries float64 // a second
	cpu        float64 // µs of the target's processor time per delivery
	writes     float64 // system calls per delivery
}

func measureFanout(ctx context.Context, f fanout) error {
	if err := allowFiles(f.clients + 100); err != nil {
		return err
	}
	rounds := make(map[[2]string][]fanoutRound)
	for round := range f.rounds {
		for _, format := range formats {
			for _, target := range f.targets() {
				r, err := f.round(ctx, target.name, format.name)
				if err != nil {
					return fmt.Errorf("round %d, %s over %s: %w", round+1, target.title, format.title, err)
				}
				key := [2]string{target.name, format.name}
				rounds[key] = append(rounds[key], r)
			}
		}
	}
	f.print(rounds)
	return nil
}

// running is a target, and the sink that is connected to it.
type running struct {
	*sink
	cmd       *exec.Cmd
	in        io.WriteCloser
	clients   int
	size      int
	published int64
	line      []byte
}

func (f fanout) start(ctx context.Context, target, format string) (r *running, base int64, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	r = &running{cmd: exec.CommandContext(ctx, self, "target", target, format), clients: f.clients, size: f.size}
	if target == "centrifuge" {
		r.cmd = exec.CommandContext(ctx, f.centrifuge)
	}
	r.cmd.Stderr = os.Stderr
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return nil, 0, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, 0, err
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		base, err = resident(r.cmd.Process.Pid)
	}
	if err == nil {
		r.sink, err = dialSink(strings.TrimSpace(address), f.clients, format == "sse", target == "centrifuge")
	}
	if err != nil {
		return nil, 0, errors.Join(err, r.end())
	}
	return r, base, nil
}

// end stops the target, which hangs up, and then the sink.
func (r *running) end() error {
	var err error
	if r.sink != nil {
		err = r.close()
	}
	return errors.Join(err, r.in.Close(), r.cmd.Wait())
}

// round measures one target once.
func (f fanout) round(ctx context.Context, target, format string) (result fanoutRound, err error) {
	began := time.Now()
	r, base, err := f.start(ctx, target, format)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, r.end()) }()
	for r.ready.Load() < int64(f.clients) {
		if err := errors.Join(r.failed(), sleep(ctx, time.Millisecond)); err != nil {
			return result, err
		}
	}
	result.connect = time.Since(began).Seconds()
	if result.idle, err = r.memory(ctx, base, f.settle); err != nil {
		return result, err
	}
	if result.one, err = r.pace(ctx, f.length, 1); err != nil {
		return result, err
	}
	if err := r.openLoop(ctx, f, &result); err != nil {
		return result, err
	}
	if result.flat, err = r.pace(ctx, f.length, f.window); err != nil {
		return result, err
	}
	if err := r.complete(r.published); err != nil {
		return result, err
	}
	result.after, err = r.memory(ctx, base, f.settle)
	return result, err
}

// memory is what each connection takes, once that has settled, in KiB.
func (r *running) memory(ctx context.Context, base int64, settle time.Duration) (float64, error) {
	if err := sleep(ctx, settle); err != nil {
		return 0, err
	}
	now, err := resident(r.cmd.Process.Pid)
	return float64(now-base) / 1024 / float64(r.clients), err
}

func (r *running) publish(intended time.Time) error {
	r.published++
	r.line = append(message(r.line[:0], r.published, intended, r.size), '\n')
	_, err := r.in.Write(r.line)
	return err
}

// await returns when all clients together have had as many messages as make up so many for each.
func (r *running) await(ctx context.Context, messages int64) error {
	goal := messages * int64(r.clients)
	r.goal.Store(goal)
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	for r.total.Load() < goal {
		select {
		case <-r.reached:
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout.C:
			return fmt.Errorf("%d of %d messages came within 30 s", r.total.Load(), goal)
		}
		if err := r.failed(); err != nil {
			return err
		}
	}
	return nil
}

// pace publishes for some time, at most so many messages ahead of the clients.
func (r *running) pace(ctx context.Context, length time.Duration, window int64) (p pace, err error) {
	pid := r.cmd.Process.Pid
	cpu, err := cpuTime(pid)
	if err != nil {
		return p, err
	}
	writes, err := writeCalls(pid)
	if err != nil {
		return p, err
	}
	total, began := r.total.Load(), time.Now()
	for time.Since(began) < length {
		if err := r.publish(time.Now()); err != nil {
			return p, err
		}
		if err := r.await(ctx, r.published-window+1); err != nil {
			return p, err
		}
	}
	if err := r.await(ctx, r.published); err != nil {
		return p, err
	}
	took := time.Since(began)
	cpuNow, err := cpuTime(pid)
	if err != nil {
		return p, err
	}
	writesNow, err := writeCalls(pid)
	if err != nil {
		return p, err
	}
	n := float64(r.total.Load() - total)
	return pace{n / took.Seconds(), float64(cpuNow-cpu) / 1e3 / n, float64(writesNow-writes) / n}, nil
}

// openLoop publishes at fixed times, whatever the clients have: a message that waits for others counts as late.
func (r *running) openLoop(ctx context.Context, f fanout, result *fanoutRound) error {
	r.recording(true)
	begin := time.Now().Add(50 * time.Millisecond)
	for i := range int(f.length.Seconds() * float64(f.rate)) {
		due := begin.Add(time.Duration(i) * time.Second / time.Duration(f.rate))
		if err := sleep(ctx, time.Until(due)); err != nil {
			return err
		}
		if err := r.publish(due); err != nil {
			return err
		}
	}
	if err := r.await(ctx, r.published); err != nil {
		return err
	}
	delays := r.recording(false)
	q := quantiles(delays, 0.5, 0.99, 1)
	result.p50, result.p99, result.worst = milliseconds(q[0]), milliseconds(q[1]), milliseconds(q[2])
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / 1e6 }

// writeCalls is how many write system calls a process has made (proc(5), io).
func writeCalls(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "syscw: "); ok {
			return strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("process %d does not tell its write calls", pid)
}

// print writes the medians of all rounds, and the bare loop's part of each.
func (f fanout) print(rounds map[[2]string][]fanoutRound) {
	fmt.Printf("%d clients, messages with %d bytes of data, medians of %d rounds of %v each; open loop at %d messages/s; flat out: at most %d messages ahead of the clients. Nobody missed a message or got one twice.\n\n",
		f.clients, f.size, f.rounds, f.length, f.rate, f.window)
	fmt.Println("| | one at a time: deliveries/s | of the loop | CPU µs/delivery | of the loop | flat out: deliveries/s | of the loop | CPU µs/delivery | writes/delivery | open loop: p50 ms | p99 ms | max ms | connect s | idle KiB/connection | after |")
	fmt.Println("| --- |" + strings.Repeat(" ---: |", 14))
	for _, format := range formats {
		column := func(target string, value func(r fanoutRound) float64) float64 {
			var values []float64
			for _, r := range rounds[[2]string{target, format.name}] {
				values = append(values, value(r))
			}
			return median(values)
		}
		for _, target := range f.targets() {
			of := func(value func(r fanoutRound) float64) (float64, float64) {
				v := column(target.name, value)
				return v, v / column("loop", value)
			}
			one, oneOf := of(func(r fanoutRound) float64 { return r.one.deliveries })
			oneCPU, oneCPUOf := of(func(r fanoutRound) float64 { return r.one.cpu })
			flat, flatOf := of(func(r fanoutRound) float64 { return r.flat.deliveries })
			cells := []string{target.title + ", " + format.title, thousands(one), ratio(oneOf), ratio(oneCPU), ratio(oneCPUOf), thousands(flat), ratio(flatOf)}
			for _, value := range []func(r fanoutRound) float64{
				func(r fanoutRound) float64 { return r.flat.cpu }, func(r fanoutRound) float64 { return r.flat.writes },
				func(r fanoutRound) float64 { return r.p50 }, func(r fanoutRound) float64 { return r.p99 }, func(r fanoutRound) float64 { return r.worst },
				func(r fanoutRound) float64 { return r.connect },
			} {
				cells = append(cells, ratio(column(target.name, value)))
			}
			for _, value := range []func(r fanoutRound) float64{func(r fanoutRound) float64 { return r.idle }, func(r fanoutRound) float64 { return r.after }} {
				cells = append(cells, strconv.FormatFloat(column(target.name, value), 'f', 1, 64))
			}
			fmt.Println("| " + strings.Join(cells, " | ") + " |")
		}
	}
}

func ratio(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }
