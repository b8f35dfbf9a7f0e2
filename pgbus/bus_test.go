package pgbus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

func TestMain(m *testing.M) {
	// The Postgres that all tests share ends with the process.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/trumpet-realtime/trumpet/internal/postgres.(*Server).spawn.func1"))
}

// patience is how long a test waits for what must come; it is no measure of speed.
const patience = 30 * time.Second

// recorder is a sink that remembers.
type recorder struct {
	mu       sync.Mutex
	changed  chan struct{}
	events   []trumpet.Event
	heads    []trumpet.EventID
	resets   []trumpet.EventID
	rewinds  []trumpet.EventID
	retained []trumpet.Event // as of the newest Retain
	live     bool
	stales   int
	broken   []string // what a sink must never see
}

func newRecorder() *recorder { return &recorder{changed: make(chan struct{})} }

func (r *recorder) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) Reset(after trumpet.EventID) {
	r.change(func() { r.resets = append(r.resets, after); r.heads = append(r.heads, after) })
}
func (r *recorder) Rewind(to trumpet.EventID) {
	r.change(func() { r.rewinds = append(r.rewinds, to); r.heads = append(r.heads, to) })
}
func (r *recorder) Retain(results []trumpet.Event) {
	r.change(func() { r.retained = results })
}
func (r *recorder) Live()  { r.change(func() { r.live = true }) }
func (r *recorder) Stale() { r.change(func() { r.live = false; r.stales++ }) }

func (r *recorder) Append(events []trumpet.Event, head trumpet.EventID) {
	r.change(func() {
		last := r.heads[len(r.heads)-1]
		for _, e := range events {
			if !e.ID.IsZero() && (e.ID.Compare(last) <= 0 || e.ID.Position > last.Position+1) {
				r.broken = append(r.broken, fmt.Sprintf("%v after %v", e.ID, last))
			}
			if !e.ID.IsZero() {
				last = e.ID
			}
		}
		if n := len(events); n > 0 && events[n-1].More {
			r.broken = append(r.broken, fmt.Sprintf("%v ends a batch but not its transaction", events[n-1].ID))
		}
		r.events = append(r.events, events...)
		r.heads = append(r.heads, head)
	})
}

// wait waits until what it is told of the recorder is true.
func (r *recorder) wait(t *testing.T, what string, ok func(r *recorder) bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		done, changed := ok(r), r.changed
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (r *recorder) waitLive(t *testing.T) {
	t.Helper()
	r.wait(t, "live", func(r *recorder) bool { return r.live })
}

// waitData waits for a broadcast with this data and returns all events up to now.
func (r *recorder) waitData(t *testing.T, data string) []trumpet.Event {
	t.Helper()
	var events []trumpet.Event
	r.wait(t, "broadcast "+data, func(r *recorder) bool {
		events = r.events
		return slices.ContainsFunc(r.events, func(e trumpet.Event) bool { return string(e.Data) == data })
	})
	return slices.Clone(events)
}

func (r *recorder) check(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.broken {
		t.Errorf("the sink saw %s", b)
	}
}

// testLog sends logs to the test's output.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// start runs a bus until the test, or stop, ends it.
func start(t *testing.T, url, worker string, change func(*pgbus.Config)) (bus *pgbus.Bus, r *recorder, stop func()) {
	t.Helper()
	config := pgbus.Config{ConnString: url, Worker: worker, Heartbeat: 500 * time.Millisecond, Logger: testLog(t),
		Answer: func() json.RawMessage { return json.RawMessage(`"` + worker + `"`) }}
	if change != nil {
		change(&config)
	}
	r = newRecorder()
	bus, err := pgbus.New(config, r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- bus.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		r.check(t)
	})
	t.Cleanup(stop)
	r.waitLive(t)
	return bus, r, stop
}

// database makes a migrated database with a watched table.
func database(t *testing.T) (url string, conn *pgx.Conn) {
	t.Helper()
	return capturedDatabase(t, "triggers")
}

// capturedDatabase watches by the WAL, if asked to.
func capturedDatabase(t *testing.T, capture string) (url string, conn *pgx.Conn) {
	t.Helper()
	if capture == "wal" {
		url = pgtest.MigratedForWAL(t)
	} else {
		url = pgtest.Migrated(t)
	}
	return url, watchedJobs(t, url, capture)
}

// ownDatabase watches by the WAL on a server of its own, for what looks at all its slots and sessions.
func ownDatabase(t *testing.T) (url string, conn *pgx.Conn) {
	t.Helper()
	_, url = pgtest.StartMigrated(t, nil)
	return url, watchedJobs(t, url, "wal")
}

func watchedJobs(t *testing.T, url, capture string) *pgx.Conn {
	t.Helper()
	conn := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, "create table jobs (id int primary key, version int not null default 0, note text)")
	if capture == "wal" {
		pgtest.Exec(t, conn, "alter table jobs replica identity full")
	}
	pgtest.Exec(t, conn, "select trumpet.watch('jobs', capture => '"+capture+"')")
	return conn
}

// waitForSlot waits until the WAL is read.
func waitForSlot(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	waitFor(t, conn, "select exists (select from trumpet.wal_slot w join pg_replication_slots s on s.slot_name = w.name and s.active)")
}

func describe(events []trumpet.Event) []string {
	var all []string
	for _, e := range events {
		s := fmt.Sprintf("%s %s", e.Op, e.Key)
		switch e.Op {
		case trumpet.OpBroadcast:
			s = "broadcast " + string(e.Data)
		case trumpet.OpBulk:
			s = fmt.Sprintf("bulk %s %d", e.Statement, e.Rows)
		case trumpet.OpTruncate:
			s = "truncate"
		}
		if e.More {
			s += " more"
		}
		all = append(all, s)
	}
	return all
}

func TestEveryKindOfEvent(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1), (2)")
	pgtest.Exec(t, conn, "begin; update jobs set note = 'x'; delete from jobs where id = 2; commit")
	pgtest.Exec(t, conn, "insert into jobs (id) select g from generate_series(100, 1200) g")
	pgtest.Exec(t, conn, "truncate jobs")
	pgtest.Exec(t, conn, "insert into jobs (id, note) values (7, repeat('é\n\t\"', 250000))")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '{\"a\": 1}')")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	events := r.waitData(t, `"end"`)
	want := []string{
		`insert {"id":1} more`, `insert {"id":2}`, `update {"id":1} more`, `update {"id":2} more`, `delete {"id":2}`,
		"bulk insert 1101", "truncate", `insert {"id":7}`, `broadcast {"a": 1}`, `broadcast "end"`,
	}
	if got := describe(events); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	var row struct{ Note string }
	if err := json.Unmarshal(events[7].New, &row); err != nil || len(row.Note) != 250000*5 || !strings.HasPrefix(row.Note, "é\n\t\"é") {
		t.Errorf("a row of 1 MB came with a note of %d bytes, %v", len(row.Note), err)
	}
}

func TestRawNotify(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", func(c *pgbus.Config) { c.Channels = []string{"dispatch", "Other-1"} })
	pgtest.Exec(t, conn, "notify dispatch, 'plain \"text\"'")
	pgtest.Exec(t, conn, "select pg_notify('Other-1', E'{\"a\":\\n [1]}')")
	pgtest.Exec(t, conn, "notify unheard, 'nobody listens'")
	pgtest.Exec(t, conn, "notify dispatch")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	events := r.waitData(t, `"end"`)
	want := []string{`broadcast "plain \"text\""`, `broadcast {"a":[1]}`, `broadcast ""`, `broadcast "end"`}
	if got := describe(events); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if !events[0].ID.IsZero() || events[1].Topic != "Other-1" || events[3].ID.IsZero() {
		t.Errorf("got %+v", events)
	}
}

func TestForgedNotificationsAreCountedAndDropped(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	var payload string
	pgtest.Exec(t, conn, "listen trumpet")
	pgtest.Exec(t, conn, "insert into jobs (id) values (1)")
	n, err := conn.WaitForNotification(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	payload = n.Payload
	for i, forged := range []string{
		"noise", "{}", "2\tffffffff", strings.Repeat("0", 32) + "\n2\n",
		strings.Replace(payload, "\n1\t", "\n2\t", 1), // the signature of another body
		payload, // signed, but known: dropped in silence
	} {
		if _, err := conn.Exec(t.Context(), "select pg_notify('trumpet', $1), pg_notify('trumpet_workers', $1), pg_notify('trumpet_wake', $1)", forged); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	if got, want := describe(r.waitData(t, `"end"`)), []string{`insert {"id":1}`, `broadcast "end"`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if status := bus.Status(); status.Forged < 5 || !status.Connected || status.Reconnects != 0 {
		t.Errorf("status %+v", status)
	}
}

func TestPublishAndAsk(t *testing.T) {
	t.Parallel()
	url, _ := database(t)
	one, r1, _ := start(t, url, "w1", nil)
	_, r2, _ := start(t, url, "w2", nil)
	id, err := one.Publish(t.Context(), "dispatch", json.RawMessage(`"hello"`))
	if err != nil || id.IsZero() {
		t.Fatalf("publish: %v, %v", id, err)
	}
	for _, r := range []*recorder{r1, r2} {
		events := r.waitData(t, `"hello"`)
		if events[len(events)-1].ID != id {
			t.Errorf("the event is %v, published as %v", events[len(events)-1].ID, id)
		}
	}
	answers, alive, err := one.Ask(t.Context())
	if err != nil || alive != 2 || len(answers) != 2 {
		t.Errorf("ask: %d answers of %d, %v", len(answers), alive, err)
	}
	for _, topic := range []string{"", "a b", strings.Repeat("x", 200)} {
		if _, err := one.Publish(t.Context(), topic, json.RawMessage("1")); err == nil {
			t.Errorf("published on topic %q", topic)
		}
	}
	if _, err := one.Publish(t.Context(), "dispatch", json.RawMessage("{")); err == nil {
		t.Error("published what is not JSON")
	}
}

func TestReadLog(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs (id) values (1), (2), (3)")
	pgtest.Exec(t, conn, "begin; insert into jobs (id) values (4); insert into jobs (id) values (5); commit")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	all := r.waitData(t, `"end"`)
	head := all[len(all)-1].ID // a broadcast: its record has no further event
	for i := range all {
		events, upTo, err := bus.ReadLog(t.Context(), all[i].ID, head)
		if err != nil || upTo != head {
			t.Errorf("after %v: up to %v, %v", all[i].ID, upTo, err)
		}
		if got, want := describe(events), describe(all[i+1:]); !slices.Equal(got, want) {
			t.Errorf("after %v: got %q, want %q", all[i].ID, got, want)
		}
	}
	wrongTag, beyond := all[0].ID, head
	wrongTag.Tag++
	beyond.Position += 5
	ordinal := all[0].ID
	ordinal.Ordinal = 9
	for _, id := range []trumpet.EventID{wrongTag, beyond, ordinal} {
		if _, _, err := bus.ReadLog(t.Context(), id, head); !isUnknown(err) {
			t.Errorf("after %v: %v", id, err)
		}
	}
	// Another worker was ahead: the id is good, and there is nothing to read yet.
	if events, upTo, err := bus.ReadLog(t.Context(), head, all[0].ID); err != nil || len(events) != 0 || upTo != head {
		t.Errorf("from ahead: %d events up to %v, %v", len(events), upTo, err)
	}
	waitUntil(t, "pruning, which the worker may be at too", func() bool {
		var pruned int64
		if err := conn.QueryRow(t.Context(), "select pruned from trumpet.prune('0', 1 << 40)").Scan(&pruned); err != nil {
			t.Fatal(err)
		}
		return pruned > 0
	})
	if _, _, err := bus.ReadLog(t.Context(), all[1].ID, head); !isPruned(err) {
		t.Errorf("after pruning: %v", err)
	}
	if _, upTo, err := bus.ReadLog(t.Context(), head, head); err != nil || upTo != head {
		t.Errorf("from the head after pruning: up to %v, %v", upTo, err)
	}
}
