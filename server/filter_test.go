package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server"
	"github.com/trumpet-realtime/trumpet/server/hub"
)

// catalog knows one table, jobs, or fails.
type catalog struct{ fails func() error }

func (c catalog) Table(_ context.Context, topic string) (trumpet.Table, bool, error) {
	if c.fails != nil {
		if err := c.fails(); err != nil {
			return trumpet.Table{}, false, err
		}
	}
	return trumpet.Table{Topic: "jobs", Schema: "public", Name: "jobs", Key: []string{"id"}, Columns: []trumpet.Column{
		{Name: "id", Type: "bigint", Kind: trumpet.KindNumber}, {Name: "status", Type: "text", Kind: trumpet.KindText},
	}}, topic == "jobs", nil
}

// tables reads one snapshot again and again.
type tables struct{ trumpet.Snapshot }

func (r tables) ReadSnapshot(context.Context, []trumpet.SnapshotRequest, trumpet.SnapshotLimits) (trumpet.Snapshot, error) {
	return r.Snapshot, nil
}

func withCatalog(c catalog) func(*server.Config, *backend) {
	return func(config *server.Config, b *backend) {
		config.Catalog = c
		b.hub.UseSnapshots(tables{trumpet.Snapshot{Topics: []trumpet.TopicSnapshot{
			{Topic: "jobs", Pages: [][]json.RawMessage{{json.RawMessage(`{"id":1,"status":"open"}`)}}},
		}}})
	}
}

// job is an update of one job's status.
func job(position int64, from, to string) trumpet.Event {
	return trumpet.Event{
		ID: trumpet.EventID{Position: position, Tag: uint32(position)}, Topic: "jobs", Op: trumpet.OpUpdate, At: time.Unix(position, 0),
		Key: json.RawMessage(`{"id":1}`), New: json.RawMessage(`{"id":1,"status":"` + to + `"}`), Old: json.RawMessage(`{"status":"` + from + `"}`),
	}
}

func TestFiltersOverBothTransports(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, withCatalog(catalog{}))
	w.begin()
	conn := w.dial(t, "/ws?topics=jobs?status=eq.open&id=gte.01")
	s := w.open(t, "/api/stream?topics=news,jobs%3Fstatus%3Deq.open", nil)
	expect(t, conn, "ready")
	s.expect(t, "ready")
	w.give(job(1, "new", "done"))
	w.give(job(2, "done", "open"))
	w.give(job(3, "open", "new"))
	for _, want := range []string{"enter", "leave"} {
		if m := nextEvent(t, conn); m.Op != want {
			t.Fatalf("got %+v, want %s", m, want)
		}
		m := s.mustNext(t)
		for m.Type != "" {
			m = s.mustNext(t)
		}
		if m.Op != want {
			t.Fatalf("got %+v, want %s", m, want)
		}
	}
}

func TestSnapshotByURL(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, withCatalog(catalog{}))
	w.begin()
	s := w.open(t, "/api/stream?topics=jobs?status=eq.open&snapshot=1", nil)
	if m := s.expect(t, "snapshot"); m.Topic != "jobs" || m.ID != "" {
		t.Fatalf("got %+v", m)
	}
	s.expect(t, "ready")
	response, err := http.Get(w.url("/metrics"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var metrics strings.Builder
	if err := response.Write(&metrics); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"trumpet_snapshots_total 1", "trumpet_snapshot_clients_total 1"} {
		if !strings.Contains(metrics.String(), line) {
			t.Errorf("the metrics have no %q", line)
		}
	}
}

// What is wrong with a filter is said before the connection is made, because an EventSource must not
// come back with it.
func TestFiltersThatDoNotFit(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, withCatalog(catalog{}))
	w.begin()
	for query, part := range map[string]string{
		"topics=jobs?state=eq.open":            "id, status",
		"topics=jobs?id=eq.one":                "bigint",
		"topics=jobs?status=like.o*":           "operators",
		"topics=news?status=eq.open":           "topic news is not that of a watched table",
		"topics=jobs&status=eq.open":           "stands behind no topic",
		"topics=jobs?status=eq.open&limit=100": "operators",
		"topics=jobs&snapshot=yes":             "snapshot is 1 or 0",
	} {
		for _, path := range []string{"/ws?", "/api/stream?"} {
			response, p := w.problem(t, http.MethodGet, path+query, "", nil)
			if response.StatusCode != http.StatusBadRequest || !strings.Contains(p.Detail, part) {
				t.Errorf("%s: got %d, %q, want %q", path+query, response.StatusCode, p.Detail, part)
			}
		}
	}
	// Without a catalog there is nothing to filter by.
	none := start(t, hub.Config{}, nil)
	none.begin()
	if response, p := none.problem(t, http.MethodGet, "/ws?topics=jobs?id=eq.1", "", nil); response.StatusCode != http.StatusBadRequest {
		t.Errorf("got %d, %+v", response.StatusCode, p)
	}
}

// Postgres away is a passing condition: clients come back for it.
func TestFiltersWhilePostgresIsAway(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, withCatalog(catalog{fails: func() error { return errors.New("connection refused") }}))
	w.begin()
	conn := w.dial(t, "/ws?topics=jobs?id=eq.1")
	expectClose(t, conn, trumpet.EndingUnavailable.Code)
	s := w.open(t, "/api/stream?topics=jobs?id=eq.1", nil)
	if m := s.expect(t, "error"); m.Code != "unavailable" || strings.Contains(m.Message, "refused") {
		t.Errorf("got %+v", m)
	}
	s.expectEOF(t)
	if n := w.hub.Stats().Endings["unavailable"]; n != 2 {
		t.Errorf("%d endings were counted", n)
	}
	// Who has no filter does not need it.
	expect(t, w.dial(t, "/ws?topics=jobs"), "ready")
}

func TestSubscribeWithRefs(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	w := start(t, hub.Config{}, withCatalog(catalog{fails: func() error {
		if away.Load() {
			return errors.New("connection refused")
		}
		return nil
	}}))
	w.begin()
	conn := w.dial(t, "/ws")
	expect(t, conn, "ready")
	ask := func(text string) string {
		t.Helper()
		if err := conn.Write(within(t), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		for {
			_, b, err := conn.Read(within(t))
			if err != nil {
				t.Fatal(err)
			}
			if text := string(b); !strings.Contains(text, `"type":"stale"`) && !strings.Contains(text, `"type":"live"`) && !strings.Contains(text, `"type":"ping"`) {
				return text
			}
		}
	}
	for _, test := range []struct{ ask, want string }{
		{
			`{"type":"subscribe","ref":7,"topics":["jobs?status=eq.open","news"]}`,
			`{"type":"subscribed","ref":7,"topics":["jobs?status=eq.open","news"],"id":"0.0-00000000"}`,
		},
		{
			`{"type":"subscribe","ref":"x","topics":["jobs?id=eq.0012"]}`,
			`{"type":"subscribed","ref":"x","topics":["jobs?id=eq.12","jobs?status=eq.open","news"],"id":"0.0-00000000"}`,
		},
		{
			`{"type":"unsubscribe","topics":["jobs?id=eq.12.0","news"]}`,
			`{"type":"subscribed","topics":["jobs?status=eq.open"],"id":"0.0-00000000"}`,
		},
		{
			`{"type":"subscribe","ref":"y","topics":["jobs?state=eq.open"]}`,
			`{"type":"refused","ref":"y","message":"topic jobs has no column \"state\"; it has id, status"}`,
		},
		{
			`{"type":"unsubscribe","ref":1,"topics":["jobs?state=eq.open"]}`,
			`{"type":"subscribed","ref":1,"topics":["jobs?status=eq.open"],"id":"0.0-00000000"}`,
		},
	} {
		if got := ask(test.ask); got != test.want {
			t.Errorf("%s\ngot  %s\nwant %s", test.ask, got, test.want)
		}
	}
	got := ask(`{"type":"subscribe","ref":2,"topics":["` + strings.Join(strings.Split(strings.Repeat("x", 257), ""), `","`) + `"]}`)
	if got != `{"type":"refused","ref":2,"message":"a connection has at most 256 topics"}` {
		t.Errorf("got %s", got)
	}
	away.Store(true)
	if got := ask(`{"type":"subscribe","ref":3,"topics":["jobs?id=eq.1"]}`); !strings.HasPrefix(got, `{"type":"refused","ref":3,`) || strings.Contains(got, "connection") {
		t.Errorf("got %s", got)
	}
	w.give(job(1, "new", "open"))
	if m := nextEvent(t, conn); m.Op != "enter" {
		t.Errorf("got %+v", m)
	}
}
