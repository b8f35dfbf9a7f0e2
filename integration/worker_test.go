package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// patience is how long a test waits for what must come; it is no measure of speed.
const patience = 30 * time.Second

var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run builds the binary once for all tests. It is built with the race detector, so that the
// workers are watched and not only their clients.
func run(m *testing.M) int {
	if err := checkCapture(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "trumpet-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make folder for the binary:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if binary, err = trumpettest.Build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// startProcess starts a process that ends with this one.
func startProcess(cmd *exec.Cmd) error { return trumpettest.Start(cmd) }

// worker is a process of `trumpet serve`.
type worker struct {
	name  string
	addr  string // host:port
	log   logBuffer
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has ended
}

// startWorker starts a worker and waits until it is ready. It ends with the test.
func startWorker(t *testing.T, database, name string, flags ...string) *worker {
	t.Helper()
	w := &worker{name: name, ended: make(chan struct{}), log: logBuffer{changed: make(chan struct{})}}
	args := append([]string{"serve", "--listen", "127.0.0.1:0", "--worker", name, "--drain", "200ms", "--log-format", "json"}, flags...)
	w.cmd = exec.Command(binary, args...)
	w.cmd.Env = append(cleanEnvironment(), "DATABASE_URL="+database, "GORACE=exitcode=66 halt_on_error=1")
	w.cmd.Stderr, w.cmd.Stdout = &w.log, &w.log
	if err := startProcess(w.cmd); err != nil {
		t.Fatalf("start worker %s: %v", name, err)
	}
	go func() {
		_ = w.cmd.Wait() // what it ended with stands in ProcessState
		close(w.ended)
	}()
	t.Cleanup(func() {
		w.stop(t)
		if strings.Contains(w.log.String(), "DATA RACE") {
			t.Errorf("worker %s has a data race", name)
		}
		if t.Failed() {
			t.Logf("log of worker %s:\n%s", name, w.log.tail(20000))
		}
	})
	w.addr = w.listensOn(t)
	w.waitReady(t)
	return w
}

// cleanEnvironment is this process's environment without what would configure a worker.
func cleanEnvironment() []string { return trumpettest.Environment() }

// listensOn reads the port, which the kernel chose, from the worker's log.
func (w *worker) listensOn(t *testing.T) string {
	t.Helper()
	deadline := time.After(patience)
	for {
		text, changed := w.log.snapshot()
		for line := range strings.Lines(text) {
			var record struct{ Msg, Address string }
			if json.Unmarshal([]byte(line), &record) == nil && record.Msg == "serving" {
				return record.Address
			}
		}
		select {
		case <-changed:
		case <-w.ended:
			t.Fatalf("worker %s ended at its start: %v\n%s", w.name, w.cmd.ProcessState, w.log.String())
		case <-deadline:
			t.Fatalf("worker %s does not say where it listens:\n%s", w.name, w.log.String())
		}
	}
}

func (w *worker) url(path string) string { return "http://" + w.addr + path }

// waitReady waits until the worker's bus is verified.
func (w *worker) waitReady(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := trumpettest.WaitReady(ctx, w.url("/readyz")); err != nil {
		t.Fatalf("worker %s: %v", w.name, err)
	}
}

// poll asks again and again, for what nobody reports.
func poll(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// signal sends a signal to the process, which may have ended.
func (w *worker) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := w.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("signal worker %s: %v", w.name, err)
	}
}

// stop ends the worker with SIGTERM, or with SIGKILL if that does not help.
func (w *worker) stop(t *testing.T) {
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-w.ended:
	case <-time.After(patience):
		t.Errorf("worker %s did not end on SIGTERM", w.name)
		_ = w.cmd.Process.Kill()
		<-w.ended
	}
}

// waitEnd waits for the process and returns its exit code.
func (w *worker) waitEnd(t *testing.T) int {
	t.Helper()
	select {
	case <-w.ended:
	case <-time.After(patience):
		t.Fatalf("worker %s did not end", w.name)
	}
	return w.cmd.ProcessState.ExitCode()
}

// logBuffer keeps what a process writes.
type logBuffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.b.Write(p)
	if l.changed != nil {
		close(l.changed)
		l.changed = make(chan struct{})
	}
	return n, err
}

func (l *logBuffer) snapshot() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String(), l.changed
}

func (l *logBuffer) String() string {
	text, _ := l.snapshot()
	return text
}

func (l *logBuffer) tail(n int) string {
	text := l.String()
	return text[max(0, len(text)-n):]
}
