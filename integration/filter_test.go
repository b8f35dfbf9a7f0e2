package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// brief is an event in few words: what, the key and what became of title and status.
func brief(t *testing.T, m message) string {
	t.Helper()
	words := []string{m.Op, m.Topic}
	for _, text := range []json.RawMessage{m.Key, m.New, m.Old} {
		row := map[string]any{}
		if text != nil {
			row = decode(t, text).(map[string]any)
		}
		var values []string
		for _, column := range []string{"id", "title", "status"} {
			if value, ok := row[column]; ok {
				values = append(values, fmt.Sprint(value))
			}
		}
		words = append(words, "["+strings.Join(values, " ")+"]")
	}
	return strings.Join(words, " ")
}

// A client with a filter sees the rows come, change and go, on both transports and however its URL
// is written; what concerns all rows reaches it always.
func TestFilters(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	// What comes before the clients is in the log before there are workers: none of them is late with it.
	pgtest.Exec(t, conn, watching("truncate jobs restart identity; select trumpet.watch('jobs', max_rows => 3)"))
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}
	var clients []*client
	for _, w := range workers {
		for _, transport := range transports {
			for _, query := range []string{
				"topics=dispatch,jobs?status=eq.open&priority=gt.1",
				"topics=dispatch%2Cjobs%3Fpriority%3Dgt.01%26status%3Deq.open",
				"topics=jobs?status=in.(open)&priority=not.lte.1&since=&topics=dispatch",
			} {
				clients = append(clients, dial(t, w, dialling{transport: transport, query: query}))
			}
		}
	}
	for _, c := range clients {
		c.ready(t)
	}
	// Each is a transaction of its own: by the WAL max_rows bounds what a transaction does.
	for statement := range strings.SplitSeq(`
		insert into jobs (title, status, priority) values ('a', 'open', 2), ('b', 'new', 2), ('c', 'open', 1);
		update jobs set title = 'a2' where id = 1;
		update jobs set title = 'b2' where id = 2;
		update jobs set status = 'open' where id = 2;
		update jobs set status = 'done', priority = 1 where id = 1;
		update jobs set priority = 3, title = 'c2' where id = 3;
		update jobs set id = default where id = 3;
		update jobs set id = default, status = 'done' where id = 4;
		delete from jobs where id = 1;
		delete from jobs where id = 2;
		insert into jobs (title) select 'many' from generate_series(1, 4);
		truncate jobs`, ";") {
		pgtest.Exec(t, conn, statement)
	}
	broadcast(t, conn, endOfTest)
	want := []string{
		"insert jobs [1] [1 a open] []",
		"update jobs [1] [1 a2 open] [a]",
		"enter jobs [2] [2 b2 open] []",
		"leave jobs [1] [] [1 a2 open]",
		"enter jobs [3] [3 c2 open] []",
		"update jobs [4] [4 c2 open] [3]",
		"leave jobs [4] [] [4 c2 open]", // by the key that the client knows
		"delete jobs [2] [] [2 b2 open]",
		"bulk jobs [] [] []",
		"truncate jobs [] [] []",
		"broadcast dispatch [] [] []",
	}
	for _, c := range clients {
		c.waitEnd(t)
		var got []string
		for _, m := range c.events() {
			got = append(got, brief(t, m))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
		}
		c.check(t)
	}
}

// A client that comes back gets what its filter lets through, from the workers' memory and from
// the log, each transaction closed by an event that it sees.
func TestFiltersAcrossResume(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	first := startWorker(t, url, "w1")
	begin := dial(t, first, dialling{transport: webSocket, topics: "jobs"}).ready(t).ID
	pgtest.Exec(t, conn, `begin;
		insert into jobs (title, status) values ('a', 'open'), ('b', 'new'), ('c', 'open'), ('d', 'new');
		update jobs set status = 'new' where title = 'a';
		update jobs set status = 'open' where title = 'd';
		update jobs set title = 'b2' where title = 'b';
		commit`)
	want := []string{
		"insert jobs [21] [21 a open] [] more", "insert jobs [23] [23 c open] [] more",
		"leave jobs [21] [] [21 a open] more", "enter jobs [24] [24 d open] []",
	}
	second := startWorker(t, url, "w2") // it has nothing in memory
	for _, w := range []*worker{first, second} {
		for _, transport := range transports {
			c := dial(t, w, dialling{transport: transport, query: "topics=jobs?status=eq.open", since: begin})
			if !c.ready(t).Resumed {
				t.Errorf("%s: it was not resumed", c.name)
			}
			var got []string
			for _, m := range c.events() {
				text := brief(t, m)
				if m.More {
					text += " more"
				}
				got = append(got, text)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s:\ngot  %q\nwant %q", c.name, got, want)
			}
		}
	}
}

// problemOf asks for a client's URL as a program without EventSource and WebSocket would.
func problemOf(t *testing.T, w *worker, path string) (code int, detail string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url(path), nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return response.StatusCode, "" // a stream
	}
	var problem struct{ Detail string }
	if err := json.NewDecoder(response.Body).Decode(&problem); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return response.StatusCode, problem.Detail
}

func TestFilterErrors(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	pgtest.Exec(t, conn, watching(`create type mood as enum ('good', 'bad');
		create table things (id int primary key, mood mood, tags text[], body jsonb, "since" int, secret text);
		select trumpet.watch('things', columns => '{id,mood,tags,body,since}')`))
	w := startWorker(t, url, "w1")
	for query, parts := range map[string][]string{
		"topics=jobs?state=eq.open":                         {`jobs has no column "state"`, "id, customer_id, title"},
		"topics=things?secret=eq.x":                         {`no column "secret"`, "id, mood, tags, body, since"}, // not watched
		"topics=jobs?id=eq.one":                             {`"id"`, "bigint"},
		"topics=jobs?updated_at=gt.yesterday":               {`"updated_at"`, "timestamp with time zone"},
		"topics=jobs?title=is.true":                         {`"title"`, "boolean"},
		"topics=things?mood=gt.good":                        {`"mood"`, "enum"},
		"topics=things?mood=eq.great":                       {`"mood"`, "great"},
		"topics=things?tags=eq.a":                           {`"tags"`, "text[]", "is.null"},
		"topics=jobs?title=like.a*":                         {"operators", "eq, neq"},
		"topics=dispatch?status=eq.open":                    {"topic dispatch is not that of a watched table"},
		"topics=jobs&status=eq.open":                        {`"status" stands behind no topic`},
		"topics=things?id=eq.1&since=eq.1":                  {"encode the whole topic", "%3Fsince%3Deq.1"},
		"topics=jobs?title=in.open":                         {"parentheses"},
		"topics=jobs&snapshot=please":                       {"snapshot is 1 or 0"},
		"topics=jobs?title=eq." + strings.Repeat("x", 5000): {"4096"},
	} {
		for _, path := range []string{"/ws?", "/api/stream?"} {
			code, detail := problemOf(t, w, path+query)
			if code != http.StatusBadRequest {
				t.Errorf("%.100s: got %d", path+query, code)
			}
			for _, part := range parts {
				if !strings.Contains(detail, part) {
					t.Errorf("%.100s: got %q, want %q in it", path+query, detail, part)
				}
			}
		}
	}
	for _, query := range []string{
		"topics=things%3Fsince%3Deq.1%26id%3Deq.1", "topics=things?mood=in.(good,bad)&tags=not.is.null&body=is.null", "topics=jobs?updated_at=gt.2026-01-01T00:00:00Z&price=lt.1e3",
	} {
		dial(t, w, dialling{transport: sse, query: query}).ready(t)
	}
}

// One connection, many subscriptions: each request is answered under its own name, and what is not
// possible leaves everything else as it was.
func TestSubscribeFrames(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	c := dial(t, startWorker(t, url, "w1"), dialling{transport: webSocket})
	id := c.ready(t).ID
	answer := func(ref string) message {
		t.Helper()
		return c.find(t, "the answer to "+ref, func(m message) bool { return string(m.Ref) == ref })
	}
	c.send(t, `{"type":"subscribe","ref":1,"topics":["jobs?status=eq.open","dispatch"]}`)
	if m := answer("1"); m.Type != "subscribed" || !reflect.DeepEqual(m.Topics, []string{"dispatch", "jobs?status=eq.open"}) || m.ID != id {
		t.Errorf("got %s", m.text)
	}
	c.send(t, `{"type":"subscribe","ref":"two","topics":["customers","jobs?state=eq.open"]}`)
	if m := answer(`"two"`); m.Type != "refused" || !strings.Contains(m.Message.Message, `no column "state"`) {
		t.Errorf("got %s", m.text)
	}
	c.send(t, `{"type":"subscribe","ref":3,"topics":["jobs?priority=in.(2,3.0,2.00)&status=eq.open"]}`)
	if m := answer("3"); !reflect.DeepEqual(m.Topics, []string{"dispatch", "jobs?priority=in.(2,3)&status=eq.open", "jobs?status=eq.open"}) {
		t.Errorf("got %s", m.text)
	}
	c.send(t, `{"type":"unsubscribe","ref":4,"topics":["jobs?status=eq.open","customers"]}`)
	if m := answer("4"); !reflect.DeepEqual(m.Topics, []string{"dispatch", "jobs?priority=in.(2,3)&status=eq.open"}) {
		t.Errorf("got %s", m.text)
	}
	pgtest.Exec(t, conn, `insert into customers (name) values ('nobody hears');
		insert into jobs (title, status, priority) values ('a', 'open', 1), ('b', 'open', 3)`)
	broadcast(t, conn, endOfTest)
	c.waitEnd(t)
	if events := c.events(); len(events) != 2 || brief(t, events[0]) != "insert jobs [22] [22 b open] []" {
		t.Errorf("got %d events, the first is %s", len(events), events[0].text)
	}
	c.send(t, `{"type":"subscribe","ref":5,"topics":["a b"]}`)
	c.wait(t, "the end", func() bool { return c.err != nil })
	if c.close.Code != 4500 {
		t.Errorf("it ended by %v", c.err)
	}
}

// A filter whose column is gone cannot be true of anything any more: its clients are sent away, and hear
// why when they come back. All others stay.
func TestFilteredColumnRenamed(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	w := startWorker(t, url, "w1")
	const query = "topics=jobs?status=eq.open"
	var filtered, others []*client
	for _, transport := range transports {
		filtered = append(filtered, dial(t, w, dialling{transport: transport, query: query}))
		others = append(others, dial(t, w, dialling{transport: transport, query: "topics=dispatch,jobs?title=eq.x"}))
	}
	for _, c := range append(filtered, others...) {
		c.ready(t)
	}
	pgtest.Exec(t, conn, "alter table jobs rename status to state; insert into jobs (title, state) values ('x', 'open')")
	for _, c := range filtered {
		c.wait(t, "the end", func() bool { return c.err != nil })
		if strings.HasPrefix(c.name, string(webSocket)) {
			if c.close.Code != 4004 {
				t.Errorf("%s: it ended by %v", c.name, c.err)
			}
		} else if m := c.control(t, "error"); m.Code != "schema_changed" || m.Retry == nil || !*m.Retry {
			t.Errorf("%s: got %s", c.name, m.text)
		}
		if events := c.events(); len(events) > 0 {
			t.Errorf("%s: got %s", c.name, events[0].text)
		}
	}
	for _, path := range []string{"/ws?", "/api/stream?"} {
		var code int
		var detail string
		poll(t.Context(), t, "the worker to know the table", func() bool {
			code, detail = problemOf(t, w, path+query)
			return code != http.StatusOK && code != http.StatusUpgradeRequired
		})
		if code != http.StatusBadRequest || !strings.Contains(detail, `no column "status"`) || !strings.Contains(detail, "state") {
			t.Errorf("%s: got %d, %q", path, code, detail)
		}
	}
	broadcast(t, conn, endOfTest)
	for _, c := range others {
		c.waitEnd(t)
		if events := c.events(); len(events) != 2 || events[0].Op != "insert" {
			t.Errorf("%s: got %d events", c.name, len(events))
		}
	}
}

// While Postgres is away nobody can say whether a filter fits. That passes, so newcomers are sent away to come
// back, over both transports; who is there stays, is refused what it asks for, and goes on with what it has.
func TestFiltersWhilePostgresIsAway(t *testing.T) {
	t.Parallel()
	server, url := pgtest.StartMigrated(t, nil)
	conn := pgtest.Connect(t, url)
	prepare(t, capture, url, conn)
	w := startWorker(t, url, "w1")
	stays := dial(t, w, dialling{transport: webSocket, query: "topics=dispatch,jobs?priority=eq.2&snapshot=1"})
	stays.ready(t)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	stays.control(t, "stale")
	const query = "topics=customers?name=eq.Ada" // which nobody asked for before
	for _, transport := range transports {
		c := dial(t, w, dialling{transport: transport, query: query})
		c.wait(t, "the end", func() bool { return c.err != nil })
		if transport == webSocket {
			if c.close.Code != 4003 {
				t.Errorf("%s: it ended by %v", c.name, c.err)
			}
		} else if m := c.control(t, "error"); m.Code != "unavailable" || m.Retry == nil || !*m.Retry {
			t.Errorf("%s: got %s", c.name, m.text)
		}
	}
	stays.send(t, `{"type":"subscribe","ref":1,"topics":["customers?name=eq.Ada"]}`)
	if m := stays.find(t, "the answer", func(m message) bool { return m.Ref != nil }); m.Type != "refused" {
		t.Errorf("got %s", m.text)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	stays.control(t, "live")
	conn = pgtest.Connect(t, url)
	stays.send(t, `{"type":"subscribe","ref":2,"topics":["customers?name=eq.Ada"]}`)
	stays.find(t, "the answer", func(m message) bool { return m.Type == "subscribed" && string(m.Ref) == "2" })
	for _, transport := range transports {
		dial(t, w, dialling{transport: transport, query: query}).ready(t)
	}
	pgtest.Exec(t, conn, "update jobs set priority = 3 where id = 1; insert into customers (name) values ('Ada'), ('Bob')")
	broadcast(t, conn, endOfTest)
	stays.waitEnd(t)
	shown(t, stays).compare(t, stays.name, selectView(t, conn, selected("priority = 2")))
	if events := stays.events(); len(events) != 3 || events[0].Op != "leave" || events[1].Topic != "customers" {
		t.Errorf("got %d events, the first is %s", len(events), events[0].text)
	}
	stays.check(t)
}
