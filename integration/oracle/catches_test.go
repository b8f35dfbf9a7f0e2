package oracle

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// after returns a filter that lets messages pass, but for the first event that fits among those that
// come after some others: that one goes to corrupt.
func after(skip int, fits func(trumpettest.Message) bool, corrupt func(trumpettest.Frame, trumpettest.Message) []trumpettest.Frame) func(trumpettest.Frame) []trumpettest.Frame {
	done := false
	return func(f trumpettest.Frame) []trumpettest.Frame {
		m, err := f.Decode()
		if err != nil || done || !m.IsEvent() || m.ID == "" || m.Topic == markers {
			return []trumpettest.Frame{f}
		}
		if skip--; skip > 0 || !fits(m) {
			return []trumpettest.Frame{f}
		}
		done = true
		return corrupt(f, m)
	}
}

func anyEvent(trumpettest.Message) bool { return true }

// changed is the frame with another text, and another id.
func changed(f trumpettest.Frame, old, new string) trumpettest.Frame {
	f.Text = strings.Replace(f.Text, old, new, 1)
	f.ID = strings.Replace(f.ID, old, new, 1)
	return f
}

// forgedTag is the id of another history.
func forgedTag(id string) string {
	if id == "" {
		return ""
	}
	last := map[bool]string{true: "1", false: "0"}[strings.HasSuffix(id, "0")]
	return id[:len(id)-1] + last
}

// The oracle finds what is corrupted between the wire and its checks, says at which client, and
// finds nothing at others.
func TestOracleCatches(t *testing.T) {
	var mu sync.Mutex
	moved := make(chan struct{}) // closed and made anew by each event of client 0
	event := func() {
		mu.Lock()
		defer mu.Unlock()
		close(moved)
		moved = make(chan struct{})
	}
	await := func(events int) {
		for range events {
			mu.Lock()
			c := moved
			mu.Unlock()
			select {
			case <-c:
			case <-time.After(5 * time.Second): // the storm is over
				return
			}
		}
	}
	var held []trumpettest.Frame
	swallowed := func(f trumpettest.Frame) []trumpettest.Frame {
		switch m, _ := f.Decode(); m.Type {
		case "reset":
			return nil
		case "ready":
			return []trumpettest.Frame{changed(f, `"resumed":false`, `"resumed":true`)}
		}
		return []trumpettest.Frame{f}
	}
	joined, back, results := false, false, make(map[string]bool)
	isOp := func(ops ...trumpet.Op) func(trumpettest.Message) bool {
		return func(m trumpettest.Message) bool { return slices.Contains(ops, trumpet.Op(m.Op)) }
	}
	// What a client gets instead of each page of rows of a topic, or of any.
	snapshots := func(topic string, instead func(trumpettest.Frame, trumpettest.Message) []trumpettest.Frame) func(trumpettest.Frame) []trumpettest.Frame {
		return func(f trumpettest.Frame) []trumpettest.Frame {
			m, err := f.Decode()
			if err != nil || m.Type != "snapshot" || topic != "" && m.Topic != topic {
				return []trumpettest.Frame{f}
			}
			return instead(f, m)
		}
	}
	catches := map[int]struct {
		what   string
		want   invariant
		tamper Tamper
	}{
		1: {"a dropped event", delivered, Tamper{Receive: after(5, anyEvent, func(trumpettest.Frame, trumpettest.Message) []trumpettest.Frame { return nil })}},
		10: {"a doubled event", unique, Tamper{Receive: after(5, anyEvent, func(f trumpettest.Frame, _ trumpettest.Message) []trumpettest.Frame {
			return []trumpettest.Frame{f, f}
		})}},
		11: {"a swapped order", ordered, Tamper{Receive: func() func(trumpettest.Frame) []trumpettest.Frame {
			hold := after(5, anyEvent, func(f trumpettest.Frame, _ trumpettest.Message) []trumpettest.Frame {
				held = []trumpettest.Frame{f}
				return nil
			})
			return func(f trumpettest.Frame) []trumpettest.Frame {
				late := held
				frames := hold(f)
				if late != nil {
					held = nil
				}
				return append(frames, late...)
			}
		}()}},
		4: {"an event of aborted work", committed, Tamper{Receive: after(5, func(m trumpettest.Message) bool { return !m.More }, func(f trumpettest.Frame, m trumpettest.Message) []trumpettest.Frame {
			id, _ := trumpet.ParseEventID(m.ID) // what cannot be read is caught too
			id.Ordinal += 5000
			return []trumpettest.Frame{f, changed(f, m.ID, id.String())}
		})}},
		5: {"another content", committed, Tamper{Receive: after(5, func(m trumpettest.Message) bool { return m.Op == "broadcast" || m.Op == "insert" }, func(f trumpettest.Frame, m trumpettest.Message) []trumpettest.Frame {
			return []trumpettest.Frame{changed(f, "w0-", "w9-"), changed(f, "w1-", "w9-")}[map[bool]int{true: 0, false: 1}[strings.Contains(f.Text, "w0-")]:][:1]
		})}},
		7: {"a wrong more", ordered, Tamper{Receive: after(5, func(m trumpettest.Message) bool { return m.More }, func(f trumpettest.Frame, m trumpettest.Message) []trumpettest.Frame {
			return []trumpettest.Frame{changed(f, `,"more":true}`, "}")}
		})}},
		// These two roam, and come back with a forged id.
		6: {"a missed reset", delivered, Tamper{Since: func(since string) string {
			if since != "" {
				await(10)
			}
			return forgedTag(since)
		}, Receive: func(f trumpettest.Frame) []trumpettest.Frame {
			if m, _ := f.Decode(); m.Type == "ready" && !joined {
				joined = true // the first one is as it should be
				return []trumpettest.Frame{f}
			}
			return swallowed(f)
		}}},
		12: {"a reset without a reason", delivered, Tamper{Since: forgedTag}},
		// From here on they have filters and snapshots.
		14: {"a dropped leave", delivered, Tamper{Receive: after(5, isOp(trumpet.OpLeave), func(trumpettest.Frame, trumpettest.Message) []trumpettest.Frame { return nil })}},
		15: {"an enter that is called insert", committed, Tamper{Receive: after(5, isOp(trumpet.OpEnter), func(f trumpettest.Frame, _ trumpettest.Message) []trumpettest.Frame {
			return []trumpettest.Frame{changed(f, `"op":"enter"`, `"op":"insert"`)}
		})}},
		16: {"snapshots without a row", equal, Tamper{Receive: snapshots("jobs", func(f trumpettest.Frame, m trumpettest.Message) []trumpettest.Frame {
			for _, row := range m.Snapshot {
				f = changed(f, string(row), "")
			}
			f.Text = regexp.MustCompile(`"rows":\[,*\]`).ReplaceAllString(f.Text, `"rows":[]`)
			return []trumpettest.Frame{f}
		})}},
		17: {"a result that goes back", current, Tamper{Receive: func(f trumpettest.Frame) []trumpettest.Frame {
			m, err := f.Decode()
			if err != nil || m.Op != string(trumpet.OpResult) || m.AsOf <= 1 || back {
				return []trumpettest.Frame{f}
			}
			if back = results[m.Topic] && m.ID != ""; !back {
				results[m.Topic] = true
				return []trumpettest.Frame{f}
			}
			return []trumpettest.Frame{changed(f, fmt.Sprintf(`"as_of":%d`, m.AsOf), `"as_of":1`)}
		}}},
		18: {"a snapshot that does not come", delivered, Tamper{Receive: snapshots("jobs", func(trumpettest.Frame, trumpettest.Message) []trumpettest.Frame { return nil })}},
		19: {"a snapshot with a row twice", unique, Tamper{Receive: snapshots("customers", func(f trumpettest.Frame, m trumpettest.Message) []trumpettest.Frame {
			if len(m.Snapshot) == 0 {
				return []trumpettest.Frame{f}
			}
			return []trumpettest.Frame{changed(f, `"rows":[`, `"rows":[`+string(m.Snapshot[0])+",")}
		})}},
	}
	or := map[int]invariant{14: equal, 18: unique} // it depends on what comes next
	var lost string
	report, err := Run(t.Context(), Config{
		Seed: seed(t), Binary: worker, Duration: 6 * time.Second, Clients: 14, Boards: 6, Writers: 2, Workers: 1, Patience: 30 * time.Second,
		Faults: []string{}, Restless: 1500 * time.Millisecond,
		manner: func(client int) manner {
			if catches[client].tamper.Since != nil {
				return roaming
			}
			return steady
		},
		Tamper: func(client int) Tamper {
			if client == 0 {
				return Tamper{Receive: func(f trumpettest.Frame) []trumpettest.Frame {
					event()
					return []trumpettest.Frame{f}
				}}
			}
			return catches[client].tamper
		},
		AtRest: func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, `delete from committed where xid = (select xid from committed where events > 0 and token not like 'marker%' limit 1)
				returning token`).Scan(&lost)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report.Line())
	found := map[int]Violation{}
	leaked := false
	for _, v := range report.Violations {
		switch catch, ok := catches[v.Client]; {
		case ok && (v.Invariant == string(catch.want) || v.Invariant == string(or[v.Client])):
			found[v.Client] = v
		case v.Who == "the log" && v.Invariant == string(committed):
			leaked = true
			t.Logf("a transaction that was not committed: %s: %s", v.Invariant, v.What)
		case v.Client < 0 && v.Invariant == string(counted): // resets that were swallowed or forged do not add up
			t.Logf("what clients saw: %s: %s", v.Invariant, v.What)
		default:
			t.Errorf("%s: not what was corrupted: %s", catch.what, v)
		}
	}
	for client, catch := range catches {
		if v, ok := found[client]; !ok {
			t.Errorf("%s was not found", catch.what)
		} else {
			t.Logf("%s: %s: %s", catch.what, v.Invariant, v.What)
			if len(v.Story) == 0 {
				t.Errorf("%s: there is no story: %s", catch.what, v)
			}
		}
	}
	if !leaked {
		t.Errorf("transaction %s, which was not committed, was not found in the log", lost)
	}
}
