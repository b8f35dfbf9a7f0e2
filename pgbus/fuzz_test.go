package pgbus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/trumpet-realtime/trumpet"
)

var fuzzSecret = []byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")

// What passes is exactly what was signed.
func FuzzVerify(f *testing.F) {
	genuine := sign(fuzzSecret, wholeLine+"\n8\t0000000f\n")
	for _, payload := range []string{
		genuine, genuine[:len(genuine)-1], genuine[1:], "\n" + genuine, strings.ToUpper(genuine[:32]) + genuine[32:], genuine[:32], genuine[:33],
		sign(fuzzSecret, ""), sign([]byte("another"), "9\n"), strings.Repeat("0", 32) + "\n9\n", "echo 1", "", "{}", strings.Repeat("\n", 7999),
	} {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		if body, err := verify(fuzzSecret, payload); err == nil && payload != sign(fuzzSecret, body) {
			t.Errorf("%q passes", payload)
		}
		if body, err := verify(fuzzSecret, sign(fuzzSecret, payload)); err != nil || body != payload {
			t.Errorf("%q, signed, is %q, %v", payload, body, err)
		}
	})
}

// Whatever comes on the workers' channel is counted or taken, and nobody waits: unsigned, and signed by a worker of another
// version.
func FuzzHeard(f *testing.F) {
	for _, body := range []string{
		`{"question":"Q","worker":"w1"}`, `{"question":"Q","worker":"w1","answer":{"boards":1}}`, `{"question":"Q","worker":"w1","answer":null}`,
		`{"question":7}`, `{"question":"another","worker":"w2","answer":[]}`, `{}`, `[]`, `null`, `{"question":"Q"} {}`, "", "\x00", `{"question":"\ud800"}`,
		`{"question":"Q","question":"R","worker":{}}`, strings.Repeat(`{"a":`, 2000),
	} {
		f.Add(body)
	}
	bus, err := New(Config{ConnString: "host=127.0.0.1", Answer: func() json.RawMessage { return nil }}, nil)
	if err != nil {
		f.Fatal(err)
	}
	bus.secret.Store(&fuzzSecret)
	f.Fuzz(func(t *testing.T, body string) {
		waiter := make(chan message, 1)
		bus.answers.waiting, bus.answers.answered = map[string]chan message{"Q": waiter}, nil
		before := bus.status.forged.Load()
		bus.answers.heard(body)
		if bus.status.forged.Load() != before+1 && !strings.HasPrefix(body, signature(fuzzSecret, body[min(33, len(body)):])) {
			t.Errorf("%q is not counted", body)
		}
		if len(waiter) > 0 || len(bus.answers.questions) > 0 {
			t.Errorf("%q, unsigned, was taken", body)
		}
		before = bus.status.forged.Load()
		bus.answers.heard(sign(fuzzSecret, body))
		var m message
		isMessage := json.Unmarshal([]byte(body), &m) == nil
		if counted := bus.status.forged.Load() != before; counted == isMessage {
			t.Errorf("%q, signed: counted as forged is %v", body, counted)
		}
		if len(waiter) > 0 && (!isMessage || m.Question != "Q" || !bytes.Equal((<-waiter).Answer, m.Answer)) {
			t.Errorf("%q, signed, gave an answer", body)
		}
		for len(bus.answers.questions) > 0 {
			if q := <-bus.answers.questions; !isMessage || m.Answer != nil || q != m.Question {
				t.Errorf("%q, signed, gave the question %q", body, q)
			}
		}
	})
}

// Rows that are JSON give events that are JSON, with the rows as they stand; others give an error and never a panic.
func FuzzEvents(f *testing.F) {
	for _, seed := range []struct {
		op                 uint8
		before, after, key string
	}{
		{0, ``, `[{"id":1,"a":"x"}, {"id":2,"a":null}]`, `["id"]`},
		{1, `[{"id":1,"a":"x"},{"id":2,"a":"y"}]`, `[{"id":2,"a":"y"},{"id":1,"a":"z"}]`, `["id"]`},
		{1, `[{"id":1}]`, `[{"id":1},{"id":2}]`, `["id"]`}, {1, `[{"id":1,"b":1}]`, `[{"id":3}]`, `[]`},
		{2, `[{"a\"b":[1,{"c":"]}"}]}]`, ``, `["a\"b","gone"]`}, {2, `[1]`, ``, `["id"]`}, {0, ``, `[{"id":1},]`, ``}, {0, ``, `[{"a"}]`, `["a"]`},
		{0, ``, ` [ { "a" : "\\" , "b" : "é😀" } ] `, `["b"]`}, {1, `[{"id":1},{"id":1}]`, `[{"id":1},{"id":1}]`, `["id"]`}, {0, ``, `["`, `["`},
	} {
		f.Add(seed.op, []byte(seed.before), []byte(seed.after), []byte(seed.key))
	}
	ops := []trumpet.Op{trumpet.OpInsert, trumpet.OpUpdate, trumpet.OpDelete}
	f.Fuzz(func(t *testing.T, op uint8, before, after, key []byte) {
		names, err := splitArray(key)
		if err != nil {
			return
		}
		rows := func(text []byte) (rows []map[string]json.RawMessage, ok bool) {
			return rows, len(text) == 0 || json.Unmarshal(text, &rows) == nil && !slices.ContainsFunc(rows, func(r map[string]json.RawMessage) bool { return r == nil })
		}
		old, okOld := rows(before)
		now, okNow := rows(after)
		var keyNames []string
		sound := okOld && okNow && (len(key) == 0 || json.Unmarshal(key, &keyNames) == nil)
		count := max(len(old), len(now))
		r := record{position: 1, op: ops[int(op)%len(ops)], topic: "t", before: before, after: after, key: names, lastOrdinal: int32(count - 1)}
		if r.op == trumpet.OpInsert && len(old) > 0 || r.op == trumpet.OpDelete && len(now) > 0 {
			return // the triggers write no such record
		}
		events, err := r.events()
		if !sound {
			return // it must not panic; what comes out is judged where clients are written to
		}
		if err != nil {
			if count > 0 && (r.op != trumpet.OpUpdate || len(old) == len(now)) {
				t.Errorf("sound rows: %v", err)
			}
			return
		}
		for _, e := range events {
			for _, part := range []json.RawMessage{e.New, e.Old, e.Key} {
				if part != nil && !json.Valid(part) {
					t.Errorf("%q is no JSON", part)
				}
			}
		}
		if r.op != trumpet.OpUpdate && len(events) != count {
			t.Errorf("%d rows gave %d events", count, len(events))
		}
	})
}

// What parses is what a snapshot says, number for number.
func FuzzParseSnapshot(f *testing.F) {
	for _, text := range []string{"10:10:", "10:20:10,14,15", "1:18446744073709551615:18446744073709551614", "", "::", "1:2:,", "1:2:3,", "1:2:-3", "1:2:3:4", "1:2:18446744073709551616", "1:2:+3", "1:2: 3", "1:2:٣"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		snapshot, err := parseSnapshot(text)
		if err != nil {
			return
		}
		xids := snapshot.inProgress
		parts := strings.Split(text, ":")
		if strings.TrimLeft(parts[1], "0") != strings.TrimLeft(fmt.Sprint(snapshot.xmax), "0") {
			t.Errorf("%q: xmax %d", text, snapshot.xmax)
		}
		var again []string
		for i, number := range strings.Split(parts[2], ",") {
			if len(xids) == 0 {
				break
			}
			again = append(again, fmt.Sprint(xids[i]))
			if strings.TrimLeft(number, "0") != strings.TrimLeft(again[i], "0") {
				t.Errorf("%q: number %d is %s", text, i, again[i])
			}
		}
		if len(xids) != strings.Count(parts[2], ",")+1 && parts[2] != "" {
			t.Errorf("%q: %d numbers", text, len(xids))
		}
	})
}
