package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// usage is of memory, in bytes.
type usage struct{ before, most int64 }

// resident is how much memory a process has.
func resident(pid int) (int64, error) { return memoryOf(pid, "VmRSS:") }

// mostResident is the most that it had since forgetMostResident.
func mostResident(pid int) (int64, error) { return memoryOf(pid, "VmHWM:") }

// forgetMostResident lets the most memory be what there is now (proc(5), clear_refs).
func forgetMostResident(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

func memoryOf(pid int, field string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, field)
}

// heapWatch looks at a worker's heap now and then. Its resident memory need not be watched: Linux knows the most.
type heapWatch struct {
	worker *worker

	most int64
	err  error
	end  context.CancelFunc
	done chan struct{}
}

const heapSize = "go_memstats_heap_alloc_bytes"

// start returns what there is now.
func (h *heapWatch) start(ctx context.Context) (now int64, err error) {
	if now, err = h.worker.counter(ctx, heapSize); err != nil {
		return 0, err
	}
	h.most = now
	ctx, h.end = context.WithCancel(ctx)
	h.done = make(chan struct{})
	go func() {
		defer close(h.done)
		for sleep(ctx, 100*time.Millisecond) == nil {
			n, err := h.worker.counter(ctx, heapSize)
			if err != nil {
				if ctx.Err() == nil {
					h.err = err
				}
				return
			}
			h.most = max(h.most, n)
		}
	}()
	return now, nil
}

// stop ends it and waits.
func (h *heapWatch) stop() error {
	if h.end == nil {
		return nil
	}
	h.end()
	<-h.done
	return h.err
}
