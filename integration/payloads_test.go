package integration

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// audience are clients of either transport at each of two workers. All must get the same.
type audience struct {
	conn    *pgx.Conn
	topics  string
	begin   string
	clients []*client
	steps   int
	seen    int
}

func newAudience(t *testing.T, url string, conn *pgx.Conn, topics string) *audience {
	t.Helper()
	a := &audience{conn: conn, topics: topics}
	for _, w := range []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")} {
		for _, transport := range transports {
			c := dial(t, w, dialling{transport: transport, topics: topics})
			a.begin = c.ready(t).ID
			a.clients = append(a.clients, c)
		}
	}
	return a
}

// hears does something and returns the events that it gave, the same to all.
func (a *audience) hears(t *testing.T, do func()) []message {
	t.Helper()
	do()
	a.steps++
	mark := quoted("step %d", a.steps)
	broadcast(t, a.conn, mark)
	var first []message
	for i, c := range a.clients {
		c.waitData(t, mark)
		events := c.events()[a.seen:]
		if i == 0 {
			first = events
		}
		if len(events) != len(first) {
			t.Fatalf("%s got %d events, another one %d", c.name, len(events), len(first))
		}
		for j := range events {
			// A raw notification has the time at which its worker heard it.
			if events[j].text != first[j].text && (events[j].ID != "" || string(events[j].Data) != string(first[j].Data)) {
				t.Fatalf("%s got %.200s, another one %.200s", c.name, events[j].text, first[j].text)
			}
		}
	}
	a.seen += len(first)
	return first[:len(first)-1]
}

// check compares what all of them got with the log. Raw notifications are not in it.
func (a *audience) check(t *testing.T) {
	t.Helper()
	checkContiguous(t, a.conn)
	truth := readLog(t, a.conn, mustParse(t, a.begin).Position)
	for _, c := range a.clients {
		c.check(t)
		var durable []message
		for _, e := range c.events() {
			if e.ID != "" {
				durable = append(durable, e)
			}
		}
		checkEvents(t, c.name, a.topics, truth, a.begin, durable)
	}
}

// fills are texts of exactly n bytes: what compresses to nothing, what does not, and characters of two, three and four
// bytes, so that every border falls inside of one.
var fills = map[string]func(n int) string{
	"ascii":  func(n int) string { return strings.Repeat("x", n) },
	"random": func(n int) string { return incompressible(n) },
	"é":      func(n int) string { return strings.Repeat("é", n/2) + strings.Repeat("x", n%2) },
	"€":      func(n int) string { return strings.Repeat("x", n%3) + strings.Repeat("€", n/3) },
	"😀":      func(n int) string { return strings.Repeat("y", n%4) + strings.Repeat("😀", n/4) },
}

func incompressible(n int) string {
	var b strings.Builder
	state := uint64(n) + 88172645463325252
	for b.Len() < n {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		b.WriteByte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"[state%64])
	}
	return b.String()
}

// sizes are of each class: a notification of its own, packed with others, at the borders to a stub (7,000 bytes with what stands
// around it), to another notification (7,900) and to Postgres's own limit (8,000), in TOAST, and up to 1 MB.
func sizes() []int {
	all := []int{0, 1, 2, 3, 100, 1995, 2000, 2005, 3940, 3950}
	for n := 6900; n <= 7010; n += 3 {
		all = append(all, n)
	}
	return append(all, 7830, 7840, 7850, 7860, 7890, 7900, 7901, 7990, 7998, 7999, 8000, 8001, 8190, 8192, 16384, 65535, 65536, 524288, 1<<20-2)
}

// Broadcasts and rows of every size come as they were sent, each in a transaction of its own and all in one.
func TestPayloadSizes(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	pgtest.Exec(t, conn, watching("create table texts (n int generated always as identity primary key, body text); select trumpet.watch('texts')"))
	a := newAudience(t, url, conn, "dispatch,texts")
	for name, fill := range fills {
		ok := t.Run(name, func(t *testing.T) {
			var want []string
			for _, n := range sizes() {
				if n <= 20000 || name == "random" { // a megabyte of each would only take time
					want = append(want, fill(n))
				}
			}
			expect := func(what string, events []message) {
				t.Helper()
				if len(events) != 2*len(want) {
					t.Fatalf("%s: %d events, want %d", what, len(events), 2*len(want))
				}
				for i, e := range events {
					var got string
					switch i % 2 {
					case 0:
						got, _ = decode(t, e.Data).(string)
					case 1:
						got, _ = decode(t, e.New).(map[string]any)["body"].(string)
					}
					if got != want[i/2] {
						t.Fatalf("%s: event %d has a text of %d bytes, want %d, or they differ", what, i, len(got), len(want[i/2]))
					}
				}
			}
			send := func(db interface {
				SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
			}) {
				for _, text := range want {
					var batch pgx.Batch
					batch.Queue("select trumpet.broadcast('dispatch', to_jsonb($1::text))", text)
					batch.Queue("insert into texts (body) values ($1)", text)
					if err := db.SendBatch(t.Context(), &batch).Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
			expect("each pair alone", a.hears(t, func() { send(conn) }))
			expect("all in one transaction", a.hears(t, func() {
				if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { send(tx); return nil }); err != nil {
					t.Fatal(err)
				}
			}))
		})
		if !ok {
			return // the others would wait in vain too
		}
	}
	t.Run("too large", func(t *testing.T) {
		_, err := conn.Exec(t.Context(), "select trumpet.broadcast('dispatch', to_jsonb(repeat('x', 1048575)))")
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "54000" || !strings.Contains(refused.Message, "at most 1048576 bytes") {
			t.Errorf("a broadcast of 1 MB and a byte: %v", err)
		}
	})
	a.check(t)
}

// Raw notifications of every size that Postgres takes, with characters at its border.
func TestRawNotificationSizes(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	a := newAudience(t, url, conn, "dispatch")
	var want []string
	for _, fill := range fills {
		for _, n := range []int{1, 2, 3, 4, 6999, 7000, 7001, 7899, 7900, 7901, 7996, 7997, 7998, 7999} {
			want = append(want, fill(n))
		}
	}
	events := a.hears(t, func() {
		for _, text := range want {
			pgtest.Exec(t, conn, "select pg_notify('dispatch', $1)", text)
		}
	})
	if len(events) != len(want) {
		t.Fatalf("%d events, want %d", len(events), len(want))
	}
	for i, e := range events {
		if got := decode(t, e.Data); got != any(want[i]) || e.ID != "" {
			t.Errorf("notification %d of %d bytes came as %.100s", i, len(want[i]), e.text)
		}
	}
	if _, err := conn.Exec(t.Context(), "select pg_notify('dispatch', repeat('x', 8000))"); err == nil {
		t.Error("Postgres took a notification of 8000 bytes")
	}
	a.check(t)
}

// Ten thousand transactions of one row, from eight sessions at once: each event comes once, in one order for all, which keeps the
// order of each session.
func TestTenThousandTransactions(t *testing.T) {
	t.Parallel()
	const sessions, each, chunk = 8, 1250, 50
	url, conn := newDatabase(t)
	pgtest.Exec(t, conn, watching("create table tiny (session int, n int, primary key (session, n)); select trumpet.watch('tiny')"))
	a := newAudience(t, url, conn, "tiny,dispatch")
	events := a.hears(t, func() {
		var group sync.WaitGroup
		for session := range sessions {
			writer := pgtest.Connect(t, url)
			group.Go(func() {
				for from := 0; from < each; from += chunk {
					var script strings.Builder
					for n := from; n < from+chunk; n++ {
						fmt.Fprintf(&script, "begin; insert into tiny values (%d, %d); commit;", session, n)
					}
					if _, err := writer.Exec(t.Context(), script.String()); err != nil {
						t.Errorf("session %d: %v", session, err)
						return
					}
				}
			})
		}
		group.Wait()
	})
	if len(events) != sessions*each {
		t.Fatalf("%d events, want %d", len(events), sessions*each)
	}
	next := map[int]int{}
	for _, e := range events {
		var session, n int
		if _, err := fmt.Sscanf(string(e.Key), `{"session":%d,"n":%d}`, &session, &n); err != nil || n != next[session] || e.More {
			t.Fatalf("after %d of session %d came %s (%v)", next[session]-1, session, e.text, err)
		}
		next[session]++
	}
	a.check(t)
}

// What is sent several times in one transaction arrives as often; Postgres itself folds equal raw notifications of one transaction.
func TestIdenticalPayloads(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	pgtest.Exec(t, conn, watching("create table same (a int, b text); select trumpet.watch('same', key => '{}')"))
	a := newAudience(t, url, conn, "same,dispatch")
	for name, test := range map[string]struct {
		statement string
		times     int
	}{
		"broadcasts of one statement":       {"select trumpet.broadcast('dispatch', '\"again\"') from generate_series(1, 5)", 5},
		"broadcasts of one transaction":     {"begin; select trumpet.broadcast('dispatch', '\"again\"'); select trumpet.broadcast('dispatch', '\"again\"'); commit", 2},
		"large broadcasts":                  {"select trumpet.broadcast('dispatch', to_jsonb(repeat('again', 2000))) from generate_series(1, 4)", 4},
		"rows of one statement":             {"insert into same select 1, 'x' from generate_series(1, 6)", 6},
		"statements of one transaction":     {"begin; insert into same values (1, 'x'); insert into same values (1, 'x'); insert into same values (1, 'x'); commit", 3},
		"deletes of equal rows":             {"begin; delete from same; insert into same values (2, ''), (2, ''); delete from same; commit", -1},
		"raw notifications, folded":         {"select pg_notify('dispatch', 'again') from generate_series(1, 7)", 1},
		"raw notifications, apart":          {"notify dispatch, 'again'; select 1", 1},
		"raw notifications, by their space": {"select pg_notify('dispatch', 'again' || repeat(' ', g)) from generate_series(1, 3) g", 3},
	} {
		t.Run(name, func(t *testing.T) {
			events := a.hears(t, func() { pgtest.Exec(t, conn, test.statement) })
			if test.times >= 0 && len(events) != test.times {
				t.Fatalf("%d events, want %d", len(events), test.times)
			}
			ids := map[string]bool{}
			for _, e := range events {
				if e.ID != "" && ids[e.ID] {
					t.Errorf("%s came twice", e.ID)
				}
				ids[e.ID] = true
			}
		})
	}
	a.check(t)
}

// PREPARE TRANSACTION fails with Postgres's own error, because the wake-up is a NOTIFY, and nothing of it arrives. With wake-ups off
// it works: what was prepared arrives when it is committed, and not before, or never if it is rolled back.
func TestTwoPhaseCommit(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	a := newAudience(t, url, conn, "customers,dispatch")
	name := func(n int) string {
		return fmt.Sprintf("'%s %d'", strings.TrimPrefix(url, url[:strings.LastIndex(url, "/")]), n)
	}

	events := a.hears(t, func() {
		// While the sequencer is awake nobody notifies, and then it may succeed.
		for n := 0; ; n++ {
			pgtest.Exec(t, conn, "begin; insert into customers (name) values ('never'); select trumpet.broadcast('dispatch', '\"never\"')")
			_, err := conn.Exec(t.Context(), "prepare transaction "+name(n))
			var refused *pgconn.PgError
			if errors.As(err, &refused) {
				if refused.Code != "0A000" || !strings.Contains(refused.Message, "NOTIFY") {
					t.Errorf("it fails with %v", err)
				}
				return
			}
			if err != nil || n > 1000 {
				t.Fatalf("it does not fail: %v", err)
			}
			pgtest.Exec(t, conn, "rollback prepared "+name(n))
		}
	})
	if len(events) != 0 {
		t.Errorf("of what failed came %s", events[0].text)
	}

	for n, what := range []string{"kept", "dropped"} {
		events = a.hears(t, func() {
			// Or nobody would notify anyway.
			poll(t.Context(), t, "the sequencer to sleep", func() bool {
				return queryOne[int](t, conn, `
					select count(*)::int from pg_locks where locktype = 'advisory' and classid = 1953656176 and objid = 1
					   and database = (select oid from pg_database where datname = current_database())`) == 0
			})
			pgtest.Exec(t, conn, "begin; set local trumpet.wake = 'off'; insert into customers (name) values ($$"+what+"$$); select trumpet.broadcast('dispatch', '\""+what+"\"')")
			pgtest.Exec(t, conn, "prepare transaction "+name(n))
		})
		if len(events) != 0 {
			t.Errorf("before its commit came %s", events[0].text)
		}
	}
	events = a.hears(t, func() {
		pgtest.Exec(t, conn, "rollback prepared "+name(1))
		pgtest.Exec(t, conn, "commit prepared "+name(0))
	})
	if got, want := describe(events), []string{`insert customers {"id":` + idOf(t, events) + `} +`, "broadcast dispatch"}; !reflect.DeepEqual(got, want) || string(events[1].Data) != `"kept"` {
		t.Errorf("got %q, want %q", got, want)
	}
	a.check(t)
}

func idOf(t *testing.T, events []message) string {
	t.Helper()
	if len(events) == 0 {
		t.Fatal("nothing came")
	}
	return fmt.Sprint(decode(t, events[0].Key).(map[string]any)["id"])
}

// Transactions whose order by their ids, by their records and by their commits are three different ones, and savepoints that
// are rolled back: events come in the order of commits, and nothing that was taken back.
func TestInterleavedTransactions(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	pgtest.Exec(t, conn, watching("create table steps (id int primary key, by text); insert into steps select g from generate_series(1, 9) g; create table others (id int primary key); select trumpet.watch('steps'), trumpet.watch('others', topic => 'dispatch-others')"))
	a := newAudience(t, url, conn, "steps,dispatch,dispatch-others")
	one, two, three := pgtest.Connect(t, url), pgtest.Connect(t, url), pgtest.Connect(t, url)
	events := a.hears(t, func() {
		pgtest.Exec(t, one, "begin; select pg_current_xact_id()")                                              // the lowest id
		pgtest.Exec(t, two, "begin isolation level repeatable read; update steps set by = 'two' where id = 2") // the first record
		pgtest.Exec(t, one, "update steps set by = 'one' where id = 1")
		pgtest.Exec(t, three, "begin; savepoint a; update steps set by = 'gone' where id in (3, 4); savepoint b; insert into steps values (20, 'gone'); rollback to a; delete from steps where id = 9")
		pgtest.Exec(t, three, "savepoint c; update steps set by = 'three' where id = 3; release c; savepoint d; truncate others; rollback to d; commit")
		broadcast(t, conn, "3")
		pgtest.Exec(t, two, "savepoint e; delete from steps where id = 5; rollback to e; insert into steps values (30, 'two'); commit")
		broadcast(t, conn, "2")
		pgtest.Exec(t, one, "update steps set by = 'one' where id = 3; commit") // a row that another one changed meanwhile
		broadcast(t, conn, "1")
		pgtest.Exec(t, conn, "begin; update steps set by = 'gone'; rollback")
	})
	want := []string{
		`delete steps {"id":9} +`, `update steps {"id":3}`, "broadcast dispatch",
		`update steps {"id":2} +`, `insert steps {"id":30}`, "broadcast dispatch",
		`update steps {"id":1} +`, `update steps {"id":3}`, "broadcast dispatch",
	}
	if got := describe(events); !reflect.DeepEqual(got, want) {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, e := range events {
		if strings.Contains(e.text, "gone") {
			t.Errorf("what was rolled back came: %s", e.text)
		}
	}
	if string(events[7].Old) != `{"by":"three"}` {
		t.Errorf("the second update of row 3 was from %s", events[7].Old)
	}
	a.check(t)
}
