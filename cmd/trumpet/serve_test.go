package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// startServe runs serve and returns its URL, and what ends it and returns its exit code.
func startServe(t *testing.T, args ...string) (url string, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		err := run(ctx, append([]string{"serve", "--listen", "127.0.0.1:0", "--drain", "100ms"}, args...), strings.NewReader(""), io.Discard, writer, func(string) string { return "" })
		writer.CloseWithError(io.EOF)
		ended <- exitCode(err)
	}()
	logs := json.NewDecoder(reader)
	stop = func() int {
		cancel()
		_, _ = io.Copy(io.Discard, reader) // what it still logs, until it has ended
		code := <-ended
		ended <- code
		return code
	}
	t.Cleanup(func() { stop() })
	for {
		var entry struct{ Msg, Address string }
		if err := logs.Decode(&entry); err != nil {
			t.Fatalf("serve ended before it served: %v", err)
		}
		if entry.Msg == "serving" {
			go func() { _, _ = io.Copy(io.Discard, reader) }() // ends with the pipe
			return "http://" + entry.Address + "/", stop
		}
	}
}

func status(t *testing.T, url string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

func waitStatus(t *testing.T, url string, want int) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for status(t, url) != want {
		select {
		case <-deadline:
			t.Fatalf("%s is not %d after 30 s", url, want)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	url, stop := startServe(t, "--database-url", pgtest.Migrated(t), "--worker", "test")
	waitStatus(t, url+"readyz", http.StatusOK)
	for _, path := range []string{"", "dashboard", "metrics", "healthz", "api/dispatch/status"} {
		if got := status(t, url+path); got != http.StatusOK {
			t.Errorf("/%s: status %d", path, got)
		}
	}
	if got := status(t, url+"demo/state"); got != http.StatusNotFound {
		t.Errorf("/demo/state outside the demo: status %d", got)
	}
	if code := stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A worker that is started before Postgres waits for it; one whose database lacks the schema ends.
func TestServeWaitsForPostgres(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, nil)
	if _, stderr, code := call(t, t.Context(), nil, nil, "serve", "--listen", "127.0.0.1:0", "--database-url", server.URL("postgres")); code != 1 ||
		!strings.Contains(stderr, "run: trumpet migrate up") || strings.Contains(stderr, "serving") {
		t.Errorf("without the schema: exit code %d: %s", code, stderr)
	}
	if _, stderr, code := call(t, t.Context(), nil, nil, "migrate", "up", "--database-url", server.URL("postgres")); code != 0 {
		t.Fatal(stderr)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	url, stop := startServe(t, "--database-url", server.URL("postgres"))
	if got := status(t, url+"healthz"); got != http.StatusOK {
		t.Errorf("/healthz: status %d", got)
	}
	if got := status(t, url+"readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("/readyz: status %d", got)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitStatus(t, url+"readyz", http.StatusOK)
	if code := stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
