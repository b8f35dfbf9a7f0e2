package sql_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/sql"
)

func TestStatementsAreQuoted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		statement interface{ String() string }
		want      string
	}{
		{sql.Watch{Table: "jobs"}, `select trumpet.watch('jobs')`},
		{
			sql.Watch{Table: `app."Odd Jobs"`, Columns: []string{"id", "it's"}, Key: []string{"id"}, Topic: "odd", MaxRows: 5},
			`select trumpet.watch('app."Odd Jobs"', columns => array['id', 'it''s'], key => array['id'], topic => 'odd', max_rows => 5)`,
		},
		{sql.Watch{Table: "log", Key: []string{}}, `select trumpet.watch('log', key => '{}')`},
		{sql.Watch{Table: `back\slash'`}, `select trumpet.watch(E'back\\slash''')`},
		{sql.Unwatch{Table: "jobs'); drop table jobs; --"}, `select trumpet.unwatch('jobs''); drop table jobs; --')`},
	} {
		if got := test.statement.String(); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

func TestWatchTakesAnyName(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, pgtest.Migrated(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, setting := range []string{"on", "off"} {
		if _, err := conn.Exec(ctx, `set standard_conforming_strings = `+setting+`; set client_min_messages = error`); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"jobs", "Odd Jobs", `back\slash`, `it's`, `q"uote`} {
			table := pgx.Identifier{name}.Sanitize()
			if _, err := conn.Exec(ctx, "drop table if exists "+table+"; create table "+table+` (id int primary key, "it's" int)`); err != nil {
				t.Fatal(err)
			}
			topic, err := sql.Watch{Table: table, Columns: []string{"it's"}, Key: []string{"id"}, Topic: `t\'"`}.Apply(ctx, conn)
			if err != nil || topic != `t\'"` {
				t.Errorf("watch %s: topic %q, %v", table, topic, err)
			}
			if err := (sql.Unwatch{Table: table}).Apply(ctx, conn); err != nil {
				t.Error(err)
			}
			if err := (sql.Unwatch{Table: table}).Apply(ctx, conn); err == nil {
				t.Errorf("unwatch %s twice: no error", table)
			}
		}
	}
	if _, err := conn.Exec(ctx, `create role "Worker of test '\"`); err != nil {
		t.Fatal(err)
	}
	if err := sql.GrantWorker(ctx, conn, `Worker of test '\`); err != nil {
		t.Error(err)
	}
	if _, err := conn.Exec(ctx, `drop owned by "Worker of test '\"; drop role "Worker of test '\"`); err != nil {
		t.Fatal(err)
	}
}
