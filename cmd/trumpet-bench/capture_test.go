package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// What is committed and not in the log, in it twice, or there with another value, is noticed.
func TestVerifyLogNoticesWhatIsMissing(t *testing.T) {
	t.Parallel()
	b := &bench{conn: pgtest.Connect(t, pgtest.Migrated(t))}
	pgtest.Exec(t, b.conn, "set timezone = 'UTC'")
	pgtest.Exec(t, b.conn, "create table jobs (id int primary key, status text, price numeric(10,2), updated timestamptz)")
	pgtest.Exec(t, b.conn, "insert into jobs select g, 'open', g, now() from generate_series(1, 3) g")
	if err := b.watch(t.Context(), "jobs", byTriggers); err != nil {
		t.Fatal(err)
	}
	_, from, err := b.head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for id := range 3 {
			pgtest.Exec(t, b.conn, "update jobs set status = status || '.', updated = now() where id = $1", id+1)
		}
		pgtest.Exec(t, b.conn, "select trumpet.sequence()")
	}
	if lag, err := b.awaitLog(t.Context(), from, 6); err != nil || lag.commits != 0 {
		t.Errorf("%d commits are behind: %v", lag.commits, err)
	}
	if err := b.verifyLog(t.Context(), "jobs", from, 6); err != nil {
		t.Error(err)
	}
	for _, test := range []struct{ what, do string }{
		{"a record that is missing", "delete from trumpet.log where position = (select max(position) - 1 from trumpet.log)"},
		{"a row that the log does not have so", "alter table jobs disable trigger all; update jobs set status = 'lost' where id = 2"},
		{"an event of something else", "update trumpet.record set op = 'bulk' where id = (select max(id) from trumpet.record)"},
	} {
		pgtest.Exec(t, b.conn, "begin")
		pgtest.Exec(t, b.conn, test.do)
		if err := b.verifyLog(t.Context(), "jobs", from, 6); err == nil {
			t.Errorf("%s is not noticed", test.what)
		}
		pgtest.Exec(t, b.conn, "rollback")
	}
	if err := b.verifyLog(t.Context(), "jobs", from, 7); err == nil {
		t.Error("a commit that is not in the log is not noticed")
	}
}

func TestParsePgbench(t *testing.T) {
	t.Parallel()
	const out = "transaction type: x\nnumber of transactions actually processed: 31415\nnumber of failed transactions: 0 (0.000%)\n" +
		"latency average = 1.0 ms\ntps = 1234.567 (without initial connection time)\n"
	if got, err := parsePgbench([]byte(out)); err != nil || got != (benched{1234.567, 31415}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parsePgbench([]byte("pgbench: error")); err == nil {
		t.Error("what is no result is taken for one")
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		published float64
		want      string
	}{{900, "keeps 0.900 of the unwatched table's throughput (by round: 0.90, 0.45); 0.85 is wanted: met."}, {800, "0.85 is wanted: not met."}} {
		r := writeResults{accepted: {
			"unwatched": {{tps: 1000}, {tps: 1000}},
			"published": {{tps: test.published}, {tps: test.published / 2}},
		}}
		if got := r.verdict(); !strings.HasSuffix(got, test.want) {
			t.Errorf("%q does not end with %q", got, test.want)
		}
	}
}

func TestOneBulk(t *testing.T) {
	t.Parallel()
	committed := time.Now()
	bulk := `{"id":"%d.0-0000abcd","topic":"huge","op":"bulk","at":"","statement":"insert","rows":%d}`
	for _, test := range []struct {
		what     string
		messages []string
		ok       bool
	}{
		{"one event", []string{fmt.Sprintf(bulk, 7, 5000)}, true},
		{"none", nil, false},
		{"two events", []string{fmt.Sprintf(bulk, 7, 5000), fmt.Sprintf(bulk, 8, 5000)}, false},
		{"other rows", []string{fmt.Sprintf(bulk, 7, 4000)}, false},
		{"rows", []string{`{"id":"7.0-0000abcd","topic":"huge","op":"insert","new":{"id":1}}`}, false},
	} {
		w := &watcher{arrivals: make(map[string][]arrival), last: make(map[string]string)}
		for _, message := range test.messages {
			if err := w.take([]byte(message)); err != nil {
				t.Fatal(err)
			}
		}
		c := &crowd{watchers: []*watcher{w}}
		if _, err := c.oneBulk(5000, committed); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.what, err)
		}
	}
}

func TestInOrder(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		places []int64
		ok     bool
	}{{[]int64{3, 4, 9}, true}, {[]int64{3, 4}, false}, {[]int64{3, 4, 4}, false}, {[]int64{3, 9, 4}, false}} {
		w := &watcher{arrivals: make(map[string][]arrival)}
		for _, place := range test.places {
			w.arrivals["other"] = append(w.arrivals["other"], arrival{place: place})
		}
		if err := (&crowd{watchers: []*watcher{w}}).inOrder("other", 3); (err == nil) != test.ok {
			t.Errorf("%v: %v", test.places, err)
		}
	}
}

func TestWaitsOfOthers(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	at := func(ms int) time.Time { return begun.Add(time.Duration(ms) * time.Millisecond) }
	o := &otherWriter{
		due:     []time.Time{at(0), at(50), at(100), at(150)},
		commits: []commit{{1, at(1)}, {2, at(90)}, {3, at(101)}, {4, at(151)}},
	}
	w := &watcher{arrivals: map[string][]arrival{otherTopic: {{1, at(900)}, {2, at(100)}, {3, at(131)}, {4, at(152)}}}}
	got := o.waits(&crowd{watchers: []*watcher{w}}, at(50), at(100))
	if want := (others{30 * time.Millisecond, 30 * time.Millisecond, 50 * time.Millisecond}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestCaptureFlag(t *testing.T) {
	t.Parallel()
	by := byTriggers
	if err := by.Set("wal"); err != nil || by != byWAL || by.title() != "the WAL" {
		t.Errorf("%v, %v", by, err)
	}
	if by.Set("WAL") == nil || by.Set("") == nil {
		t.Error("what is no capture is taken")
	}
}
