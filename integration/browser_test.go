package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// The gate: two browser windows on two workers behind nginx. What is sent by POST through nginx, by
// trumpet.broadcast, by a raw NOTIFY and by an INSERT is shown by both, in one order.
func TestTwoClients(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	w1, w2 := startWorker(t, url, "w1"), startWorker(t, url, "w2")
	proxy := startNginx(t, w1, w2)
	b := startBrowser(t, proxy.first+"/", proxy.second+"/")

	var workers []string
	b.do(t, command{Do: "workers"}, &workers)
	if !slices.Equal(workers, []string{"w1", "w2"}) {
		t.Fatalf("the windows are on workers %q, want one on each", workers)
	}

	post := func(t *testing.T, message string) {
		t.Helper()
		body := fmt.Sprintf(`{"message": %q}`, message)
		if code, answer, _ := ask(t, "POST", proxy.both+"/api/dispatch/broadcast", "application/json", body); code != 200 {
			t.Fatalf("POST: %d %s", code, answer)
		}
	}
	insert := func(t *testing.T, conn *pgx.Conn, title string) {
		t.Helper()
		pgtest.Exec(t, conn, "insert into jobs (title, technician, scheduled_for) values ($1, 'A. Technician', now())", title)
	}

	// One after the other, each seen on both pages before the next.
	post(t, "by POST")
	b.do(t, command{Do: "banner", Text: "by POST"}, nil)
	pgtest.Exec(t, conn, `select trumpet.broadcast('dispatch', '{"message": "by trumpet.broadcast"}')`)
	b.do(t, command{Do: "banner", Text: "by trumpet.broadcast"}, nil)
	pgtest.Exec(t, conn, "notify dispatch, 'by raw NOTIFY'")
	b.do(t, command{Do: "banner", Text: "by raw NOTIFY"}, nil)
	insert(t, conn, "by INSERT")
	b.do(t, command{Do: "card", Text: "by INSERT", Lane: "new"}, nil)
	for window := range 2 {
		text := fmt.Sprintf("from window %d's own box", window+1)
		b.do(t, command{Do: "send", Window: window, Text: text}, nil)
		b.do(t, command{Do: "banner", Text: text}, nil)
	}
	pgtest.Exec(t, conn, "update jobs set status = 'done' where title = 'by INSERT'")
	b.do(t, command{Do: "card", Text: "by INSERT", Lane: "done"}, nil)
	checkWindows(t, b, 7)

	// All four at once, again and again.
	const rounds = 15
	connections := []*pgx.Conn{pgtest.Connect(t, url), pgtest.Connect(t, url), pgtest.Connect(t, url)}
	var senders sync.WaitGroup
	each := func(f func(i int)) {
		senders.Go(func() {
			for i := range rounds {
				f(i)
			}
		})
	}
	each(func(i int) { post(t, fmt.Sprintf("post %d", i)) })
	each(func(i int) {
		pgtest.Exec(t, connections[0], "select trumpet.broadcast('dispatch', to_jsonb($1::text))", fmt.Sprintf("broadcast %d", i))
	})
	each(func(i int) {
		pgtest.Exec(t, connections[1], "select pg_notify('dispatch', $1)", fmt.Sprintf("notify %d", i))
	})
	each(func(i int) { insert(t, connections[2], fmt.Sprintf("insert %d", i)) })
	senders.Wait()
	poll(t.Context(), t, "all events in both windows", func() bool {
		var waiting []int
		b.do(t, command{Do: "waiting"}, &waiting)
		return min(waiting[0], waiting[1]) >= 4*rounds
	})
	checkWindows(t, b, 4*rounds)
	b.do(t, command{Do: "card", Text: fmt.Sprintf("insert %d", rounds-1), Lane: "new"}, nil)
}

// checkWindows fails unless both windows got the same events in one order, so many.
func checkWindows(t *testing.T, b *browser, count int) {
	t.Helper()
	var got [][]message
	b.do(t, command{Do: "events"}, &got)
	if len(got[0]) != count || len(got[1]) != count {
		t.Errorf("the windows got %d and %d events, want %d", len(got[0]), len(got[1]), count)
	}
	for i := range min(len(got[0]), len(got[1])) {
		one, other := got[0][i], got[1][i]
		if one.ID == "" {
			one.At = other.At // nothing else than the worker says when a raw NOTIFY was
		}
		if !reflect.DeepEqual(one, other) {
			t.Errorf("event %d is %+v in one window, %+v in the other", i, one, other)
			return
		}
	}
}

// browser is the process of browser/two-clients.mjs.
type browser struct {
	in   io.WriteCloser
	out  *bufio.Scanner
	lock sync.Mutex
}

type command struct {
	Do     string `json:"do"`
	Text   string `json:"text,omitempty"`
	Lane   string `json:"lane,omitempty"`
	Window int    `json:"window"`

	Wanted   json.RawMessage `json:"wanted,omitempty"`
	Chips    []string        `json:"chips,omitempty"`
	Priority *string         `json:"priority,omitempty"`
}

// mustHave fails the test, and says how to get what is missing.
func mustHave(t *testing.T, ok bool, what, install string) {
	t.Helper()
	if !ok {
		t.Fatalf("%s is needed for this test and was not found. Install it:\n\n    %s\n", what, install)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// startBrowser opens a window for each URL and waits until all are live.
func startBrowser(t *testing.T, urls ...string) *browser {
	t.Helper()
	node, err := exec.LookPath("node")
	mustHave(t, err == nil, "Node.js", "apt-get install nodejs npm")
	chromium := os.Getenv("CHROMIUM")
	if chromium == "" {
		chromium = "/usr/bin/chromium"
	}
	mustHave(t, exists(chromium), "Chromium, "+chromium+",", "apt-get install nginx-light chromium")
	mustHave(t, exists("browser/node_modules/playwright-core"), "playwright-core", "npm ci --prefix integration/browser")

	cmd := exec.Command(node, append([]string{"two-clients.mjs"}, urls...)...)
	cmd.Dir = "browser"
	var log logBuffer
	cmd.Stderr = &log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := startProcess(cmd); err != nil {
		t.Fatalf("start browser: %v", err)
	}
	b := &browser{in: in, out: bufio.NewScanner(out)}
	b.out.Buffer(nil, 16<<20)
	var chromiumPID int
	t.Cleanup(func() {
		// The script closes its browser when its input ends. If it does not, both are killed.
		_ = in.Close()
		timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		if !timer.Stop() || err != nil {
			t.Errorf("the browser did not end well: %v", err)
			if chromiumPID > 0 {
				_ = syscall.Kill(-chromiumPID, syscall.SIGKILL) // its own process group
			}
		}
		if t.Failed() {
			t.Logf("log of the browser:\n%s", log.tail(5000))
		}
	})
	var first struct{ PID int }
	b.read(t, &first, &log)
	chromiumPID = first.PID
	b.answer(t, nil, &log)
	return b
}

func (b *browser) read(t *testing.T, into any, log *logBuffer) {
	t.Helper()
	if !b.out.Scan() {
		text := ""
		if log != nil {
			text = log.tail(5000)
		}
		t.Fatalf("the browser ended: %v\n%s", b.out.Err(), text)
	}
	if err := json.Unmarshal(b.out.Bytes(), into); err != nil {
		t.Fatalf("the browser said %.200s: %v", b.out.Bytes(), err)
	}
}

func (b *browser) answer(t *testing.T, into any, log *logBuffer) {
	t.Helper()
	var answer struct {
		OK    bool
		Value json.RawMessage
		Error string
		Seen  []string
		Wrong []string
	}
	b.read(t, &answer, log)
	for _, wrong := range answer.Wrong {
		t.Errorf("in a page: %s", wrong)
	}
	if !answer.OK {
		t.Fatalf("in the browser: %s; the banners show %q", answer.Error, answer.Seen)
	}
	if into != nil {
		if err := json.Unmarshal(answer.Value, into); err != nil {
			t.Fatalf("the browser said %s: %v", answer.Value, err)
		}
	}
}

// do has the browser do something and waits for its answer.
func (b *browser) do(t *testing.T, c command, into any) {
	t.Helper()
	b.lock.Lock()
	defer b.lock.Unlock()
	line, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.in.Write(append(line, '\n')); err != nil {
		t.Fatalf("the browser does not read: %v", err)
	}
	b.answer(t, into, nil)
}
