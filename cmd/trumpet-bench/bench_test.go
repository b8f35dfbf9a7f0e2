package main

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCountStatements(t *testing.T) {
	t.Parallel()
	var c cost
	c.count([]byte("" +
		"trumpet read w1|LOG:  statement: begin\n" +
		"trumpet live w1|LOG:  execute stmt_7: select count(*)\n\tfrom jobs\n" +
		"trumpet live w1|DETAIL:  parameters: $1 = 'customers'\n" +
		"dashboards|LOG:  execute <unnamed>: select sum(amount) from invoices\n" +
		"bench|LOG:  statement: insert into invoices default values\n" +
		"|LOG:  checkpoint starting: time\n" +
		"trumpet live w1|ERROR:  relation \"jobs\" does not exist\n" +
		"trumpet live w1|STATEMENT:  select from jobs\n" +
		"trumpet listen w2|LOG:  statement: select 1 as jobs_open"))
	if c.onTables != 2 || c.own != 2 {
		t.Errorf("%d statements on tables and %d others, want 2 and 2: %v", c.onTables, c.own, c.statementsRun)
	}
	if c.statementsRun["select count(*) from jobs"] != 1 {
		t.Errorf("statements: %v", c.statementsRun)
	}
}

func TestDelays(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	at := func(ms int) time.Time { return begun.Add(time.Duration(ms) * time.Millisecond) }
	got := delays([]commit{{5, at(10)}, {6, at(20)}, {9, at(30)}, {12, at(40)}}, []arrival{{4, at(5)}, {6, at(19)}, {11, at(50)}})
	want := []time.Duration{9 * time.Millisecond, 0, 20 * time.Millisecond} // nobody has the last
	if !slices.Equal(got, want) {
		t.Errorf("delays are %v, want %v", got, want)
	}
	if q := quantiles(got, 0, 0.5, 1); !slices.Equal(q, []time.Duration{0, 9 * time.Millisecond, 20 * time.Millisecond}) {
		t.Errorf("quantiles are %v", q)
	}
}

func TestWatcherTakes(t *testing.T) {
	t.Parallel()
	w := &watcher{arrivals: make(map[string][]arrival), last: make(map[string]string)}
	for _, message := range []string{
		`{"type":"stale"}`,
		`{"id":"41.0-0000abcd","topic":"stats","op":"result","at":"","as_of":40,"data":[{"n":1}]}`,
		`{"id":"41.1-0000abcd","topic":"stats","op":"result","at":"","as_of":40,"data":[],"stale":true,"error":"time-out"}`,
		`{"type":"ready","id":"41.0-0000abcd"}`,
		`{"id":"42.1-0000abcd","topic":"invoices","op":"insert","new":{"id":7}}`,
	} {
		if err := w.take([]byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	if a := w.arrivals["stats"]; len(a) != 1 || a[0].place != 40 {
		t.Errorf("stats: %v", a)
	}
	if a := w.arrivals["invoices"]; len(a) != 1 || a[0].place != 42 {
		t.Errorf("invoices: %v", a)
	}
	if w.last["ready"] == "" || len(w.arrivals) != 2 {
		t.Errorf("%v", w.last)
	}
}

func TestPlotIsWellFormed(t *testing.T) {
	t.Parallel()
	minute := func(n int) cost { return cost{elapsed: time.Minute, onTables: n} }
	drawn := dashboardPlot([]situation{
		{clients: 10, way: "live, at rest", cost: minute(0)}, {clients: 10, way: "polling, changing", cost: minute(400)},
		{clients: 1000, way: "live, changing", cost: minute(240)}, {clients: 1000, way: "polling, at rest", cost: minute(40_000)},
	})
	decoder := xml.NewDecoder(strings.NewReader(drawn))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{"40,000", "1,000 dashboards", "10 dashboards", ">240<"} {
		if !strings.Contains(drawn, text) {
			t.Errorf("the plot has no %q", text)
		}
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	var n numbers
	if err := n.Set("1,20,300"); err != nil || n.String() != "1,20,300" {
		t.Errorf("%v, %v", n, err)
	}
	for _, wrong := range []string{"", "0", "1,", "x", "-3"} {
		if n.Set(wrong) == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
	var c counts
	if err := c.Set("0,20"); err != nil || c.String() != "0,20" {
		t.Errorf("%v, %v", c, err)
	}
	if c.Set("-1") == nil {
		t.Error("-1 is taken")
	}
}
