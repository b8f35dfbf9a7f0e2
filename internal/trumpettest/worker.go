package trumpettest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// WorkerConfig says how to run a worker.
type WorkerConfig struct {
	Binary   string
	Database string // its URL
	Name     string
	Listen   string // default 127.0.0.1:0, where the kernel chooses the port
	Flags    []string
	Log      *Log            // what the worker writes; default a new one
	Wrap     func(*exec.Cmd) // changes the command before it is started, as by putting it into a network namespace
}

// Worker is a process of `trumpet serve`.
type Worker struct {
	Name    string
	Address string // host:port, also of the next process
	Log     *Log

	config WorkerConfig
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process has ended
}

// StartWorker starts a worker and waits until it listens; it need not be ready.
func StartWorker(ctx context.Context, config WorkerConfig) (*Worker, error) {
	if config.Listen == "" {
		config.Listen = "127.0.0.1:0"
	}
	if config.Log == nil {
		config.Log = &Log{}
	}
	w := &Worker{Name: config.Name, Log: config.Log, config: config}
	return w, w.Start(ctx)
}

// Start starts the worker again, after it has ended, on the same port.
func (w *Worker) Start(ctx context.Context) error {
	listen := w.config.Listen
	if w.Address != "" {
		listen = w.Address
	}
	args := append([]string{"serve", "--listen", listen, "--worker", w.Name, "--drain", "200ms", "--log-format", "json"}, w.config.Flags...)
	w.cmd = exec.Command(w.config.Binary, args...)
	w.cmd.Env = append(Environment(), "DATABASE_URL="+w.config.Database, "GORACE=exitcode=66 halt_on_error=1")
	w.cmd.Stderr, w.cmd.Stdout = w.Log, w.Log
	if w.config.Wrap != nil {
		w.config.Wrap(w.cmd)
	}
	before := w.Log.Size()
	if err := Start(w.cmd); err != nil {
		return fmt.Errorf("start worker %s: %w", w.Name, err)
	}
	cmd, ended := w.cmd, make(chan struct{})
	w.ended = ended
	go func() {
		_ = cmd.Wait() // what it ended with stands in ProcessState
		close(ended)
	}()
	address, err := w.serving(ctx, before)
	if err != nil {
		return errors.Join(fmt.Errorf("start worker %s: %w", w.Name, err), w.Kill())
	}
	if w.Address != address { // others may be reading it
		w.Address = address
	}
	return nil
}

// serving reads from the log where the process listens.
func (w *Worker) serving(ctx context.Context, before int) (address string, err error) {
	for {
		text, changed := w.Log.From(before)
		for line := range strings.Lines(text) {
			var record struct{ Msg, Address string }
			if json.Unmarshal([]byte(line), &record) == nil && record.Msg == "serving" {
				return record.Address, nil
			}
		}
		select {
		case <-changed:
		case <-w.ended:
			return "", fmt.Errorf("it ended: %s\n%s", w.cmd.ProcessState, text)
		case <-ctx.Done():
			return "", fmt.Errorf("it does not say where it listens: %w\n%s", ctx.Err(), text)
		}
	}
}

// URL is where a path is on this worker.
func (w *Worker) URL(path string) string { return "http://" + w.Address + path }

// WaitReady waits until the worker hears Postgres.
func (w *Worker) WaitReady(ctx context.Context) error { return WaitReady(ctx, w.URL("/readyz")) }

// WaitReady asks a worker again and again until it says that it is ready.
func WaitReady(ctx context.Context, url string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		status, _, err := get(ctx, url)
		if err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for worker to be ready: %w (status %d, %w)", ctx.Err(), status, err)
		case <-tick.C:
		}
	}
}

func get(ctx context.Context, url string) (status int, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	response, err := oneOff.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

// Metrics scrapes the worker. Names are as they stand there, with labels: a{b="c"}.
func (w *Worker) Metrics(ctx context.Context) (map[string]float64, error) {
	status, body, err := get(ctx, w.URL("/metrics"))
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	if err != nil {
		return nil, fmt.Errorf("read metrics of worker %s: %w", w.Name, err)
	}
	metrics := map[string]float64{}
	lines := bufio.NewScanner(strings.NewReader(string(body)))
	for lines.Scan() {
		line := lines.Text()
		end := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || end < 0 {
			continue
		}
		if value, err := strconv.ParseFloat(line[end+1:], 64); err == nil {
			metrics[line[:end]] = value
		}
	}
	return metrics, nil
}

// Signal sends a signal to the process, which may have ended.
func (w *Worker) Signal(s os.Signal) error {
	if err := w.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal worker %s: %w", w.Name, err)
	}
	return nil
}

// Ended is closed when the process has ended.
func (w *Worker) Ended() <-chan struct{} { return w.ended }

// State is how the process ended; nil while it runs.
func (w *Worker) State() *os.ProcessState {
	select {
	case <-w.ended:
		return w.cmd.ProcessState
	default:
		return nil
	}
}

// Stop ends the worker with SIGTERM, or with SIGKILL if it has not ended when ctx has.
func (w *Worker) Stop(ctx context.Context) error {
	if err := w.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("worker %s did not end on SIGTERM: %w", w.Name, ctx.Err()), w.Kill())
	}
}

// Kill ends the worker with SIGKILL.
func (w *Worker) Kill() error {
	if err := w.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-w.ended
	return nil
}

// Raced reports whether the race detector found something.
func (w *Worker) Raced() bool { return strings.Contains(w.Log.String(), "DATA RACE") }
