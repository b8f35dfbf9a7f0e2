package live

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/trumpet-realtime/trumpet"
)

var invoices = trumpet.Table{Topic: "invoices", Schema: "public", Name: "invoices", Key: []string{"id"}, Columns: []trumpet.Column{
	{Name: "id", Type: "bigint", Kind: trumpet.KindNumber}, {Name: "day", Type: "date", Kind: trumpet.KindDate},
	{Name: "status", Type: "text", Kind: trumpet.KindText}, {Name: "amount", Type: "numeric", Kind: trumpet.KindNumber},
}}

// keeperOf makes a keeper of an empty table, without a bus.
func keeperOf(t testing.TB, d definition) *keeper {
	t.Helper()
	p, err := newPlan(&d, invoices)
	if err != nil {
		t.Fatal(err)
	}
	return &keeper{query: &query{definition: d}, feed: newFeed("invoices"), plan: p, groups: p.none()}
}

func invoice(position int64, op trumpet.Op, newRow, old string) *trumpet.Event {
	return &trumpet.Event{ID: trumpet.EventID{Position: position}, Topic: "invoices", Op: op, New: json.RawMessage(newRow), Old: json.RawMessage(old)}
}

func TestAKeeperAppliesChanges(t *testing.T) {
	t.Parallel()
	k := keeperOf(t, definition{
		Aggregates: []aggregate{{"n", "count", ""}, {"total", "sum", "amount"}, {"most", "max", "amount"}},
		GroupBy:    []string{"status"}, Filter: "id=lt.100",
	})
	for i, step := range []struct {
		event *trumpet.Event
		want  string
		err   error
	}{
		{invoice(1, trumpet.OpInsert, `{"id":1,"day":"2026-11-01","status":"open","amount":5.50}`, ""), `[{"status":"open","n":1,"total":5.5,"most":5.50}]`, nil},
		{invoice(2, trumpet.OpInsert, `{"id":200,"day":null,"status":"open","amount":1}`, ""), `[{"status":"open","n":1,"total":5.5,"most":5.50}]`, nil},
		{invoice(3, trumpet.OpUpdate, `{"id":20,"day":null,"status":"open","amount":7}`, `{"id":200,"amount":1}`), `[{"status":"open","n":2,"total":12.5,"most":7}]`, nil},
		{invoice(4, trumpet.OpUpdate, `{"id":1,"day":"2026-11-01","status":null,"amount":5.50}`, `{"status":"open"}`), `[{"status":"open","n":1,"total":7,"most":7},{"status":null,"n":1,"total":5.5,"most":5.50}]`, nil},
		{invoice(5, trumpet.OpDelete, "", `{"id":20,"day":null,"status":"open","amount":7}`), `[{"status":null,"n":1,"total":5.5,"most":5.50}]`, nil},
		{invoice(6, trumpet.OpUpdate, `{"id":1,"day":"2026-11-01","status":null,"amount":"NaN"}`, `{"amount":5.50}`), `[{"status":null,"n":1,"total":"NaN","most":"NaN"}]`, nil},
		{invoice(7, trumpet.OpTruncate, "", ""), `[]`, nil},
		{invoice(8, trumpet.OpInsert, `{"id":1,"day":null,"state":"open","amount":5.50}`, ""), `[]`, errGone},
		{invoice(9, trumpet.OpDelete, "", `{"id":1,"day":null,"status":"open","amount":5.50}`), "", errGone}, // of what was never there
		{invoice(10, trumpet.OpBulk, "", ""), "", errGone},
	} {
		if err := k.apply(step.event); err != step.err {
			t.Errorf("%d: %v, want %v", i, err, step.err)
		}
		if step.want != "" && string(k.plan.result(k.groups)) != step.want {
			t.Errorf("%d: %s, want %s", i, k.plan.result(k.groups), step.want)
		}
	}
}

func TestGroupsAreBounded(t *testing.T) {
	t.Parallel()
	k := keeperOf(t, definition{Aggregates: []aggregate{{"n", "count", ""}}, GroupBy: []string{"id"}})
	for i := range int64(maxGroups) {
		if err := k.apply(invoice(i+1, trumpet.OpInsert, fmt.Sprintf(`{"id":%d}`, i), "")); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.apply(invoice(maxGroups+1, trumpet.OpInsert, `{"id":-1}`, "")); err != errTooManyGroups {
		t.Errorf("one more group: %v", err)
	}
	if err := k.apply(invoice(maxGroups+2, trumpet.OpDelete, "", `{"id":0}`)); err != nil || len(k.groups) >= maxGroups+1 {
		t.Errorf("%d groups, %v", len(k.groups), err)
	}
}

// What waits for a keeper is bounded; more is said to be lost, and delivery goes on.
func TestAFeedIsBounded(t *testing.T) {
	t.Parallel()
	f := newFeed("invoices")
	large := json.RawMessage(make([]byte, maxFeedBytes/4))
	for i := range int64(3) {
		f.put([]trumpet.Event{{ID: trumpet.EventID{Position: i + 1}, Topic: "invoices", New: large}, {ID: trumpet.EventID{Position: i + 1, Ordinal: 1}, Topic: "other", New: large}}, trumpet.EventID{Position: i + 1}, true)
	}
	if now := f.take(); now.lost || len(now.events) != 3 || now.head != 3 {
		t.Errorf("%d events up to %d, lost: %v", len(now.events), now.head, now.lost)
	}
	for i := range int64(6) {
		f.put([]trumpet.Event{{ID: trumpet.EventID{Position: i + 4}, Topic: "invoices", New: large}}, trumpet.EventID{Position: i + 4}, true)
	}
	if now := f.take(); !now.lost || len(now.events) != 0 || now.head != 9 {
		t.Errorf("%d events up to %d, lost: %v", len(now.events), now.head, now.lost)
	}
	if now := f.take(); now.lost {
		t.Error("still lost")
	}
}

// What one change costs, beside the table's size, which it does not depend on.
func BenchmarkApply(b *testing.B) {
	k := keeperOf(b, definition{
		Aggregates: []aggregate{{"n", "count", ""}, {"total", "sum", "amount"}, {"average", "avg", "amount"}, {"most", "max", "amount"}},
		GroupBy:    []string{"status"}, Filter: "id=gt.0",
	})
	for i := range int64(10) {
		if err := k.apply(invoice(i+1, trumpet.OpInsert, fmt.Sprintf(`{"id":%d,"day":"2026-11-01","status":"s%d","amount":1000000.00}`, i+1, i), "")); err != nil {
			b.Fatal(err)
		}
	}
	there := invoice(100, trumpet.OpUpdate, `{"id":5,"day":"2026-11-01","status":"s4","amount":17.25}`, `{"amount":12.50}`)
	back := invoice(101, trumpet.OpUpdate, `{"id":5,"day":"2026-11-01","status":"s4","amount":12.50}`, `{"amount":17.25}`)
	b.ReportAllocs()
	for b.Loop() {
		if k.apply(there) != nil || k.apply(back) != nil {
			b.Fatal("cannot apply")
		}
	}
}
