package pgbus_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// Where commits do not wait for the disk, a crash loses transactions that had committed. It loses none
// that a worker has told of: the sequencer's own commit waits.
func TestACrashLosesNothingThatWasSeen(t *testing.T) {
	t.Parallel()
	server, url := pgtest.StartMigrated(t, map[string]string{"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"})
	conn := pgtest.Connect(t, url)
	bus, r, _ := start(t, url, "w1", nil)
	for n := range 20 {
		pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', to_jsonb($1::int))", n)
	}
	r.waitData(t, "19")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	r.wait(t, "stale", func(r *recorder) bool { return r.stales == 1 })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := pgtest.Connect(t, url)
	pgtest.Exec(t, again, "select trumpet.broadcast('dispatch', '\"after\"')")
	r.waitData(t, `"after"`)
	if s := bus.Status(); s.Rewinds != 0 || len(r.resets) != 1 {
		t.Errorf("%d rewinds and %d resets: what had been seen was lost", s.Rewinds, len(r.resets)-1)
	}
	r.check(t)
}

// The listening session falls silent while a read of the log waits too. The sink hears that it is
// stale though the read has not ended, and everything comes when Postgres answers again.
func TestStaleIsToldWhileAReadWaits(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	_, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '1')")
	last := r.waitData(t, "1")[0].ID

	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "lock table trumpet.log in access exclusive mode"); err != nil {
			return err
		}
		// As from the sequencer, after a step of more than half a megabyte: read up to here.
		other := pgtest.Connect(t, url)
		pgtest.Exec(t, other, "select pg_notify('trumpet', $1)", signed(t, other, fmt.Sprintf("%d\n", last.Position+1)))
		r.wait(t, "stale", func(r *recorder) bool { return r.stales == 1 })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '2')")
	r.waitData(t, "2")
	r.waitLive(t)
	r.check(t)
}

// signed is what trumpet.notify_lines would notify.
func signed(t *testing.T, conn *pgx.Conn, body string) string {
	t.Helper()
	var secret []byte
	if err := conn.QueryRow(t.Context(), "select secret from trumpet.cluster").Scan(&secret); err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(body))
	return hex.EncodeToString(mac.Sum(nil))[:32] + "\n" + body
}

// The newest position that a worker has in common with a log is found below the first difference, and
// what the log does not reach back to does not count.
func TestCommonPosition(t *testing.T) {
	t.Parallel()
	_, conn := database(t)
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', to_jsonb(n)) from generate_series(1, 9) n")
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	pgtest.Exec(t, conn, "delete from trumpet.log where position < 3")
	rows, err := conn.Query(t.Context(), "select position, tag from trumpet.log")
	if err != nil {
		t.Fatal(err)
	}
	tags := map[int64]int32{}
	var position int64
	var tag int32
	if _, err := pgx.ForEachRow(rows, []any{&position, &tag}, func() error {
		tags[position] = tag
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		from, to int64
		another  []int64 // positions that the worker has with other tags
		want     int64   // 0: none
	}{
		"all":                         {3, 9, nil, 9},
		"the worker is ahead":         {3, 12, nil, 9},
		"a tail differs":              {3, 9, []int64{7, 8, 9}, 6},
		"one differs, later ones not": {3, 9, []int64{5}, 4},
		"the log was pruned":          {1, 9, []int64{8}, 7},
		"all differ":                  {3, 5, []int64{3, 4, 5}, 0},
		"all were pruned":             {1, 2, nil, 0},
		"all are ahead":               {10, 12, nil, 0},
	} {
		var positions []int64
		var given []int32
		for p := test.from; p <= test.to; p++ {
			tag := tags[p]
			for _, other := range test.another {
				if p == other {
					tag++
				}
			}
			positions, given = append(positions, p), append(given, tag)
		}
		var got *int64
		if err := conn.QueryRow(t.Context(), "select trumpet.common_position($1, $2)", positions, given).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if test.want == 0 && got != nil || test.want > 0 && (got == nil || *got != test.want) {
			t.Errorf("%s: got %v, want %d", name, got, test.want)
		}
	}
}
