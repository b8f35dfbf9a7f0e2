package integration

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// What is promised about time, and asserted.
const (
	noticedWithin = 15 * time.Second // a fault, by who is connected
	// Live again within 5 s of the fault's end; on a machine that does much else at once this is
	// given twice the time, because an attempt to connect and the pause after it may take it all.
	liveWithin   = 2 * 5 * time.Second
	placeWithin  = 40 * time.Second // a vanished client's place is free
	answerWithin = 15 * time.Second // a broadcast that Postgres does not confirm
	// answerTimeout is how long a worker waits for a heartbeat's answer if nothing else tells it more.
	answerTimeout = 8 * time.Second
)

// keep reports a time since began, and an error if it is longer than promised.
func keep(t *testing.T, what string, began time.Time, promised time.Duration) {
	t.Helper()
	took := time.Since(began)
	t.Logf("%s: %v", what, took.Round(time.Millisecond))
	if took > promised {
		t.Errorf("%s: %v, the promise is %v", what, took, promised)
	}
}

// after waits for a message that fits, among those behind the first n, and returns how many messages
// there are up to it.
func (c *client) after(t *testing.T, n int, what string, fits func(m message) bool) (found message, upTo int) {
	t.Helper()
	c.wait(t, what, func() bool {
		for ; n < len(c.messages); n++ {
			if fits(c.messages[n]) {
				found, upTo = c.messages[n], n+1
				return true
			}
		}
		return false
	})
	return found, upTo
}

func (c *client) controlAfter(t *testing.T, n int, kind string) (message, int) {
	t.Helper()
	return c.after(t, n, kind, func(m message) bool { return m.Type == kind })
}

// connected fails the test if the connection has ended.
func (c *client) connected(t *testing.T) {
	t.Helper()
	select {
	case <-c.ended:
		t.Errorf("%s: the connection ended: %v", c.name, c.err)
	default:
	}
}

// unbroken fails the test if the client was told that something is missing.
func (c *client) unbroken(t *testing.T) {
	t.Helper()
	c.connected(t)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.messages {
		if m.Type == "reset" || m.Type == "error" {
			t.Errorf("%s got %s", c.name, m.text)
		}
	}
}

// posted is the answer to a broadcast that somebody waits for.
type posted struct {
	code int
	err  error
	took time.Duration
}

// post broadcasts over HTTP without waiting for the answer.
func post(t *testing.T, w *worker, data string) <-chan posted {
	t.Helper()
	answer := make(chan posted, 1)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url("/api/dispatch/broadcast"), strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	began := time.Now()
	go func() {
		response, err := http.DefaultClient.Do(request)
		p := posted{err: err, took: time.Since(began)}
		if err == nil {
			p.code = response.StatusCode
			_ = response.Body.Close()
		}
		answer <- p
	}()
	return answer
}

// postMany posts more than a worker has connections for.
func postMany(t *testing.T, w *worker, data string) (answers []<-chan posted) {
	t.Helper()
	for range 8 {
		answers = append(answers, post(t, w, data))
	}
	return answers
}

// warm has a worker open all connections that it may.
func warm(t *testing.T, w *worker) {
	t.Helper()
	for _, answer := range postMany(t, w, `"warm"`) {
		if p := <-answer; p.code != http.StatusOK {
			t.Fatalf("%s: a broadcast was answered with %d (%v)", w.name, p.code, p.err)
		}
	}
}

// refused checks that a broadcast was answered with 503, in time.
func refused(t *testing.T, what string, answer <-chan posted) {
	t.Helper()
	p := <-answer
	if p.err != nil || p.code != http.StatusServiceUnavailable || p.took > answerWithin {
		t.Errorf("%s: a broadcast was answered with %d (%v) after %v, want 503 within %v", what, p.code, p.err, p.took, answerWithin)
		return
	}
	t.Logf("%s: a broadcast was answered with 503 after %v", what, p.took.Round(time.Millisecond))
}

// notReady checks that a worker says so.
func notReady(t *testing.T, w *worker) {
	t.Helper()
	if code, _, _ := ask(t, http.MethodGet, w.url("/readyz"), "", ""); code != http.StatusServiceUnavailable {
		t.Errorf("%s: /readyz says %d, want 503", w.name, code)
	}
	if code, _, _ := ask(t, http.MethodGet, w.url("/healthz"), "", ""); code != http.StatusOK {
		t.Errorf("%s: /healthz says %d, want 200", w.name, code)
	}
}

// scribble writes all the time, whatever happens to Postgres, and connects again when it must. What
// was committed is told by the log alone. The function that it returns ends it.
func scribble(t *testing.T, url string) (stop func()) {
	t.Helper()
	var stopping atomic.Bool
	var group sync.WaitGroup
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	group.Go(func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for !stopping.Load() && ctx.Err() == nil {
			connecting, connected := context.WithTimeout(ctx, 5*time.Second)
			conn, err := pgx.Connect(connecting, url)
			connected()
			for n := 0; err == nil && !stopping.Load(); n++ {
				_, err = conn.Exec(ctx, []string{
					"insert into jobs (title) values ('scribbled')",
					"update jobs set priority = priority + 1 where id = 3",
					"insert into customers (name) select 'scribbled ' || n from generate_series(1, 3) n",
					`select trumpet.broadcast('dispatch', '"scribbled"')`,
				}[n%4])
				<-tick.C
			}
			if conn != nil {
				_ = conn.Close(ctx)
			}
			<-tick.C
		}
	})
	t.Cleanup(func() { // a statement may still wait for a server that is frozen
		cancel()
		group.Wait()
	})
	return func() {
		stopping.Store(true)
		group.Wait()
	}
}

// rawDialer dials with a small buffer for what was not read.
func rawDialer(readBuffer int) *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		if readBuffer == 0 {
			return nil
		}
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, readBuffer) // before the window is told
		})
		return errors.Join(err, failed)
	}}
}
