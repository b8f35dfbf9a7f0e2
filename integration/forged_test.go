package integration

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

const strangersPassword = "of-no-account"

// stranger is a connection of a role that may do nothing but connect, which is enough to LISTEN and NOTIFY.
func stranger(t *testing.T, database string, conn *pgx.Conn) *pgx.Conn {
	t.Helper()
	role := "stranger_" + strings.ToLower(rand.Text()[:12])
	pgtest.Exec(t, conn, fmt.Sprintf("create role %s login password '%s'", role, strangersPassword))
	t.Cleanup(func() {
		if _, err := conn.Exec(context.WithoutCancel(t.Context()), "drop role "+role); err != nil {
			t.Error(err)
		}
	})
	address, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.UserPassword(role, strangersPassword)
	stranger, err := pgx.Connect(t.Context(), address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stranger.Close(context.WithoutCancel(t.Context())) })
	return stranger
}

// notify sends one notification for each payload, in one transaction.
func notify(t *testing.T, conn *pgx.Conn, channel string, payloads ...string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), "select pg_notify($1, p) from unnest($2::text[]) p", channel, payloads); err != nil {
		t.Fatal(err)
	}
}

// Another role, without any right but to connect, sends what it likes to Trumpet's channels, also what it heard there itself,
// while rows change: all of it is counted, none is taken for an event, nobody is disconnected, and logs stay short.
func TestForgedNotifications(t *testing.T) {
	t.Parallel()
	const topics = "jobs,customers,dispatch"
	const flood = 3000
	seed := seed(t)
	database, conn := newDatabase(t)
	workers := []*worker{startWorker(t, database, "w1"), startWorker(t, database, "w2")}
	clients, begin := dialSixEach(t, workers, topics)
	eavesdropper, forger := stranger(t, database, conn), stranger(t, database, conn)
	pgtest.Exec(t, eavesdropper, "listen trumpet; listen trumpet_workers; listen trumpet_wake")

	before := startWriters(t, database, seed, 2, 20)
	before.wait()
	broadcast(t, conn, `"before"`)
	statusOf(t, workers[0]) // a question, and answers, on trumpet_workers
	for _, c := range clients {
		c.waitData(t, `"before"`)
	}
	heard := map[string][]string{}
	listening, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for len(heard["trumpet"]) < 5 || len(heard["trumpet_workers"]) < 3 {
		n, err := eavesdropper.WaitForNotification(listening)
		if err != nil {
			t.Fatal(err)
		}
		heard[n.Channel] = append(heard[n.Channel], n.Payload)
	}

	during := startWriters(t, database, seed+1, 2, 0)
	forged := forgeries(heard["trumpet"][0])
	for _, channel := range []string{"trumpet", "trumpet_workers", "trumpet_wake"} {
		for _, payload := range forged {
			notify(t, forger, channel, payload)
		}
	}
	for range 3 { // what is genuine and known changes nothing, however often, and on whichever channel
		notify(t, forger, "trumpet", heard["trumpet"]...)
		notify(t, forger, "trumpet_workers", heard["trumpet_workers"]...)
		notify(t, forger, "trumpet", heard["trumpet_workers"]...)
		notify(t, forger, "trumpet_workers", heard["trumpet"]...)
	}
	for _, channel := range []string{"trumpet", "trumpet_workers", "trumpet_wake"} {
		var noise []string
		for i := range flood {
			noise = append(noise, fmt.Sprintf("%d %s", i, strings.Repeat("x", i%200)))
		}
		notify(t, forger, channel, noise...)
	}
	during.stop()
	broadcast(t, conn, `"during"`)

	patient, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, w := range workers {
		// Each forgery on two channels that carry a signature, and the floods.
		least := float64(2 * (len(forged) + flood))
		poll(patient, t, w.name+" to count what was forged", func() bool { return metric(t, w, "trumpet_bus_forged_total") >= least })
		if got := metric(t, w, "trumpet_bus_connected"); got != 1 {
			t.Errorf("%s does not listen any more", w.name)
		}
		log := w.log.String()
		if lines := strings.Count(log, "\n"); lines > 50 || len(log) > 20000 {
			t.Errorf("%s: its log has %d lines and %d bytes", w.name, lines, len(log))
		}
		if strings.Contains(log, "session lost") {
			t.Errorf("%s lost its session:\n%s", w.name, log)
		}
	}
	if status := statusOf(t, workers[0]); status.Alive != 2 || status.Answered != 2 || len(status.Workers) != 2 {
		t.Errorf("a question to all workers is answered by %+v", status)
	}
	truth := finish(t, conn, clients[0])
	for _, c := range clients {
		c.waitEnd(t)
		c.check(t)
		checkEvents(t, c.name, topics, truth, begin, c.events())
		if n := c.controls("stale", "reset"); n != 0 {
			t.Errorf("%s was told of %d faults", c.name, n)
		}
	}
}

// controls counts the control messages of some kinds.
func (c *client) controls(kinds ...string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.messages {
		if slices.Contains(kinds, m.Type) {
			n++
		}
	}
	return n
}

// forgeries are payloads that no sequencer sent, some of them near to one that it did.
func forgeries(genuine string) []string {
	signature, body, _ := strings.Cut(genuine, "\n")
	zeros := strings.Repeat("0", 32)
	flipped := "0"
	if signature[0] == '0' {
		flipped = "1"
	}
	return []string{
		"", "{", "{}", "null", `{"question":"a","worker":"w9"}`, `{"question":"a","worker":"w9","answer":{}}`,
		"echo ", "noise", "2\tffffffff", "999999999",
		zeros + "\n" + `{"question":"a","worker":"w9"}`, zeros + "\n" + `{"question":"a","worker":"w9","answer":{}}`,
		zeros + "\n999999999\n",                   // read up to there
		zeros + "\n999999999\tffffffff\n",         // a stub
		flipped + signature[1:] + "\n" + body,     // one bit of the signature
		signature + "\n" + body + "\n999999999\n", // more than was signed
		signature + "\n" + body[:len(body)-1],     // less
		genuine[:len(genuine)/2], genuine[1:], "\n" + genuine, signature, signature + "\n",
		strings.ToUpper(signature) + "\n" + body,
		signature + "\r\n" + body,
		strings.Repeat("\x01\x02\x7f\x1b[31m", 900), // binary, as far as text may be
		strings.Repeat("é", 3999) + "x",             // 7,999 bytes
		zeros + "\n" + strings.Repeat("9", 7999-33), // a position beyond all
		zeros + "\n" + strings.Repeat("[", 7999-33), // deep
		strings.Repeat("\n", 7999), strings.Repeat("\t", 7999),
	}
}

// What anybody sends to a channel of --channels is passed on, as a broadcast without an id, and as nothing else: that is what
// these channels are for.
func TestRawNotificationsOfAStranger(t *testing.T) {
	t.Parallel()
	database, conn := newDatabase(t)
	w := startWorker(t, database, "w1")
	clients := []*client{
		dial(t, w, dialling{transport: webSocket, topics: "jobs,customers,dispatch"}), dial(t, w, dialling{transport: sse, topics: "jobs,customers,dispatch"}),
	}
	for _, c := range clients {
		c.ready(t)
	}
	broadcast(t, conn, "1")
	genuine := clients[0].waitData(t, "1")
	forger := stranger(t, database, conn)
	payloads := []string{
		`{"id":"` + genuine.ID + `","topic":"jobs","op":"insert","new":{"id":1}}`, // an event, by its looks
		`{"type":"reset","reason":"lost"}`, `{"type":"error","code":"draining"}`,
		"id: " + genuine.ID + "\n\ndata: {}\n\n", "a\r\ndata: x\r\n\r\nevent: reset\r\n", "{", "",
		strings.Repeat("é", 3999) + "x", "\x01\x1b[2J\x7f",
	}
	notify(t, forger, "dispatch", payloads...)
	for _, c := range clients {
		c.waitEvents(t, 1+len(payloads))
		for i, e := range c.events()[1:] {
			if e.ID != "" || e.last != "" || e.Topic != "dispatch" || e.Op != "broadcast" || e.Type != "" {
				t.Errorf("%s: payload %d came as %.200s", c.name, i, e.text)
			}
			got := decode(t, e.Data)
			if text, ok := got.(string); ok && text != payloads[i] || !ok && !strings.HasPrefix(payloads[i], "{") {
				t.Errorf("%s: payload %d came with %.200s", c.name, i, e.Data)
			}
		}
		if n := c.controls("stale", "reset", "error"); n != 0 {
			t.Errorf("%s was told of %d faults", c.name, n)
		}
		if c.lastID() != genuine.ID {
			t.Errorf("%s would come back with %q", c.name, c.lastID())
		}
		c.check(t)
	}
}

// Somebody hears the workers' answers and sends each again, many times, while it still counts, also in place of a worker that
// is frozen: no worker is taken for two.
func TestReplayedAnswers(t *testing.T) {
	t.Parallel()
	database, conn := newDatabase(t)
	workers := []*worker{startWorker(t, database, "w1"), startWorker(t, database, "w2"), startWorker(t, database, "w3")}
	replayer, sender := stranger(t, database, conn), stranger(t, database, conn)
	pgtest.Exec(t, replayer, "listen trumpet_workers")
	ctx, end := context.WithCancel(t.Context())
	var replaying sync.WaitGroup
	replayed := 0
	replaying.Go(func() {
		seen := map[string]int{}
		for {
			n, err := replayer.WaitForNotification(ctx)
			if err != nil {
				return
			}
			if seen[n.Payload]++; seen[n.Payload] > 1 {
				continue // our own
			}
			for range 5 {
				if _, err := sender.Exec(ctx, "select pg_notify('trumpet_workers', $1)", n.Payload); err != nil {
					return
				}
				replayed++
			}
		}
	})
	for range 30 {
		status := statusOf(t, workers[0])
		names := map[string]bool{}
		for _, w := range status.Workers {
			names[w.Name] = true
		}
		if status.Alive != 3 || status.Answered != 3 || len(status.Workers) != 3 || len(names) != 3 {
			t.Errorf("three workers are %+v", status)
			break
		}
	}
	workers[2].signal(t, syscall.SIGSTOP)
	defer workers[2].signal(t, syscall.SIGCONT) // or it could not be ended
	for fresh := 0; fresh < 3; {
		status := statusOf(t, workers[0])
		names := map[string]bool{}
		for _, w := range status.Workers {
			names[w.Name] = true
		}
		if names["w3"] {
			continue // from before
		}
		fresh++
		if status.Alive != 3 || status.Answered != 2 || len(status.Workers) != 2 || len(names) != 2 {
			t.Errorf("three workers, one of them frozen, are %+v", status)
		}
	}
	end()
	replaying.Wait()
	if replayed == 0 {
		t.Error("nothing was replayed")
	}
}
