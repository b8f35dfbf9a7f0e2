package demo_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trumpet-realtime/trumpet/internal/demo"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

func open(t *testing.T, paused bool) (*demo.App, *pgxpool.Pool) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), pgtest.Migrated(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	app := demo.New(pool, slog.New(slog.DiscardHandler), paused)
	for range 2 { // the second time there is nothing to do
		if err := app.Install(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return app, pool
}

func number(t *testing.T, pool *pgxpool.Pool, query string) int {
	t.Helper()
	var n int
	if err := pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func TestTheDayStaysOnOneBoard(t *testing.T) {
	t.Parallel()
	app, pool := open(t, false)
	if n := number(t, pool, "select count(*) from customers"); n != 60 {
		t.Errorf("%d customers in the beginning", n)
	}
	if n := number(t, pool, "select count(*) from jobs"); n != 40 {
		t.Errorf("%d jobs in the beginning", n)
	}
	if n := number(t, pool, "select count(distinct issued_on) from invoices where issued_on > (now() at time zone 'UTC')::date - 14"); n < 10 {
		t.Errorf("invoices on %d days in the beginning", n)
	}
	if n := number(t, pool, "select abs(count(*) - (select count(*) from invoices where job_id is not null)) from jobs where status = 'done' and price > 0"); n != 0 {
		t.Errorf("%d done jobs are not billed in the beginning, or have two invoices", n)
	}
	billed := number(t, pool, "select count(*) from invoices")
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, seed))
	for i := range 1200 {
		if err := app.Step(t.Context(), rng); err != nil {
			t.Fatalf("seed %d: step %d: %v", seed, i, err)
		}
		if i%100 != 0 {
			continue
		}
		for what, query := range map[string]string{
			"open jobs":                        "select count(*) - 36 from jobs where status not in ('done', 'cancelled')",
			"done jobs":                        "select count(*) - 56 from jobs where status = 'done'",
			"cancelled jobs":                   "select count(*) - 12 from jobs where status = 'cancelled'",
			"jobs out without a technician":    "select count(*) from jobs where status in ('scheduled', 'en_route', 'on_site') and (technician is null or scheduled_for is null)",
			"technicians in two places":        "select count(*) from (select from jobs where status in ('en_route', 'on_site') group by technician having count(*) > 1) x",
			"jobs that are billed twice":       "select count(*) - count(distinct job_id) from invoices where job_id is not null",
			"jobs whose address has no street": "select count(*) from jobs where address not like '%, %'",
		} {
			if over := number(t, pool, query); over > 0 {
				t.Errorf("seed %d: step %d: %d too many: %s", seed, i, over, what)
			}
		}
	}
	if n := number(t, pool, "select count(*) from jobs where status = 'done'"); n < 20 {
		t.Errorf("seed %d: only %d jobs are done after the day", seed, n)
	}
	if n := number(t, pool, "select count(*) from invoices") - billed; n < 20 {
		t.Errorf("seed %d: only %d jobs were billed in the day", seed, n)
	}
}

func TestStateAndSimulator(t *testing.T) {
	t.Parallel()
	app, pool := open(t, true)
	workers := []demo.Worker{{Name: "w1", URL: "http://a/"}, {Name: "w2", URL: "http://b/"}}
	post := func(kind, body string) (int, string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/demo/simulator", strings.NewReader(body))
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		app.Simulator().ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	type state struct {
		Simulator struct{ Paused bool }
		Worker    string
		Workers   []demo.Worker
	}
	get := func() (s state) {
		w := httptest.NewRecorder()
		app.State("w2", workers).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/demo/state", nil))
		if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || w.Code != http.StatusOK {
			t.Fatalf("state: %d %v: %s", w.Code, err, w.Body)
		}
		return s
	}
	s := get()
	if s.Worker != "w2" || len(s.Workers) != 2 || !s.Simulator.Paused {
		t.Errorf("state: %+v", s)
	}

	for _, wrong := range []struct{ kind, body string }{{"text/plain", `{"paused": true}`}, {"application/json", `{}`}, {"application/json", `{"paused": 1}`}} {
		if code, _ := post(wrong.kind, wrong.body); code < 400 || code > 499 {
			t.Errorf("%s %s: status %d", wrong.kind, wrong.body, code)
		}
	}

	if _, err := pool.Exec(t.Context(), "create table mark as select clock_timestamp() as created_at"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	if code, body := post("application/json; charset=utf-8", `{"paused": false}`); code != http.StatusOK || body != `{"paused":false}` {
		t.Errorf("resume: %d %s", code, body)
	}
	deadline := time.After(20 * time.Second)
	for number(t, pool, "select count(*) from jobs where updated_at > (select max(created_at) from mark)") == 0 {
		select {
		case <-deadline:
			t.Fatal("nothing happened within 20 s after the simulator was resumed")
		case <-time.After(50 * time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
