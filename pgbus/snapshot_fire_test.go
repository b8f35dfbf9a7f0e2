package pgbus_test

import (
	"context"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

// rowsByKey is a client's view of jobs.
type rowsByKey map[string]string

func (r rowsByKey) take(row json.RawMessage, only string) {
	var job struct {
		ID   json.RawMessage
		Note *string
	}
	if err := json.Unmarshal(row, &job); err != nil {
		panic(err)
	}
	if only == "" || job.Note != nil && *job.Note == only {
		r[string(job.ID)] = string(row)
	}
}

// apply does what an event says, where only rows with that note are wanted.
func (r rowsByKey) apply(e trumpet.Event, only string) {
	if e.Topic != "jobs" || e.Op == trumpet.OpBulk { // a slot's first event
		return
	}
	if e.Op == trumpet.OpTruncate {
		clear(r)
		return
	}
	for _, object := range []json.RawMessage{e.Key, e.Old} { // old has the id too if that has changed
		var key struct{ ID json.RawMessage }
		if object == nil || json.Unmarshal(object, &key) != nil {
			continue
		}
		delete(r, string(key.ID))
	}
	if e.Op != trumpet.OpDelete {
		r.take(e.New, only)
	}
}

// Snapshots are taken by two workers while many write, abort, roll back to savepoints and truncate.
// Each has exactly the rows that the events up to its place make, from the very first on, and with the
// events after it becomes what the table is in the end. So does one with a filter.
func TestSnapshotsUnderFire(t *testing.T) {
	t.Parallel()
	for _, capture := range []string{"triggers", "wal"} {
		t.Run(capture, func(t *testing.T) {
			t.Parallel()
			testSnapshotsUnderFire(t, capture)
		})
	}
}

func testSnapshotsUnderFire(t *testing.T, capture string) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	url, conn := capturedDatabase(t, capture)
	one, r, _ := start(t, url, "w1", nil)
	two, _, _ := start(t, url, "w2", nil)
	if capture == "wal" {
		waitForSlot(t, conn)
	}

	var writers, readers sync.WaitGroup
	for w := range 5 {
		writers.Go(func() { shuffle(t, url, rand.New(rand.NewPCG(seed, uint64(w)))) })
	}
	type taken struct {
		snapshot trumpet.Snapshot
		only     string
	}
	var (
		mu   sync.Mutex
		all  []taken
		done = make(chan struct{})
	)
	for i, bus := range []*pgbus.Bus{one, two, one} {
		readers.Go(func() {
			for n := i; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				request, only := trumpet.SnapshotRequest{Topic: "jobs"}, ""
				if n%3 == 0 {
					only = "b"
					request.Matchers = []*trumpet.Matcher{matcher(t, bus, "jobs?note=eq.b")}
				}
				snapshot, err := bus.ReadSnapshot(context.WithoutCancel(t.Context()), []trumpet.SnapshotRequest{request}, trumpet.SnapshotLimits{})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all = append(all, taken{snapshot, only})
				mu.Unlock()
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	events := r.waitData(t, `"end"`)

	final := map[string]rowsByKey{"": {}, "b": {}}
	rows, err := conn.Query(t.Context(), "select row_to_json(j) from jobs j")
	if err != nil {
		t.Fatal(err)
	}
	var row json.RawMessage
	if _, err := pgx.ForEachRow(rows, []any{&row}, func() error {
		final[""].take(row, "")
		final["b"].take(row, "b")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	places := map[int64]bool{}
	for _, s := range all {
		places[s.snapshot.At.Position] = true
		got, replayed := rowsByKey{}, rowsByKey{}
		for _, page := range s.snapshot.Topics[0].Pages {
			for _, row := range page {
				got.take(row, s.only)
			}
		}
		rest := len(events)
		for i, e := range events {
			if e.ID.Compare(s.snapshot.At) > 0 {
				rest = i
				break
			}
			replayed.apply(e, s.only)
		}
		if !maps.Equal(got, replayed) {
			t.Fatalf("seed %d: at %v, only %q: %d rows were read, the log has %d", seed, s.snapshot.At, s.only, len(got), len(replayed))
		}
		for _, e := range events[rest:] {
			got.apply(e, s.only)
		}
		if !maps.Equal(got, final[s.only]) {
			t.Fatalf("seed %d: from %v on, only %q: the events lead to %d rows, the table has %d", seed, s.snapshot.At, s.only, len(got), len(final[s.only]))
		}
	}
	t.Logf("%d snapshots at %d places among %d events", len(all), len(places), len(events))
	if len(places) < 20 {
		t.Errorf("only %d different places: this proves little", len(places))
	}
}

func matcher(t *testing.T, bus *pgbus.Bus, subscription string) *trumpet.Matcher {
	s, err := trumpet.ParseSubscription(subscription)
	if err != nil {
		t.Error(err)
		return nil
	}
	table, ok, err := bus.Table(context.WithoutCancel(t.Context()), s.Topic)
	if err != nil || !ok {
		t.Errorf("table of %s: %v, %v", s.Topic, ok, err)
	}
	m, err := s.Compile(table)
	if err != nil {
		t.Error(err)
	}
	return m
}

// shuffle makes random transactions that insert, update, delete and, now and then, truncate.
func shuffle(t *testing.T, url string, random *rand.Rand) {
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "set deadlock_timeout = '20ms'"); err != nil { // there are many
		t.Error(err)
		return
	}
	for range 150 {
		level := []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}[random.IntN(3)]
		tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
		if err != nil {
			t.Error(err)
			return
		}
		failed := false
		for range 1 + random.IntN(4) {
			id, note := random.IntN(60), string(rune('a'+random.IntN(3)))
			var statement string
			switch n := random.IntN(100); {
			case n < 1:
				statement = "truncate jobs"
			case n < 40:
				statement = "insert into jobs (id, note) values ($1, $2), ($1 + 60, $2) on conflict (id) do update set version = jobs.version + 1"
			case n < 65:
				statement = "update jobs set version = version + 1, note = $2 where id between $1 and $1 + 3"
			case n < 75:
				statement = "update jobs set id = id + 200, note = $2 where id = $1 and not exists (select from jobs where id = $1 + 200)"
			case n < 90:
				statement = "delete from jobs where id = $1 or note = $2 and id % 7 = $1 % 7"
			default:
				if _, err := tx.Exec(ctx, "savepoint s"); err == nil {
					_, _ = tx.Exec(ctx, "update jobs set note = 'gone' where id between $1 and $1 + 5", id)
					_, err = tx.Exec(ctx, "rollback to s")
					failed = err != nil
				}
				statement = "select pg_sleep($1::int / 20000.0), $2::text"
			}
			args := []any{id, note}
			if statement == "truncate jobs" {
				args = nil
			}
			if _, err := tx.Exec(ctx, statement, args...); failed || err != nil {
				failed = true
				break
			}
		}
		if failed || random.IntN(5) == 0 {
			_ = tx.Rollback(ctx)
			continue
		}
		_ = tx.Commit(ctx) // a serialization failure here rolls back too
	}
}
