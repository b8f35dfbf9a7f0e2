package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// worker is a running trumpet serve.
type worker struct {
	cmd     *exec.Cmd
	address string
}

// startWorker starts a worker that also hears the channel of the bare trigger, and waits until
// it is ready.
func (b *bench) startWorker(ctx context.Context, flags ...string) (*worker, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	w := &worker{address: fmt.Sprintf("127.0.0.1:%d", port)}
	w.cmd = exec.Command(b.binary, append([]string{
		"serve", "--listen", w.address, "--channels", "bare", "--drain", "0s", "--log-level", "error",
	}, flags...)...)
	w.cmd.Env = append(os.Environ(), "DATABASE_URL="+b.server.URL("bench"))
	w.cmd.Stderr = os.Stderr
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	if err := waitReady(ctx, w.address); err != nil {
		return nil, errors.Join(err, w.stop())
	}
	return w, nil
}

func (w *worker) stop() error {
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return w.cmd.Wait()
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func waitReady(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("worker on %s is not ready: %w", address, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func stopAll(workers []*worker) error {
	var all error
	for _, w := range workers {
		all = errors.Join(all, w.stop())
	}
	return all
}
