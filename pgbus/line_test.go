package pgbus

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet"
)

const wholeLine = "7\ta2b76302\t11\t1\t1\t1795439968546918\tupdate\t\t2\t\"jobs\"\t[\"id\"]\t" +
	`[{"id":1,"status":"open"}, {"id":2,"status":"open"}]` + "\t" +
	`[{"id":1,"status":"done"}, {"id":2,"status":"open"}]` + "\t"

func TestParseLineReadsAWholeRecord(t *testing.T) {
	t.Parallel()
	r, err := parseLine([]byte(wholeLine))
	if err != nil {
		t.Fatal(err)
	}
	if r.position != 7 || r.tag != 0xa2b76302 || r.id != 11 || r.lastOrdinal != 1 || !r.more ||
		r.op != trumpet.OpUpdate || r.rows != 2 || r.topic != "jobs" || len(r.key) != 1 || string(r.key[0]) != `"id"` {
		t.Errorf("got %+v", r)
	}
	if want := time.Date(2026, 11, 23, 13, 19, 28, 546918000, time.UTC); !r.at.Equal(want) {
		t.Errorf("at is %v, want %v", r.at, want)
	}
	events, err := r.events()
	if err != nil {
		t.Fatal(err)
	}
	// The second row did not change: no event, and the first one keeps its ordinal.
	if len(events) != 1 || events[0].ID.String() != "7.0-a2b76302" || string(events[0].Key) != `{"id":1}` ||
		string(events[0].Old) != `{"status":"open"}` || string(events[0].New) != `{"id":1,"status":"done"}` {
		t.Errorf("got %+v", events)
	}
}

func TestParseLineReadsAResult(t *testing.T) {
	t.Parallel()
	const begin = "7\ta2b76302\t11\t0\t0\t1795439968546918\tresult\t\t0\t\"stats\"\t\t\t"
	for _, test := range []struct{ after, data, want string }{
		{`[{"n":1}]`, `{"as_of": 6, "version": 3}`, `[{"n":1}] as of 6`},
		{`[{"n":1}]`, `{"as_of": 5, "error": "took\nlonger", "stale": true, "version": 3}`, `[{"n":1}] as of 5, stale: took longer`},
		{``, `{"as_of": 0, "error": "not run yet", "stale": true, "version": 3}`, ` as of 0, stale: not run yet`},
		{`[]`, `{"as_of": -1}`, "error"},
		{`[]`, `[]`, "error"},
		{`[]`, ``, "error"},
	} {
		r, err := parseLine([]byte(begin + test.after + "\t" + test.data))
		if err != nil {
			t.Fatal(err)
		}
		got := "error"
		if events, err := r.events(); err == nil {
			e := events[0]
			got = fmt.Sprintf("%s as of %d", e.Data, e.AsOf)
			if e.Stale {
				got += ", stale: " + e.Error
			}
			if e.Op != trumpet.OpResult || e.Topic != "stats" || e.New != nil || e.ID.String() != "7.0-a2b76302" {
				t.Errorf("got %+v", e)
			}
		}
		if got != test.want {
			t.Errorf("%s, %s: %s, want %s", test.after, test.data, got, test.want)
		}
	}
}

func TestParseLineReadsStubsAndPositions(t *testing.T) {
	t.Parallel()
	r, err := parseLine([]byte("8\t0000000f"))
	if err != nil || !r.stub || r.position != 8 || r.tag != 15 {
		t.Errorf("got %+v, %v", r, err)
	}
	r, err = parseLine([]byte("9"))
	if err != nil || !r.upTo || r.position != 9 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestParseLineRefuses(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"nothing":               "",
		"position 0":            "0\ta2b76302",
		"a negative position":   "-1\ta2b76302",
		"a huge position":       "9223372036854775808",
		"a short tag":           "1\tb",
		"too few fields":        "1\ta2b76302\t3",
		"a field too many":      wholeLine + "\t",
		"an unknown operation":  strings.Replace(wholeLine, "update", "upsert", 1),
		"an empty topic":        strings.Replace(wholeLine, `"jobs"`, `""`, 1),
		"rows that are no JSON": strings.Replace(wholeLine, `[{"id":1,"status":"done"}`, `[{"id":1,"status":"done"`, 1),
		"more that is no bit":   strings.Replace(wholeLine, "\t1\t1\t17", "\t1\t2\t17", 1),
	} {
		if r, err := parseLine([]byte(line)); err == nil {
			t.Errorf("%s: no error, got %+v", name, r)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte(wholeLine))
	f.Add([]byte("8\t0000000f"))
	f.Add([]byte("9"))
	f.Add([]byte("1\ta2b76302\t1\t0\t0\t0\tbroadcast\t\t1\t\"d\"\t\t\t\t{\"a\": [1, {}]}"))
	f.Add([]byte("1\ta2b76302\t1\t0\t0\t0\tdelete\t\t1\t\"d\"\t[\"i\\\"d\"]\t[{\"i\\\"d\":1}]\t\t"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parseLine(line)
		if err != nil {
			return
		}
		if r.position < 1 {
			t.Errorf("position %d", r.position)
		}
		if !r.stub && !r.upTo {
			_, _ = r.events() // must not panic, whatever JSON it holds
		}
	})
}

func TestVerify(t *testing.T) {
	t.Parallel()
	secret := []byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	payload := sign(secret, "1\n")
	if body, err := verify(secret, payload); err != nil || body != "1\n" {
		t.Errorf("got %q, %v", body, err)
	}
	for _, forged := range []string{"", "1\n", payload + "2\n", payload[1:], strings.Replace(payload, "\n1", "\n2", 1), strings.Repeat("0", 32) + "\n1\n"} {
		if _, err := verify(secret, forged); err == nil {
			t.Errorf("%q passed", forged)
		}
	}
	if _, err := verify([]byte("another"), payload); err == nil {
		t.Error("another secret's signature passed")
	}
}

func TestParseSnapshot(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{"10:10:": 0, "10:20:10,14,15": 3} {
		if s, err := parseSnapshot(text); err != nil || len(s.inProgress) != want {
			t.Errorf("%q: got %v, %v", text, s, err)
		}
	}
	s, err := parseSnapshot("10:20:10,14")
	if running := s.running([]uint64{9, 10, 11, 14, 19, 20, 21}); err != nil || fmt.Sprint(running) != "[10 14 20 21]" {
		t.Errorf("running: %v, %v", running, err)
	}
	for _, text := range []string{"", "10", "10:20", "10:20:x", "10:x:10"} {
		if _, err := parseSnapshot(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}
