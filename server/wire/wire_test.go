package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/trumpet-realtime/trumpet"
)

var (
	id = trumpet.EventID{Position: 8431, Tag: 0x5f3a09c1}
	at = time.Date(2026, 11, 23, 11, 36, 45, 123_456_789, time.UTC)
)

func TestEventJSON(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]trumpet.Event{
		`{"id":"8431.0-5f3a09c1","topic":"jobs","op":"update","at":"2026-11-23T11:36:45.123Z","key":{"id":42},"new":{"id":42,"status":"done"},"old":{"status":"open"}}`: {
			ID: id, Topic: "jobs", Op: trumpet.OpUpdate, At: at, Key: []byte(`{"id":42}`),
			New: []byte(`{"id":42,"status":"done"}`), Old: []byte(`{"status":"open"}`),
		},
		`{"id":"8431.0-5f3a09c1","topic":"jobs","op":"bulk","at":"2026-11-23T11:36:45.123Z","statement":"update","rows":100000}`: {
			ID: id, Topic: "jobs", Op: trumpet.OpBulk, At: at, Statement: trumpet.OpUpdate, Rows: 100_000,
		},
		`{"topic":"a\"b\\c","op":"broadcast","at":"2026-11-23T11:36:45.123Z","data":null}`: {
			Topic: `a"b\c`, Op: trumpet.OpBroadcast, At: at, Data: []byte("null"),
		},
		`{"id":"8431.0-5f3a09c1","topic":"stats","op":"result","at":"2026-11-23T11:36:45.123Z","as_of":8430,"data":[{"n":1}]}`: {
			ID: id, Topic: "stats", Op: trumpet.OpResult, At: at, AsOf: 8430, Data: []byte(`[{"n":1}]`),
		},
		`{"id":"8431.0-5f3a09c1","topic":"stats","op":"result","at":"2026-11-23T11:36:45.123Z","as_of":0,"data":[],"stale":true,"error":"timed \"out\""}`: {
			ID: id, Topic: "stats", Op: trumpet.OpResult, At: at, Data: []byte("[]"), Stale: true, Error: `timed "out"`,
		},
		`{"id":"8431.0-5f3a09c1","topic":"stats","op":"result","at":"2026-11-23T11:36:45.123Z","stale":true,"error":"no such table"}`: {
			ID: id, Topic: "stats", Op: trumpet.OpResult, At: at, Stale: true, Error: "no such table",
		},
	} {
		if got := string(AppendEvent(nil, &e, false)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		more := strings.TrimSuffix(want, "}") + `,"more":true}`
		if got := string(AppendEvent(nil, &e, true)); got != more {
			t.Errorf("got  %s\nwant %s", got, more)
		}
	}
}

// One whose filter takes only the row before or the row after an update sees the row go, or come.
func TestVariants(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		e            trumpet.Event
		enter, leave string
	}{
		"a column": {
			trumpet.Event{
				ID: id, Topic: "jobs", Op: trumpet.OpUpdate, At: at, Key: []byte(`{"id":42}`),
				New: []byte(`{"id":42,"title":"a","status":"done"}`), Old: []byte(`{"status":"open"}`),
			},
			`"key":{"id":42},"new":{"id":42,"title":"a","status":"done"}`,
			`"key":{"id":42},"old":{"id":42,"title":"a","status":"open"}`,
		},
		"the key": {
			trumpet.Event{
				ID: id, Topic: "jobs", Op: trumpet.OpUpdate, At: at, Key: []byte(`{"a":1,"\u0062":"x","c":{"d":[3]}}`),
				New: []byte(`{"a":1,"b":"x","c":{"d":[3]},"e":null}`), Old: []byte(`{"b":"y"}`),
			},
			`"key":{"a":1,"\u0062":"x","c":{"d":[3]}},"new":{"a":1,"b":"x","c":{"d":[3]},"e":null}`,
			`"key":{"a":1,"b":"y","c":{"d":[3]}},"old":{"a":1,"b":"y","c":{"d":[3]},"e":null}`,
		},
		"no key": {
			trumpet.Event{ID: id, Topic: "jobs", Op: trumpet.OpUpdate, At: at, New: []byte(`{"a":1}`), Old: []byte(`{"a":2}`)},
			`"new":{"a":1}`,
			`"old":{"a":2}`,
		},
	} {
		const head = `{"id":"8431.0-5f3a09c1","topic":"jobs","op":"%s","at":"2026-11-23T11:36:45.123Z",%s,"more":true}`
		for variant, want := range map[Variant]string{Enter: fmt.Sprintf(head, "enter", test.enter), Leave: fmt.Sprintf(head, "leave", test.leave)} {
			if _, got := unframe(t, EncodeEvent(WebSocket, variant, &test.e, true)); string(got) != want {
				t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
			}
		}
	}
}

func TestTimesAreUTC(t *testing.T) {
	t.Parallel()
	e := trumpet.Event{Topic: "a", Op: trumpet.OpTruncate, At: time.Date(2026, 1, 1, 1, 0, 0, 0, time.FixedZone("x", 7200))}
	if got := string(AppendEvent(nil, &e, false)); !strings.Contains(got, `"at":"2025-12-31T23:00:00.000Z"`) {
		t.Errorf("got %s", got)
	}
}

// unframe takes a frame's header off.
func unframe(t *testing.T, b []byte) (opcode byte, body []byte) {
	t.Helper()
	if b[0]&0xf0 != 0x80 || b[1]&0x80 != 0 {
		t.Fatalf("header %x", b[:2])
	}
	size, n := uint64(b[1]), 2
	switch size {
	case 126:
		size, n = uint64(binary.BigEndian.Uint16(b[2:])), 4
		if size < 126 {
			t.Errorf("length %d takes two bytes", size)
		}
	case 127:
		size, n = binary.BigEndian.Uint64(b[2:]), 10
		if size <= 0xffff {
			t.Errorf("length %d takes eight bytes", size)
		}
	}
	if uint64(len(b)-n) != size {
		t.Fatalf("length %d, but %d bytes", size, len(b)-n)
	}
	return b[0] & 0xf, b[n:]
}

func TestFrames(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 10, 60, 61, 62, 63, 64, 65, 66, 125, 65_470, 65_480, 65_535, 65_536, 1 << 20} {
		e := trumpet.Event{ID: id, Topic: "t", Op: trumpet.OpBroadcast, At: at, Data: []byte(`"` + strings.Repeat("x", size) + `"`)}
		plain := AppendEvent(nil, &e, true)
		opcode, body := unframe(t, EncodeEvent(WebSocket, Whole, &e, true))
		if opcode != 1 || !bytes.Equal(body, plain) {
			t.Fatalf("size %d: the frame holds something else", size)
		}
		if got, want := string(EncodeEvent(SSE, Whole, &e, true)), "id: 8431.0-5f3a09c1\ndata: "+string(plain)+"\n\n"; got != want {
			t.Fatalf("size %d: the SSE event holds something else", size)
		}
	}
	raw := trumpet.Event{Topic: "t", Op: trumpet.OpBroadcast, At: at, Data: []byte("1")}
	if got := string(EncodeEvent(SSE, Whole, &raw, false)); !strings.HasPrefix(got, "data: {") {
		t.Errorf("got %q", got)
	}
}

// Whatever a notification holds, it stays within its frame.
func TestNothingBreaksOut(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"{\r\n\"a\":\n1}", "\"\xff\xfe\"", "[1,\r2]"} {
		e := trumpet.Event{Topic: "t", Op: trumpet.OpBroadcast, At: at, Data: []byte(data)}
		sse := string(EncodeEvent(SSE, Whole, &e, false))
		if strings.Count(sse, "\n") != 2 || strings.Contains(sse, "\r") || !utf8.ValidString(sse) {
			t.Errorf("%q became %q", data, sse)
		}
		_, body := unframe(t, EncodeEvent(WebSocket, Whole, &e, false))
		if !json.Valid(body) {
			t.Errorf("%q became %q", data, body)
		}
	}
}

func TestControl(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		make func(f Format) []byte
		json string
		id   bool
	}{
		"ready":      {func(f Format) []byte { return AppendReady(nil, f, id, true, "w1") }, `{"type":"ready","id":"8431.0-5f3a09c1","resumed":true,"worker":"w1"}`, true},
		"reset":      {func(f Format) []byte { return AppendReset(nil, f, id, ReasonPruned) }, `{"type":"reset","id":"8431.0-5f3a09c1","reason":"pruned"}`, true},
		"stale":      {func(f Format) []byte { return AppendStale(nil, f) }, `{"type":"stale"}`, false},
		"live":       {func(f Format) []byte { return AppendLive(nil, f) }, `{"type":"live"}`, false},
		"ping":       {func(f Format) []byte { return AppendPing(nil, f, id, at) }, `{"type":"ping","id":"8431.0-5f3a09c1","at":"2026-11-23T11:36:45.123Z"}`, true},
		"subscribed": {func(f Format) []byte { return AppendSubscribed(nil, f, nil, []string{"a", "b?c=eq.1"}, id) }, `{"type":"subscribed","topics":["a","b?c=eq.1"],"id":"8431.0-5f3a09c1"}`, false},
		"refused":    {func(f Format) []byte { return AppendRefused(nil, f, []byte(`"x"`), `no "b"`) }, `{"type":"refused","ref":"x","message":"no \"b\""}`, false},
		"snapshot": {func(f Format) []byte {
			return AppendSnapshot(nil, f, "a", 2, []json.RawMessage{[]byte(`{"b":1}`), []byte(`{"b":2}`)}, true)
		}, `{"type":"snapshot","topic":"a","page":2,"rows":[{"b":1},{"b":2}],"more":true}`, false},
		"error": {func(f Format) []byte {
			return AppendError(nil, f, trumpet.Ending{Code: 4008, Name: "slow", Message: "x"})
		}, `{"type":"error","code":"slow","message":"x","retry":true}`, false},
	} {
		if _, body := unframe(t, test.make(WebSocket)); string(body) != test.json {
			t.Errorf("%s: got %s, want %s", name, body, test.json)
		}
		want := "event: " + name + "\ndata: " + test.json + "\n\n"
		if test.id {
			want = "id: " + id.String() + "\n" + want
		}
		if got := string(test.make(SSE)); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if _, got := unframe(t, AppendSubscribed(nil, WebSocket, []byte("7"), nil, id)); string(got) != `{"type":"subscribed","ref":7,"topics":[],"id":"8431.0-5f3a09c1"}` {
		t.Errorf("got %s", got)
	}
	if _, got := unframe(t, AppendSnapshot(nil, WebSocket, "a", 1, nil, false)); string(got) != `{"type":"snapshot","topic":"a","page":1,"rows":[]}` {
		t.Errorf("got %s", got)
	}
	// An EventSource that breaks off before its snapshot is whole must not go on from here.
	if got := string(AppendResetBySnapshot(nil, SSE, ReasonPruned)); got != "event: reset\ndata: {\"type\":\"reset\",\"reason\":\"pruned\"}\n\n" {
		t.Errorf("got %q", got)
	}
	if got := string(AppendRetry(nil, 1500*time.Millisecond)); got != "retry: 1500\n\n" {
		t.Errorf("got %q", got)
	}
}

func TestEndings(t *testing.T) {
	t.Parallel()
	for _, e := range trumpet.Endings {
		b := AppendEnding(nil, WebSocket, e)
		if !e.Retry() {
			if !bytes.HasPrefix(b, AppendError(nil, WebSocket, e)) {
				t.Errorf("%s: no error frame", e.Name)
			}
			b = b[len(AppendError(nil, WebSocket, e)):]
		}
		opcode, body := unframe(t, b)
		if opcode != 8 || int(binary.BigEndian.Uint16(body)) != e.Code || string(body[2:]) != e.Message {
			t.Errorf("%s: %d %q", e.Name, opcode, body)
		}
	}
	long := trumpet.Ending{Code: 4500, Message: "x" + strings.Repeat("é", 100)}
	if _, body := unframe(t, AppendClose(nil, long)); len(body) > 125 || !utf8.Valid(body[2:]) {
		t.Errorf("close reason of %d bytes", len(body))
	}
}

func TestParseClientFrame(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]Command{
		` {"type":"unsubscribe","topics":["jobs","public.jobs"]} `: {
			Unsubscribe: true, Subscriptions: []trumpet.Subscription{{Topic: "jobs"}, {Topic: "public.jobs"}},
		},
		`{"type":"subscribe","ref":-7,"snapshot":true,"topics":["jobs"]}`: {
			Ref: []byte("-7"), Snapshot: true, Subscriptions: []trumpet.Subscription{{Topic: "jobs"}},
		},
		`{"type":"subscribe","ref":"\u00e9\n","topics":["jobs"]}`: {
			Ref: []byte(`"\u00e9\n"`), Subscriptions: []trumpet.Subscription{{Topic: "jobs"}},
		},
		`{"type":"subscribe","ref":null,"topics":["jobs?status=eq.open"]}`: {
			Subscriptions: []trumpet.Subscription{{Topic: "jobs", Conditions: []trumpet.Condition{
				{Column: "status", Operator: trumpet.Eq, Values: []string{"open"}},
			}}},
		},
	} {
		got, err := ParseClientFrame([]byte(message))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v", message, got, err)
		}
	}
	for _, bad := range []string{
		"", "1", "[]", "null", "{", `{"type":"subscribe"}`, `{"type":"subscribe","topics":[]}`, `{"type":"publish","topics":["a"]}`,
		`{"type":"subscribe","topics":["a,b"]}`, `{"type":"subscribe","topics":["a\nb"]}`, `{"type":"subscribe","topics":[""]}`,
		`{"type":"subscribe","topics":["?a=eq.1"]}`, `{"type":"subscribe","topics":["a&b?a=eq.1"]}`,
		`{"type":"subscribe","topics":["a"],"filter":"x"}`, `{"type":"subscribe","topics":["a"]}{}`, `{"type":"subscribe","topics":"a"}`,
		`{"type":"unsubscribe","topics":["a"],"snapshot":true}`, `{"type":"subscribe","topics":["a"],"snapshot":1}`,
		`{"type":"subscribe","topics":["a"],"ref":1.5}`, `{"type":"subscribe","topics":["a"],"ref":1e3}`, `{"type":"subscribe","topics":["a"],"ref":true}`,
		`{"type":"subscribe","topics":["a"],"ref":[1]}`, `{"type":"subscribe","topics":["a"],"ref":{}}`,
		`{"type":"subscribe","topics":["a"],"ref":"` + strings.Repeat("x", 65) + `"}`, `{"type":"subscribe","topics":["a"],"ref":` + strings.Repeat("1", 65) + `}`,
		strings.Repeat(" ", MaxClientFrame+1),
	} {
		got, err := ParseClientFrame([]byte(bad))
		var refusal *trumpet.Refusal
		if err == nil || errors.As(err, &refusal) {
			t.Errorf("%.60q: got %+v, %v", bad, got, err)
		}
	}
	for _, impossible := range []string{
		`"jobs?status"`, `"jobs?status=open"`, `"jobs?status=about.open"`, `"a","jobs?status=in.open"`, strings.Repeat(`"a",`, MaxTopics) + `"a"`,
	} {
		got, err := ParseClientFrame([]byte(`{"type":"subscribe","ref":7,"topics":[` + impossible + `]}`))
		var refusal *trumpet.Refusal
		if !errors.As(err, &refusal) || string(got.Ref) != "7" {
			t.Errorf("%.60s: got %+v, %v", impossible, got, err)
		}
	}
}

func FuzzParseClientFrame(f *testing.F) {
	f.Add([]byte(`{"type":"subscribe","topics":["jobs"]}`))
	f.Add([]byte(`{"type":"unsubscribe","topics":["a","b"]}`))
	f.Add([]byte(`{"type":"subscribe","ref":"x","snapshot":true,"topics":["jobs?status=not.in.(a,\"b,c\")&n=gte.1.5"]}`))
	f.Add([]byte("{\"type\":\"subscribe\",\"topics\":[\"\\ud800\"]}"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		command, err := ParseClientFrame(frame)
		if err != nil {
			if message := err.Error(); len(message) > 1000 || strings.ContainsAny(message, "\r\n") {
				t.Errorf("error %q", message)
			}
			return
		}
		if len(command.Subscriptions) == 0 || len(command.Subscriptions) > MaxTopics {
			t.Errorf("%d subscriptions", len(command.Subscriptions))
		}
		for _, s := range command.Subscriptions {
			if again, err := trumpet.ParseSubscription(s.String()); err != nil || again.Key() != s.Key() {
				t.Errorf("%s came back as %s, %v", s, again, err)
			}
		}
		if answer := AppendRefused(nil, WebSocket, command.Ref, "x"); utf8.Valid(frame) {
			if _, body := unframe(t, answer); !json.Valid(body) {
				t.Errorf("answered by %q", body)
			}
		}
	})
}

func FuzzEncodeEvent(f *testing.F) {
	f.Add("jobs", []byte(`{"a":1}`), true)
	f.Add("a\"b\x00", []byte("{\n\"a\":\"\xff\"}"), false)
	f.Fuzz(func(t *testing.T, topic string, data []byte, more bool) {
		for v := Whole; v <= Leave; v++ {
			e := trumpet.Event{Topic: topic, Op: trumpet.OpUpdate, At: at, Key: data, New: []byte(`{"a":1,"b":[]}`), Old: data}
			if _, body := unframe(t, EncodeEvent(WebSocket, v, &e, more)); json.Valid(data) && !json.Valid(body) {
				t.Fatalf("variant %d: got %q", v, body)
			}
		}
		e := trumpet.Event{ID: id, Topic: topic, Op: trumpet.OpBroadcast, At: at, Data: data}
		sse := string(EncodeEvent(SSE, Whole, &e, more))
		if strings.Count(sse, "\n") != 3 || strings.Contains(sse, "\r") || !utf8.ValidString(sse) {
			t.Fatalf("got %q", sse)
		}
		if _, body := unframe(t, EncodeEvent(WebSocket, Whole, &e, more)); json.Valid(data) && !json.Valid(body) {
			t.Fatalf("got %q", body)
		}
	})
}
