package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// target is what is measured, in both formats.
type target struct {
	name, title string
	peer        []string // the command of a peer, which is a program of its own
	stalled     int      // clients that stop reading
}

// targets are those that are there. The first is what the others are compared with.
func (f fanout) targets() []target {
	if f.stalled > 0 { // the loop would wait for those that do not read
		return []target{
			{name: "hub", title: "Trumpet, none stalled"},
			{name: "hub", title: fmt.Sprintf("Trumpet, %d stalled", f.stalled), stalled: f.stalled},
		}
	}
	all := []target{{name: "loop", title: "bare loop"}, {name: "hub", title: "Trumpet"}}
	if f.centrifuge != "" {
		all = append(all, target{name: "centrifuge", title: "centrifuge", peer: []string{f.centrifuge}})
	}
	if f.fastapi != "" {
		all = append(all, target{name: "fastapi", title: "FastAPI + Redis", peer: []string{"python3", f.fastapi}})
	}
	return all
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
	open        []openLoop // by rate
}

// pace is how fast a target gave messages, and what that took.
type pace struct {
	deliveries float64 // a second
	cpu        float64 // µs of the target's processor time per delivery
	writes     float64 // system calls per delivery
}

// openLoop is how long messages took that were published at fixed times, in milliseconds.
type openLoop struct{ p50, p99, worst float64 }

// fanoutCell is one target over one transport.
type fanoutCell struct{ target, format string }

func measureFanout(ctx context.Context, f fanout) error {
	if err := allowFiles(f.clients + 100); err != nil {
		return err
	}
	rounds := make(map[fanoutCell][]fanoutRound)
	var failures []error
	for round := range f.rounds {
		for _, format := range formats {
			all := f.targets()
			if round%2 == 1 { // so that whatever changes with time hits all alike
				slices.Reverse(all)
			}
			for _, target := range all {
				r, err := f.round(ctx, target, format.name)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil { // the others' figures stand
					failures = append(failures, fmt.Errorf("round %d, %s over %s: %w", round+1, target.title, format.title, err))
					continue
				}
				key := fanoutCell{target.title, format.name}
				rounds[key] = append(rounds[key], r)
			}
		}
	}
	f.print(rounds)
	err := errors.Join(failures...)
	if f.svg != "" && err == nil {
		err = os.WriteFile(f.svg, []byte(f.plot(rounds).String()), 0o644) //nolint:gosec // a picture
	}
	return err
}

// running is a target, and the sink that is connected to it.
type running struct {
	*sink
	cmd       *exec.Cmd
	in        io.WriteCloser
	clients   int
	address   string
	began     time.Time // connecting
	each      int       // how many clients are to have a message
	size      int
	published int64
	line      []byte
}

func (f fanout) start(ctx context.Context, target target, format string) (r *running, base int64, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	command := target.peer
	if command == nil {
		command = []string{self, "target", target.name, format, strconv.Itoa(f.topics)}
	}
	r = &running{
		cmd:     exec.CommandContext(ctx, command[0], command[1:]...),
		clients: f.clients, each: (f.clients - target.stalled) / f.topics, size: f.size,
	}
	r.cmd.Stderr = os.Stderr
	if target.name == "hub" {
		r.cmd.Env = append(os.Environ(), "GOGC=50") // as trumpet serve does
	}
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
		base, err = r.sum(resident)
	}
	if err == nil {
		r.address, r.began = strings.TrimSpace(address), time.Now()
		r.sink, err = dialSink(r.address, audience{
			clients: f.clients, topics: topicNames(f.topics), stalled: target.stalled,
			sse: format == "sse", centrifuge: target.name == "centrifuge", messages: numbered,
		})
	}
	if err != nil {
		return nil, 0, errors.Join(err, r.end())
	}
	return r, base, nil
}

// sum adds up what something says of the target's process and its children.
func (r *running) sum(of func(pid int) (int64, error)) (total int64, err error) {
	family := []int{r.cmd.Process.Pid}
	for i := 0; i < len(family); i++ {
		n, err := of(family[i])
		if err != nil {
			return 0, err
		}
		total += n
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", family[i]))
		if err != nil {
			return 0, err
		}
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			if err != nil {
				continue // a thread that has ended
			}
			for child := range strings.FieldsSeq(string(text)) {
				pid, err := strconv.Atoi(child)
				if err != nil {
					return 0, err
				}
				family = append(family, pid)
			}
		}
	}
	return total, nil
}

// processorTime is a process's, in nanoseconds.
func processorTime(pid int) (int64, error) {
	d, err := cpuTime(pid)
	return int64(d), err
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
func (f fanout) round(ctx context.Context, target target, format string) (result fanoutRound, err error) {
	r, base, err := f.start(ctx, target, format)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, r.end()) }()
	if err := r.awaitReady(ctx); err != nil {
		return result, err
	}
	result.connect = time.Since(r.began).Seconds()
	if result.idle, err = r.memory(ctx, base, f.settle); err != nil {
		return result, err
	}
	if f.stalled > 0 { // what some do not read must be in the way first
		if _, err = r.pace(ctx, f.length, f.window); err != nil {
			return result, err
		}
		if err = r.lagging(ctx, target.stalled); err != nil {
			return result, err
		}
	}
	if result.one, err = r.pace(ctx, f.length, 1); err != nil {
		return result, err
	}
	for _, rate := range f.rates {
		open, err := r.openLoop(ctx, f.length, rate)
		if err != nil {
			return result, err
		}
		result.open = append(result.open, open)
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

// lagging checks that so many clients are behind, and no more.
func (r *running) lagging(ctx context.Context, want int) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.address+"/metrics", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if line := fmt.Sprintf("\ntrumpet_lagging_connections %d\n", want); !strings.Contains(string(text), line) {
		return fmt.Errorf("not %d clients lag", want)
	}
	return nil
}

// memory is what each connection takes, once that has settled, in KiB.
func (r *running) memory(ctx context.Context, base int64, settle time.Duration) (float64, error) {
	if err := sleep(ctx, settle); err != nil {
		return 0, err
	}
	now, err := r.sum(resident)
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
	goal := messages * int64(r.each)
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
	cpu, err := r.sum(processorTime)
	if err != nil {
		return p, err
	}
	writes, err := r.sum(writeCalls)
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
	cpuNow, err := r.sum(processorTime)
	if err != nil {
		return p, err
	}
	writesNow, err := r.sum(writeCalls)
	if err != nil {
		return p, err
	}
	n := float64(r.total.Load() - total)
	return pace{n / took.Seconds(), float64(cpuNow-cpu) / 1e3 / n, float64(writesNow-writes) / n}, nil
}

// openLoop publishes at fixed times, whatever the clients have: a message that waits for others counts as late.
func (r *running) openLoop(ctx context.Context, length time.Duration, rate int) (result openLoop, err error) {
	r.recording(true)
	begin := time.Now().Add(50 * time.Millisecond)
	for i := range int(length.Seconds() * float64(rate)) {
		due := begin.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if err := sleep(ctx, time.Until(due)); err != nil {
			return result, err
		}
		if err := r.publish(due); err != nil {
			return result, err
		}
	}
	if err := r.await(ctx, r.published); err != nil {
		return result, err
	}
	noted := r.recording(false)
	delays := make([]time.Duration, len(noted))
	for i := range noted {
		delays[i] = noted[i].delay()
	}
	q := quantiles(delays, 0.5, 0.99, 1)
	return openLoop{milliseconds(q[0]), milliseconds(q[1]), milliseconds(q[2])}, nil
}

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
func (f fanout) print(rounds map[fanoutCell][]fanoutRound) {
	of := "of the loop"
	if f.stalled > 0 {
		of = "of the first"
	}
	fmt.Printf("%s clients, %s, messages with %s bytes of data, medians of %d rounds of %v each; flat out: at most %d messages ahead of the clients. Nobody missed a message or got one twice.\n\n",
		thousands(float64(f.clients)), counted(f.topics, "topic"), thousands(float64(f.size)), f.rounds, f.length, f.window)
	row := func(cells ...string) { fmt.Println("| " + strings.Join(cells, " | ") + " |") }
	row("", "one at a time: deliveries/s", of, "CPU µs/delivery", of, "flat out: deliveries/s", of, "CPU µs/delivery", "writes/delivery", "connect s", "idle KiB/connection", "after")
	row("---" + strings.Repeat(" | ---:", 11))
	f.each(rounds, func(title string, r, loop []fanoutRound) {
		value := func(of func(r fanoutRound) float64) float64 { return medianOf(r, of) }
		part := func(of func(r fanoutRound) float64) string { return ratio(medianOf(r, of) / medianOf(loop, of)) }
		one, oneCPU := func(r fanoutRound) float64 { return r.one.deliveries }, func(r fanoutRound) float64 { return r.one.cpu }
		flat := func(r fanoutRound) float64 { return r.flat.deliveries }
		row(title, thousands(value(one)), part(one), ratio(value(oneCPU)), part(oneCPU), thousands(value(flat)), part(flat),
			ratio(value(func(r fanoutRound) float64 { return r.flat.cpu })), ratio(value(func(r fanoutRound) float64 { return r.flat.writes })),
			ratio(value(func(r fanoutRound) float64 { return r.connect })),
			tenths(value(func(r fanoutRound) float64 { return r.idle })), tenths(value(func(r fanoutRound) float64 { return r.after })))
	})
	fmt.Println("\nOpen loop, from a message's intended time to a client, ms: p50, p99, max.")
	fmt.Println()
	head := []string{""}
	for _, rate := range f.rates {
		head = append(head, thousands(float64(rate))+"/s")
	}
	row(head...)
	row("---" + strings.Repeat(" | ---:", len(f.rates)))
	f.each(rounds, func(title string, r, _ []fanoutRound) {
		cells := []string{title}
		for i := range f.rates {
			var all []string
			for _, of := range []func(o openLoop) float64{func(o openLoop) float64 { return o.p50 }, func(o openLoop) float64 { return o.p99 }, func(o openLoop) float64 { return o.worst }} {
				all = append(all, ratio(medianOf(r, func(r fanoutRound) float64 { return of(r.open[i]) })))
			}
			cells = append(cells, strings.Join(all, ", "))
		}
		row(cells...)
	})
}

// each shows all targets that were measured, and the first one's rounds over the same transport.
func (f fanout) each(rounds map[fanoutCell][]fanoutRound, show func(title string, r, loop []fanoutRound)) {
	for _, format := range formats {
		for _, target := range f.targets() {
			if r := rounds[fanoutCell{target.title, format.name}]; len(r) > 0 {
				show(target.title+", "+format.title, r, rounds[fanoutCell{f.targets()[0].title, format.name}])
			}
		}
	}
}

// plot draws the deliveries a second.
func (f fanout) plot(rounds map[fanoutCell][]fanoutRound) bars {
	p := bars{
		title: fmt.Sprintf("Thousand deliveries a second to %s clients, messages of %d bytes", thousands(float64(f.clients)), f.size),
		axis:  "thousand deliveries/s",
	}
	for _, format := range formats {
		p.series = append(p.series, format.title+", one at a time", format.title+", flat out")
	}
	for _, target := range f.targets() {
		g := group{name: target.title}
		for _, format := range formats {
			r := rounds[fanoutCell{target.title, format.name}]
			for _, of := range []func(r fanoutRound) float64{func(r fanoutRound) float64 { return r.one.deliveries }, func(r fanoutRound) float64 { return r.flat.deliveries }} {
				g.values = append(g.values, math.Round(medianOf(r, of)/1000))
			}
		}
		p.groups = append(p.groups, g)
	}
	return p
}

func medianOf(rounds []fanoutRound, of func(r fanoutRound) float64) float64 {
	if len(rounds) == 0 {
		return math.NaN()
	}
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = of(r)
	}
	return median(values)
}

func counted(n int, what string) string {
	if n == 1 {
		return "one " + what
	}
	return thousands(float64(n)) + " " + what + "s"
}
