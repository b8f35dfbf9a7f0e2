package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// shown is what a client that applies all it gets has of the table jobs. What cannot be applied, because the
// row is not what the client has, is an error: a snapshot and what follows it fit exactly.
func shown(t *testing.T, c *client) view {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	v := view{}
	var pages []message
	for _, m := range c.messages {
		switch {
		case m.Type == "snapshot" && m.Topic == "jobs":
			if m.Page == 1 {
				pages = nil
			}
			pages = append(pages, m)
			if m.Page != len(pages) {
				t.Errorf("%s: page %d is the %d. one", c.name, m.Page, len(pages))
			}
			if m.More {
				continue
			}
			clear(v)
			for _, page := range pages {
				for _, row := range page.Snapshot {
					var key struct{ ID json.Number }
					if err := json.Unmarshal(row, &key); err != nil {
						t.Fatal(err)
					}
					if key := `{"id":` + key.ID.String() + `}`; v[key] == nil {
						v[key] = decode(t, row)
					} else {
						t.Errorf("%s: %s stands twice in one snapshot", c.name, key)
					}
				}
			}
		case m.isEvent() && m.Topic == "jobs":
			switch m.Op {
			case "enter":
				m.Op = "insert"
			case "leave":
				m.Op = "delete"
			}
			v.apply(t, "jobs", []message{m})
		}
	}
	return v
}

// filters are views of jobs, as a client asks for them and as SQL does.
var filters = []struct{ query, where string }{
	{"topics=jobs,dispatch", "true"},
	{"topics=dispatch,jobs?priority=eq.1", "priority = 1"},
	{"topics=dispatch,jobs?priority=not.in.(0,2)&id=gt.30", "priority not in (0, 2) and id > 30"},
	{"topics=jobs?priority=eq.0&topics=jobs?id=lte.25&topics=dispatch", "priority = 0 or id <= 25"},
	{"topics=jobs%3Ftitle%3Dgte.g%26technician%3Dis.null&topics=dispatch", `title collate "C" >= 'g' and technician is null`},
	{"topics=jobs?title=eq.nobody&topics=dispatch", "false"},
}

func selected(where string) string { return "(select * from jobs where " + where + ")" }

// Every client that came with a snapshot, at any moment of a storm of writes, over whatever transport and
// worker, has in the end what SELECT has.
func TestSnapshotsAndWhatFollows(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}
	random := seed(t)
	rng := rand.New(rand.NewPCG(random, 1))
	storm := startWriters(t, url, random, 4, 0)
	type follower struct {
		*client
		where string
	}
	var clients []follower
	for i := range 8 * len(filters) {
		f := filters[i%len(filters)]
		c := dial(t, workers[rng.IntN(2)], dialling{transport: transports[rng.IntN(2)], query: f.query + "&snapshot=1"})
		clients = append(clients, follower{c, f.where})
		if rng.IntN(3) == 0 {
			c.ready(t)
		}
	}
	for _, c := range clients {
		c.ready(t)
	}
	// And some that are there already ask again, or for more.
	socket := dial(t, workers[0], dialling{transport: webSocket, query: "topics=jobs?priority=eq.1&topics=dispatch"})
	socket.ready(t)
	for n, frame := range []string{
		`"topics":["jobs?priority=eq.1"]`, `"topics":["jobs?id=lte.25","customers"]`, `"topics":["jobs?priority=eq.2"]`,
	} {
		before := storm.committed.Load()
		socket.send(t, fmt.Sprintf(`{"type":"subscribe","ref":%d,"snapshot":true,%s}`, n, frame))
		socket.find(t, "the answer", func(m message) bool { return m.Type == "subscribed" && string(m.Ref) == fmt.Sprint(n) })
		poll(t.Context(), t, "more transactions", func() bool { return storm.committed.Load() > before+20 })
	}
	poll(t.Context(), t, "100 transactions", func() bool { return storm.committed.Load() >= 100 })
	storm.stop()
	broadcast(t, conn, endOfTest)
	for _, c := range append(clients, follower{socket, "priority in (1, 2) or id <= 25"}) {
		c.waitEnd(t)
		if c.client != socket {
			shown(t, c.client).compare(t, c.name+" where "+c.where, selectView(t, conn, selected(c.where)))
		} else {
			fromLastSnapshot(t, c.client).compare(t, "frames", selectView(t, conn, selected(c.where)))
		}
		c.check(t)
	}
	reads, given := 0.0, 0.0
	for _, w := range workers {
		reads += metric(t, w, "trumpet_snapshots_total")
		given += metric(t, w, "trumpet_snapshot_clients_total")
	}
	if given < float64(len(clients)+3) || reads > given {
		t.Errorf("%v snapshots were read for %v clients, of %d", reads, given, len(clients)+3)
	}
}

// fromLastSnapshot is shown for who had rows of the topic before it asked for a snapshot: what came before
// the last one was about other rows.
func fromLastSnapshot(t *testing.T, c *client) view {
	t.Helper()
	c.mu.Lock()
	from := 0
	for i, m := range c.messages {
		if m.Type == "snapshot" && m.Topic == "jobs" && m.Page == 1 {
			from = i
		}
	}
	rest := &client{name: c.name, messages: c.messages[from:]}
	c.mu.Unlock()
	return shown(t, rest)
}

// many makes jobs of some size.
func many(t *testing.T, conn *pgx.Conn, rows, size int) {
	t.Helper()
	pgtest.Exec(t, conn, watching("truncate jobs restart identity; select trumpet.watch('jobs', max_rows => 1000)"))
	pgtest.Exec(t, conn, "insert into jobs (title) select repeat('x', $2) from generate_series(1, $1)", rows, size)
}

// Pages come in order, without an id, before everything else; and who lost the connection among them has no id
// to come back with, so that it begins anew.
func TestSnapshotDropped(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	w := startWorker(t, url, "w1")
	many(t, conn, 3000, 1000)
	for _, transport := range transports {
		d := trumpettest.Dialling{Transport: transport, Query: "topics=jobs,dispatch&snapshot=1", ReadBuffer: 64 << 10}
		s, err := trumpettest.Dial(t.Context(), w.addr, d)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			frame, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			m, err := frame.Decode()
			if err != nil || m.Type != "snapshot" || !m.More || m.ID != "" || frame.ID != "" {
				t.Errorf("%s: got %.200s, %v", transport, frame.Text, err)
			}
		}
		s.Cut()
		pgtest.Exec(t, conn, "update jobs set status = 'late' where id = 1")

		c := dial(t, w, dialling{transport: transport, query: d.Query})
		ready := c.ready(t)
		pgtest.Exec(t, conn, "update jobs set status = 'later' where id in (2, 3000)")
		broadcast(t, conn, endOfTest)
		c.waitEnd(t)
		shown(t, c).compare(t, c.name, selectView(t, conn, "jobs"))
		c.mu.Lock()
		for _, m := range c.messages {
			if m.Type != "snapshot" || m.ID != "" || m.last != "" {
				t.Errorf("%s: before the last page came %.200s with id %q", c.name, m.text, m.last)
			}
			if !m.More {
				break
			}
		}
		c.mu.Unlock()
		c.drop()

		// With an id it goes on, and is given no rows again.
		again := dial(t, w, dialling{transport: transport, query: d.Query, since: ready.ID})
		again.waitEnd(t)
		if m := again.first(t); !again.ready(t).Resumed || !m.isEvent() {
			t.Errorf("%s: it began with %.200s", again.name, m.text)
		}
		// With one that the log does not know it begins anew, after a reset without an id.
		lost := dial(t, w, dialling{transport: transport, query: d.Query, since: "1.0-00000000"})
		if m := lost.first(t); m.Type != "reset" || m.Reason != "unknown" || m.ID != "" || m.last != "" {
			t.Errorf("%s: got %.200s", lost.name, m.text)
		}
		if lost.ready(t).Resumed {
			t.Errorf("%s: it was resumed", lost.name)
		}
		shown(t, lost).compare(t, lost.name, selectView(t, conn, "jobs"))
		pgtest.Exec(t, conn, "update jobs set status = 'new'")
	}
}

// A table with more rows than a snapshot may have: who comes with it is told so and stays away, who is
// there already is refused and stays; a filter helps both.
func TestSnapshotTooLarge(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	w := startWorker(t, url, "w1")
	many(t, conn, 10_001, 1)
	for _, transport := range transports {
		c := dial(t, w, dialling{transport: transport, query: "topics=jobs&snapshot=1"})
		m := c.control(t, "error")
		if m.Code != "too_large" || m.Retry == nil || *m.Retry || !strings.Contains(m.Message.Message, "jobs") || !strings.Contains(m.Message.Message, "filter") {
			t.Errorf("%s: got %s", c.name, m.text)
		}
		c.wait(t, "the end", func() bool { return c.err != nil })
		if transport == webSocket && c.close.Code != 4502 {
			t.Errorf("%s: it ended by %v", c.name, c.err)
		}
		few := dial(t, w, dialling{transport: transport, query: "topics=jobs?id=lt.10&snapshot=1"})
		few.ready(t)
		shown(t, few).compare(t, few.name, selectView(t, conn, selected("id < 10")))
	}
	c := dial(t, w, dialling{transport: webSocket, topics: "dispatch"})
	c.ready(t)
	c.send(t, `{"type":"subscribe","ref":1,"topics":["jobs"],"snapshot":true}`)
	if m := c.find(t, "the answer", func(m message) bool { return m.Ref != nil }); m.Type != "refused" || !strings.Contains(m.Message.Message, "filter") {
		t.Errorf("got %s", m.text)
	}
	pgtest.Exec(t, conn, "update jobs set title = 'not for it' where id = 1")
	broadcast(t, conn, endOfTest)
	c.waitEnd(t)
	if events := c.events(); len(events) != 1 {
		t.Errorf("got %.200s", events[0].text)
	}
}

// A worker's role that may not read the table: streams go on, and who wants rows hears what to grant.
func TestSnapshotNotReadable(t *testing.T) {
	t.Parallel()
	database, conn := newDatabase(t)
	role := stranger(t, database, conn).Config().User
	pgtest.Exec(t, conn, fmt.Sprintf("select trumpet.grant_worker('%s')", role))
	t.Cleanup(func() {
		if _, err := conn.Exec(context.WithoutCancel(t.Context()), "drop owned by "+role); err != nil {
			t.Error(err)
		}
	})
	address, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.UserPassword(role, strangersPassword)
	w := startWorker(t, address.String(), "w1")
	for _, transport := range transports {
		c := dial(t, w, dialling{transport: transport, query: "topics=jobs&snapshot=1"})
		m := c.control(t, "error")
		if m.Code != "unauthorized" || m.Retry == nil || *m.Retry || !strings.Contains(strings.ToLower(m.Message.Message), "grant select") {
			t.Errorf("%s: got %s", c.name, m.text)
		}
		c.wait(t, "the end", func() bool { return c.err != nil })
		dial(t, w, dialling{transport: transport, query: "topics=jobs?status=eq.open"}).ready(t) // needs no rows
	}
	pgtest.Exec(t, conn, "grant select on jobs to "+role)
	granted := dial(t, w, dialling{transport: sse, query: "topics=jobs,nothing&snapshot=1"})
	granted.ready(t)
	shown(t, granted).compare(t, granted.name, selectView(t, conn, "jobs"))
	w.stop(t)
}

// Many who come at once share one read.
func TestSnapshotsAreShared(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	w := startWorker(t, url, "w1")
	var clients []*client
	began := time.Now()
	for range 100 {
		clients = append(clients, dial(t, w, dialling{transport: webSocket, query: "topics=jobs?status=eq.new&snapshot=1"}))
	}
	for _, c := range clients {
		c.ready(t)
	}
	seconds := time.Since(began).Seconds()
	if reads := metric(t, w, "trumpet_snapshots_total"); reads > 2+seconds {
		t.Errorf("%v reads for 100 clients in %.1f s", reads, seconds)
	}
	for _, c := range clients {
		shown(t, c).compare(t, c.name, selectView(t, conn, "jobs"))
	}
}
