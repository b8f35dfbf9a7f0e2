package pgtest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/sql"
)

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(t.Context()) })
	return conn
}

func TestEachTestHasADatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	for range 3 {
		conn := connect(t, pgtest.New(t))
		if _, err := conn.Exec(t.Context(), "create table mine ()"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMigratedHasTheSchema(t *testing.T) {
	t.Parallel()
	for range 3 {
		if err := sql.Check(t.Context(), connect(t, pgtest.Migrated(t))); err != nil {
			t.Error(err)
		}
	}
}
