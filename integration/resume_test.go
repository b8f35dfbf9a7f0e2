package integration

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// A client that is cut off in the middle of the stream comes back to the other worker with its last
// id, again and again, while writers go on: no gap, nothing twice.
func TestResumeOnTheOtherWorker(t *testing.T) {
	t.Parallel()
	const topics, cuts = "jobs,customers,dispatch", 6
	seed := seed(t)
	url, conn := newDatabase(t)
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}

	type traveller struct {
		*client
		transport transport
		begin     string
		seen      []message
	}
	var travellers []*traveller
	for i, transport := range []transport{webSocket, sse, webSocket, sse} {
		c := dial(t, workers[i%2], dialling{transport: transport, topics: topics})
		travellers = append(travellers, &traveller{client: c, transport: transport, begin: c.ready(t).ID})
	}
	writing := startWriters(t, url, seed, 2, 0)
	for cut := range cuts {
		for i, v := range travellers {
			v.waitEvents(t, 20)
			v.drop()
			v.check(t)
			v.seen = append(v.seen, v.events()...)
			last := v.lastID()
			d := dialling{transport: v.transport, topics: topics, since: last}
			if v.transport == sse && cut%2 == 0 {
				// As an EventSource does: the URL is still the old one, the header tells the truth.
				d.since, d.lastEventID = v.begin, last
			}
			v.client = dial(t, workers[(i+cut+1)%2], d)
			if ready := v.ready(t); !ready.Resumed {
				t.Errorf("%s: not resumed from %s: %s", v.name, last, ready.text)
			}
		}
	}
	writing.stop()
	truth := finish(t, conn, travellers[0].client)
	for _, v := range travellers {
		v.waitEnd(t)
		v.check(t)
		v.seen = append(v.seen, v.events()...)
		checkEvents(t, v.name, topics, truth, v.begin, v.seen)
	}
	writing.check(t, travellers[0].name, travellers[0].seen)
	t.Logf("%d events, each client was cut off %d times", len(truth), cuts)
}

// Resumed from the log, far behind what a worker holds in memory, and in the middle of a record.
func TestResumeFromTheLog(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	pgtest.Exec(t, conn, watching("select trumpet.watch('jobs', max_rows => 5000)")) // by the WAL it bounds the whole transaction below
	w1 := startWorker(t, url, "w1")
	c := dial(t, w1, dialling{transport: webSocket, topics: "jobs,dispatch"})
	begin := c.ready(t).ID
	pgtest.Exec(t, conn, "insert into jobs (title) select 'job ' || g from generate_series(1, 500) g")
	c.waitEvents(t, 500)
	middle := c.events()[249].ID
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		var batch pgx.Batch
		for range 2500 {
			batch.Queue("insert into jobs (title) values ('one of many')")
		}
		return tx.SendBatch(t.Context(), &batch).Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	c.waitEvents(t, 3000)
	w2 := startWorker(t, url, "w2") // it has not seen any of this
	truth := finish(t, conn, c)
	for _, w := range []*worker{w1, w2} {
		for _, transport := range transports {
			for _, since := range []string{begin, middle} {
				back := dial(t, w, dialling{transport: transport, topics: "jobs,dispatch", since: since})
				back.waitEnd(t)
				if ready := back.ready(t); !ready.Resumed {
					t.Errorf("%s: not resumed: %s", back.name, ready.text)
				}
				back.check(t)
				checkEvents(t, back.name, "jobs,dispatch", truth, since, back.events())
				back.drop()
			}
		}
	}
}

// An id that the log cannot go on from gives a reset that says why, and then what is new.
func TestReset(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	w1 := startWorker(t, url, "w1")
	c := dial(t, w1, dialling{transport: webSocket, topics: "jobs"})
	c.ready(t)
	pgtest.Exec(t, conn, "insert into jobs (title) values ('one')")
	pgtest.Exec(t, conn, "insert into jobs (title) values ('two')")
	c.waitEvents(t, 2)
	old := c.events()[0].ID
	pgtest.Exec(t, conn, "select trumpet.prune('0', 0)")
	pgtest.Exec(t, conn, "insert into jobs (title) values ('three')")
	c.waitEvents(t, 3)
	newest := c.events()[2].ID
	w2 := startWorker(t, url, "w2") // w1 holds in memory what was pruned; this one does not

	forged := newest[:len(newest)-1] + map[bool]string{true: "1", false: "0"}[strings.HasSuffix(newest, "0")]
	cases := []struct {
		name, since, reason string
		worker              *worker
	}{
		{"pruned", old, "pruned", w2},
		{"another tag", forged, "unknown", w1},
		{"another tag", forged, "unknown", w2},
		{"the future", "999999.0-00000000", "unknown", w1},
		{"an ordinal that is none", strings.Replace(newest, ".0-", ".7-", 1), "unknown", w2},
		{"malformed", "8431", "invalid", w1},
		{"malformed", "' or 1=1 --", "invalid", w2},
	}
	for i, test := range cases {
		for _, transport := range transports {
			d := dialling{transport: transport, topics: "jobs,dispatch", since: test.since}
			if transport == sse && i%2 == 0 {
				d.since, d.lastEventID = "", test.since
			}
			c := dial(t, test.worker, d)
			ready := c.ready(t)
			reset := c.first(t)
			if reset.Type != "reset" || reset.Reason != test.reason || mustParse(t, reset.ID).Compare(mustParse(t, newest)) < 0 {
				t.Errorf("%s, %s: first came %s", test.name, c.name, reset.text)
			}
			if ready.Resumed {
				t.Errorf("%s, %s: %s", test.name, c.name, ready.text)
			}
			broadcast(t, conn, quoted("%s %d", transport, i))
			c.waitData(t, quoted("%s %d", transport, i))
			// Live begins at the reset's id: a worker may be a moment behind the others.
			checkEvents(t, c.name, "jobs,dispatch", readLog(t, conn, 0), reset.ID, c.events())
			c.check(t)
			c.drop()
		}
	}
	// What w1 still holds needs no log.
	back := dial(t, w1, dialling{transport: sse, topics: "jobs", since: old})
	if ready := back.ready(t); !ready.Resumed || len(back.events()) != 2 {
		t.Errorf("from memory: %s after %d events, want 2", ready.text, len(back.events()))
	}
}
