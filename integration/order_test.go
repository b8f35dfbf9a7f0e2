package integration

import (
	"maps"
	"sync"
	"testing"
	"time"
)

// Two workers with forty clients each, of both transports, while four writers commit, abort and
// roll savepoints back: everybody gets what the log has, once, in its order, whole transactions
// marked; the log has what was committed and nothing else; and each client's view is the table.
func TestTwoWorkersFortyClientsEach(t *testing.T) {
	t.Parallel()
	const perWorker, transactions = 40, 60
	seed := seed(t)
	url, conn := newDatabase(t)
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2")}
	before := map[string]view{"jobs": selectView(t, conn, "jobs"), "customers": selectView(t, conn, "customers")}

	type listener struct {
		*client
		topics string
	}
	const everything = "jobs,customers,dispatch"
	var clients []listener
	for _, w := range workers {
		for i := range perWorker {
			topics := everything
			if i%10 >= 8 { // one WebSocket and one SSE client of ten see only a part
				topics = "dispatch,customers"
			}
			clients = append(clients, listener{dial(t, w, dialling{transport: transports[i%2], topics: topics}), topics})
		}
	}
	var begin string
	for _, c := range clients {
		begin = c.ready(t).ID
	}

	started := time.Now()
	writing := startWriters(t, url, seed, 4, transactions)
	writing.wait()
	truth := finish(t, conn, clients[0].client)
	for _, c := range clients {
		c.waitEnd(t)
	}
	t.Logf("%d transactions committed and %d aborted; %d events to each of %d clients in %v", writing.committed.Load(),
		writing.aborted.Load(), len(truth), len(clients), time.Since(started).Round(time.Millisecond))
	if writing.committed.Load() == 0 || writing.aborted.Load() == 0 {
		t.Error("the writers did not both commit and abort")
	}

	after := map[string]view{"jobs": selectView(t, conn, "jobs"), "customers": selectView(t, conn, "customers")}
	var checks sync.WaitGroup
	for _, c := range clients {
		checks.Go(func() {
			events := c.events()
			c.check(t)
			checkEvents(t, c.name, c.topics, truth, begin, events)
			if c.topics != everything {
				return
			}
			for table, rows := range before {
				mine := maps.Clone(rows)
				mine.apply(t, table, events)
				mine.compare(t, c.name, after[table])
			}
		})
	}
	checks.Wait()
	writing.check(t, clients[0].name, clients[0].events())

	// What one client got is byte for byte what every other one with the same topics got.
	first := clients[0].events()
	for _, c := range clients {
		if c.topics != everything {
			continue
		}
		for i, e := range c.events() {
			if i < len(first) && e.text != first[i].text {
				t.Errorf("%s got %.200s, another one %.200s", c.name, e.text, first[i].text)
				break
			}
		}
	}
}
