package pgbus_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// walDatabase is a database on a server of its own: a slot waits for all writers of a server.
func walDatabase(t *testing.T) (url string, conn *pgx.Conn) {
	t.Helper()
	_, url = pgtest.StartMigrated(t, nil)
	return url, pgtest.Connect(t, url)
}

func TestWALEveryKindOfEvent(t *testing.T) {
	t.Parallel()
	url, conn := walDatabase(t)
	pgtest.Exec(t, conn, `create table jobs (id int primary key, title text, n numeric);
		select trumpet.watch('jobs', capture => 'wal')`)
	bus, r, _ := start(t, url, "w1", nil)
	r.waitLive(t)
	waitUntil(t, "a slot", func() bool { return bus.Status().WALSlot != "" })
	pgtest.Exec(t, conn, `insert into jobs values (1, 'a', 1.50), (2, 'b', null)`)
	pgtest.Exec(t, conn, `update jobs set title = 'c' where id = 1`)
	pgtest.Exec(t, conn, `delete from jobs where id = 2`)
	pgtest.Exec(t, conn, `truncate jobs`)
	pgtest.Exec(t, conn, `select trumpet.broadcast('dispatch', '"end"')`)
	r.waitData(t, `"end"`)
	for _, line := range describe(r.events) {
		t.Log(line)
	}
}
