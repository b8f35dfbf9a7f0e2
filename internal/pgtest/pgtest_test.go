package pgtest_test

import (
	"testing"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/sql"
)

func TestEachTestHasADatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	for range 3 {
		conn := pgtest.Connect(t, pgtest.New(t))
		if _, err := conn.Exec(t.Context(), "create table mine ()"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMigratedHasTheSchema(t *testing.T) {
	t.Parallel()
	for range 3 {
		if err := sql.Check(t.Context(), pgtest.Connect(t, pgtest.Migrated(t))); err != nil {
			t.Error(err)
		}
	}
}
