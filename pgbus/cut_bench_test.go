package pgbus_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

// What a cut costs: the whole of it, and how long it keeps the sequencer out, which is from the
// step's beginning to the end of its commit. Once at rest, and once with a record to sequence.
func BenchmarkCut(b *testing.B) {
	for name, statement := range map[string]string{"rest": "select 1", "record": "select trumpet.broadcast('dispatch', '1')"} {
		b.Run("whole/"+name, func(b *testing.B) {
			url := pgtest.Migrated(b)
			writer := pgtest.Connect(b, url)
			r := newRecorder()
			bus, err := pgbus.New(pgbus.Config{ConnString: url}, r)
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() { done <- bus.Run(ctx) }()
			defer func() { cancel(); <-done }()
			for !bus.Status().Connected {
				time.Sleep(time.Millisecond)
			}
			var times []time.Duration
			for b.Loop() {
				pgtest.Exec(b, writer, statement)
				began := time.Now()
				if err := bus.Cut(ctx, func(context.Context, pgx.Tx, trumpet.EventID) error { return nil }); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(began))
			}
			report(b, times)
		})
		b.Run("held/"+name, func(b *testing.B) {
			url := pgtest.Migrated(b)
			writer, maker, reader := pgtest.Connect(b, url), pgtest.Connect(b, url), pgtest.Connect(b, url)
			var times []time.Duration
			for b.Loop() {
				pgtest.Exec(b, writer, statement)
				pgtest.Exec(b, maker, "begin")
				pgtest.Exec(b, reader, "begin isolation level repeatable read read only")
				began := time.Now()
				var snapshot string
				if err := maker.QueryRow(b.Context(), "select snapshot from trumpet.cut()").Scan(&snapshot); err != nil {
					b.Fatal(err)
				}
				pgtest.Exec(b, reader, "set transaction snapshot '"+snapshot+"'")
				pgtest.Exec(b, maker, "commit")
				times = append(times, time.Since(began))
				pgtest.Exec(b, reader, "rollback")
			}
			report(b, times)
		})
	}
}

// BenchmarkReadSnapshot reads 10,000 rows of about 200 bytes.
func BenchmarkReadSnapshot(b *testing.B) {
	for _, columns := range []string{"null", "'{id,a,b,c,d,e}'"} {
		b.Run(columns, func(b *testing.B) {
			url := pgtest.Migrated(b)
			conn := pgtest.Connect(b, url)
			pgtest.Exec(b, conn, `create table jobs (id int primary key, a text, b timestamptz, c numeric, d jsonb, e text);
				insert into jobs select g, md5(g::text), now(), g * 1.5, '{"n": 1}', repeat('x', 60) from generate_series(1, 10000) g;
				select trumpet.watch('jobs', columns => `+columns+`)`)
			bus, err := pgbus.New(pgbus.Config{ConnString: url}, newRecorder())
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() { done <- bus.Run(ctx) }()
			defer func() { cancel(); <-done }()
			for !bus.Status().Connected {
				time.Sleep(time.Millisecond)
			}
			var times []time.Duration
			for b.Loop() {
				began := time.Now()
				if _, err := bus.ReadSnapshot(ctx, []trumpet.SnapshotRequest{{Topic: "jobs"}}, trumpet.SnapshotLimits{}); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(began))
			}
			report(b, times)
		})
	}
}

func report(b *testing.B, times []time.Duration) {
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
}
