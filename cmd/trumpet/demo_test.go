package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// demoRun is a demo that has said where everything is.
type demoRun struct {
	workers  [2]string
	database string
	stop     func() time.Duration
}

var (
	boardLine = regexp.MustCompile(`(?m)(http://127\.0\.0\.1:\d+/) +on worker w[12]`)
	psqlLine  = regexp.MustCompile(`psql '(postgres://[^']+)'`)
)

func startDemo(t *testing.T, args ...string) demoRun {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	var stderr strings.Builder
	go func() {
		err := run(ctx, append([]string{"demo", "--port", "0"}, args...), strings.NewReader(""), writer, &stderr, func(string) string { return "" })
		writer.CloseWithError(io.EOF)
		ended <- err
	}()
	var said strings.Builder
	lines := bufio.NewScanner(reader)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "Ctrl-C") {
		said.WriteString(lines.Text() + "\n")
	}
	d := demoRun{}
	d.stop = func() time.Duration {
		began := time.Now()
		cancel()
		_, _ = io.Copy(io.Discard, reader) // its last words, until it has ended
		err := <-ended
		ended <- err
		if err != nil {
			t.Errorf("demo: %v\n%s", err, stderr.String())
		}
		return time.Since(began)
	}
	t.Cleanup(func() { d.stop() })
	boards, psql := boardLine.FindAllStringSubmatch(said.String(), -1), psqlLine.FindStringSubmatch(said.String())
	if len(boards) != 2 || psql == nil {
		d.stop()
		t.Fatalf("the demo did not say where it is:\n%s%s", said.String(), stderr.String())
	}
	d.workers, d.database = [2]string{boards[0][1], boards[1][1]}, psql[1]
	return d
}

func request(t *testing.T, method, url, body string, into any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %d %v: %s", method, url, answer.StatusCode, err, text)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%s %s: %v: %s", method, url, err, text)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "--no-simulator")

	streams := make([]*bufio.Scanner, 2)
	for i, worker := range d.workers {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, worker+"api/stream?topics=jobs,dispatch", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { answer.Body.Close() })
		streams[i] = bufio.NewScanner(answer.Body)
		for streams[i].Scan() && streams[i].Text() != "event: ready" {
		}
		streams[i].Scan() // its data
		for streams[i].Text() != "" {
			streams[i].Scan()
		}
	}
	var published struct{ ID string }
	request(t, http.MethodPost, d.workers[0]+"api/dispatch/broadcast", `{"message": "Hello"}`, &published)
	execSQL(t, d.database, `insert into jobs (customer_id, title, address, priority) values (1, 'Tap drips', '1 Mill Lane', 1)`)
	execSQL(t, d.database, `select trumpet.broadcast('dispatch', '{"message": "The kettle is on"}')`)
	ids := make([][]string, 2)
	for i, stream := range streams {
		for len(ids[i]) < 3 && stream.Scan() {
			if id, ok := strings.CutPrefix(stream.Text(), "id: "); ok {
				ids[i] = append(ids[i], id)
			}
		}
	}
	if len(ids[0]) != 3 || strings.Join(ids[0], " ") != strings.Join(ids[1], " ") || ids[0][0] != published.ID {
		t.Errorf("published %s; the workers' streams gave %q", published.ID, ids)
	}

	for i, worker := range d.workers {
		var state struct {
			Simulator struct{ Paused bool }
			Worker    string
			Workers   []struct{ Name, URL string }
		}
		request(t, http.MethodGet, worker+"demo/state", "", &state)
		if !state.Simulator.Paused || state.Worker != []string{"w1", "w2"}[i] || len(state.Workers) != 2 || state.Workers[1].URL != d.workers[1] {
			t.Errorf("state: %+v", state)
		}
	}
	var simulator struct{ Paused *bool }
	request(t, http.MethodPost, d.workers[1]+"demo/simulator", `{"paused": false}`, &simulator)
	if simulator.Paused == nil || *simulator.Paused {
		t.Errorf("the simulator is %v", simulator.Paused)
	}
	var status struct{ Streams, Alive, Answered int }
	request(t, http.MethodGet, d.workers[0]+"api/dispatch/status", "", &status)
	if status.Streams != 2 || status.Alive != 2 || status.Answered != 2 {
		t.Errorf("status: %+v", status)
	}

	if took := d.stop(); took > 4*time.Second { // 2 s, and patience for a busy machine
		t.Errorf("the stop took %v", took)
	}
}

func TestDemoKeeps(t *testing.T) {
	t.Parallel()
	parent, err := os.MkdirTemp("", "trumpet-demo-") // t.TempDir is closed to the server's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, "kept")
	first := startDemo(t, "--no-simulator", "--keep", dir)
	execSQL(t, first.database, "update customers set name = 'Kept' where id = 1; delete from jobs")
	first.stop()

	second := startDemo(t, "--no-simulator", "--keep", dir)
	conn, err := pgx.Connect(t.Context(), second.database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var name string
	var jobs int
	if err := conn.QueryRow(t.Context(), "select name, (select count(*) from jobs) from customers where id = 1").Scan(&name, &jobs); err != nil {
		t.Fatal(err)
	}
	if name != "Kept" || jobs != 0 {
		t.Errorf("after the second start: %q, %d jobs", name, jobs)
	}
}

func TestDemoSaysThatItsPortIsTaken(t *testing.T) {
	t.Parallel()
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := strings.Cut(l.Addr().String(), ":")
	_, stderr, code := call(t, t.Context(), nil, nil, "demo", "--port", port)
	if code != 1 || !strings.Contains(stderr, "address already in use; choose others with --port") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
