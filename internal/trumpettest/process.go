package trumpettest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

// Build makes the binary in dir, with the race detector, so that workers are watched and not only
// their clients. It must be called inside the module.
func Build(ctx context.Context, dir string) (binary string, err error) {
	binary = filepath.Join(dir, "trumpet")
	build := exec.CommandContext(ctx, "go", "build", "-race", "-o", binary, "github.com/trumpet-realtime/trumpet/cmd/trumpet")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build trumpet: %w\n%s", err, out)
	}
	return binary, nil
}

// starter returns where the thread that starts processes takes them from. It lasts as long as this
// process, and so nobody waits for it.
var starter = sync.OnceValue(func() chan<- func() {
	starts := make(chan func())
	go func() {
		runtime.LockOSThread()
		for start := range starts {
			start()
		}
	}()
	return starts
})

// Start starts a process that ends with this one. The caller waits for it.
func Start(cmd *exec.Cmd) error {
	endWithUs(cmd)
	result := make(chan error)
	starter() <- func() { result <- cmd.Start() }
	return <-result
}

// Environment is this process's environment without what would configure a worker.
func Environment() []string {
	var clean []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TRUMPET_") && !strings.HasPrefix(v, "PG") && !strings.HasPrefix(v, "DATABASE_URL=") {
			clean = append(clean, v)
		}
	}
	return clean
}

// Log keeps what a process writes. The zero value is ready.
type Log struct {
	mu      sync.Mutex
	b       []byte
	dropped int           // bytes
	changed chan struct{} // closed by the next write
}

// maxLog bounds what is kept; the oldest half goes.
const maxLog = 8 << 20

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.b) > maxLog {
		l.dropped += len(l.b) / 2
		l.b = append([]byte(nil), l.b[len(l.b)/2:]...)
	}
	l.b = append(l.b, p...)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return len(p), nil
}

// Snapshot is what was written so far, and a channel that the next write closes.
func (l *Log) Snapshot() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return string(l.b), l.changed
}

// String is what was written so far.
func (l *Log) String() string {
	text, _ := l.Snapshot()
	return text
}

// Tail is the last n bytes.
func (l *Log) Tail(n int) string {
	text := l.String()
	return text[max(0, len(text)-n):]
}

// Size is a place in the log, for From.
func (l *Log) Size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped + len(l.b)
}

// From is what was written after a place, and a channel that the next write closes.
func (l *Log) From(size int) (string, <-chan struct{}) {
	text, changed := l.Snapshot()
	l.mu.Lock()
	defer l.mu.Unlock()
	return text[min(max(0, size-l.dropped), len(text)):], changed
}
