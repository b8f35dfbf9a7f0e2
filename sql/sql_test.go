package sql_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/sql"
)

func query1[T any](t *testing.T, conn *pgx.Conn, query string, args ...any) T {
	t.Helper()
	rows, err := conn.Query(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return value
}

// schema describes everything that a database holds outside of Postgres's own schemas.
func schema(t *testing.T, url string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	return query1[string](t, conn, `
		with ours as (select oid, nspname, nspacl from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'),
		rel as (select c.* from pg_class c join ours on ours.oid = c.relnamespace)
		select coalesce(string_agg(line, E'\n' order by line), '') from (
			select concat_ws(' ', 'schema', nspname, nspacl) from ours
			union all select concat_ws(' ', 'relation', oid::regclass, relkind, relacl, reloptions) from rel
			union all select concat_ws(' ', 'column', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod),
				a.attnotnull, a.attidentity, a.attacl, pg_get_expr(d.adbin, d.adrelid))
				from pg_attribute a join rel on rel.oid = a.attrelid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
				where a.attnum > 0 and not a.attisdropped
			union all select concat_ws(' ', 'constraint', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid))
				from pg_constraint k join ours on ours.oid = k.connamespace
			union all select concat_ws(' ', 'index', pg_get_indexdef(i.indexrelid)) from pg_index i join rel on rel.oid = i.indrelid
			union all select concat_ws(' ', 'trigger', pg_get_triggerdef(g.oid)) from pg_trigger g join rel on rel.oid = g.tgrelid where not g.tgisinternal
			union all select concat_ws(' ', 'view', oid::regclass, pg_get_viewdef(oid)) from rel where relkind = 'v'
			union all select concat_ws(' ', 'sequence', q.seqrelid::regclass, q.seqcache, q.seqincrement, q.seqmin) from pg_sequence q join rel on rel.oid = q.seqrelid
			union all select concat_ws(' ', 'function', pg_get_functiondef(p.oid), p.proacl) from pg_proc p join ours on ours.oid = p.pronamespace
			union all select concat_ws(' ', 'type', y.typname, y.typtype) from pg_type y join ours on ours.oid = y.typnamespace
		) all_of_it (line)`)
}

func TestUpDownUp(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	conn := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, "create table jobs (id int primary key)")
	found := schema(t, url)
	if err := sql.Check(t.Context(), conn); !errors.Is(err, sql.ErrSchema) {
		t.Errorf("check before up: %v", err)
	}

	applied, err := sql.Up(t.Context(), conn)
	if err != nil || len(applied) != len(sql.Migrations()) {
		t.Fatalf("up: %d applied, %v", len(applied), err)
	}
	first := schema(t, url)
	if err := sql.Check(t.Context(), conn); err != nil {
		t.Errorf("check after up: %v", err)
	}
	if again, err := sql.Up(t.Context(), conn); err != nil || len(again) != 0 {
		t.Errorf("up again: %d applied, %v", len(again), err)
	}
	pgtest.Exec(t, conn, "select trumpet.watch('jobs')")
	pgtest.Exec(t, conn, "insert into jobs values (1)")

	reverted, err := sql.Down(t.Context(), conn)
	if err != nil || len(reverted) != len(sql.Migrations()) {
		t.Fatalf("down: %d reverted, %v", len(reverted), err)
	}
	if now := schema(t, url); now != found {
		t.Errorf("down left the database other than it was:\n%s", now)
	}
	if again, err := sql.Down(t.Context(), conn); err != nil || len(again) != 0 {
		t.Errorf("down again: %d reverted, %v", len(again), err)
	}
	if _, err := sql.Up(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	if now := schema(t, url); now != first {
		t.Error("the second up made another schema than the first")
	}
}

func TestPrintedSQLMakesTheSameSchema(t *testing.T) {
	t.Parallel()
	byUp, byPsql := pgtest.New(t), pgtest.New(t)
	if _, err := sql.Up(t.Context(), pgtest.Connect(t, byUp)); err != nil {
		t.Fatal(err)
	}
	psql := func(down bool) {
		t.Helper()
		var script bytes.Buffer
		if err := sql.Print(&script, down); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "psql", "-v", "ON_ERROR_STOP=1", "-q", byPsql)
		cmd.Stdin = &script
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("psql (on Debian: apt-get install postgresql-client): %v\n%s", err, out)
		}
	}
	empty := schema(t, byPsql)
	psql(false)
	if schema(t, byUp) != schema(t, byPsql) {
		t.Error("print | psql made another schema than up")
	}
	conn := pgtest.Connect(t, byPsql)
	if err := sql.Check(t.Context(), conn); err != nil {
		t.Errorf("a schema made by psql is not recognised: %v", err)
	}
	list, err := sql.List(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.AppliedAt.IsZero() {
			t.Errorf("migration %d is not noted as applied", s.Version)
		}
	}
	psql(true)
	if schema(t, byPsql) != empty {
		t.Error("print --down | psql left something")
	}
}

func TestANewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, "insert into trumpet.migration (version, name) values (9999, 'of the future')")
	if err := sql.Check(t.Context(), conn); err == nil || !strings.Contains(err.Error(), "9999") {
		t.Errorf("got %v", err)
	}
}

// Nobody needs to be superuser: one role installs and watches, one works, one writes.
func TestRoles(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	admin := pgtest.Connect(t, url)
	suffix := query1[string](t, admin, "select replace(current_database(), '-', '_')")
	quoted := func(role string) string { return pgx.Identifier{role + "_" + suffix}.Sanitize() }
	owner, worker, writer := quoted("owner"), quoted("worker"), quoted("writer")
	for _, role := range []string{owner, worker, writer} {
		pgtest.Exec(t, admin, "create role "+role)
	}
	t.Cleanup(func() { // roles belong to the server, which other tests share
		ctx := context.Background()
		for _, role := range []string{owner, worker, writer} {
			_, _ = admin.Exec(ctx, "reset role; drop owned by "+role+" cascade; drop role "+role)
		}
	})
	pgtest.Exec(t, admin, "do $$ begin execute format('grant create on database %I to "+owner+"', current_database()); end $$")
	pgtest.Exec(t, admin, "create schema app authorization "+owner)

	pgtest.Exec(t, admin, "set role "+owner)
	if _, err := sql.Up(t.Context(), admin); err != nil {
		t.Fatalf("install without superuser: %v", err)
	}
	pgtest.Exec(t, admin, "create table app.jobs (id int primary key, status text)")
	pgtest.Exec(t, admin, "select trumpet.watch('app.jobs')")
	pgtest.Exec(t, admin, "select trumpet.grant_worker('"+strings.Trim(worker, `"`)+"')")
	pgtest.Exec(t, admin, "grant usage on schema app to "+writer)
	pgtest.Exec(t, admin, "grant insert on app.jobs to "+writer)

	pgtest.Exec(t, admin, "set role "+writer)
	pgtest.Exec(t, admin, "insert into app.jobs values (1, 'open')")
	for _, forbidden := range []string{
		"select * from trumpet.record", "select * from trumpet.sequence()", "select secret from trumpet.cluster",
		"select trumpet.broadcast('dispatch', '1')", "insert into trumpet.record (topic, op, rows) values ('x', 'broadcast', 1)",
	} {
		var pg *pgconn.PgError
		if _, err := admin.Exec(t.Context(), forbidden); !errors.As(err, &pg) || pg.Code != "42501" {
			t.Errorf("a writer may %s: %v", forbidden, err)
		}
	}

	pgtest.Exec(t, admin, "set role "+worker)
	if err := sql.Check(t.Context(), admin); err != nil {
		t.Errorf("check as worker: %v", err)
	}
	if n := query1[int64](t, admin, "select sequenced from trumpet.sequence()"); n != 1 {
		t.Errorf("the insert of a role without any right on the schema made %d records", n)
	}
	pgtest.Exec(t, admin, "select trumpet.broadcast('dispatch', '1')")
	pgtest.Exec(t, admin, "select * from trumpet.prune('1 day', 1000000)")
	pgtest.Exec(t, admin, "select trumpet.verify_cluster()")
}

// Each migration's down leaves the database as the migration before it made it.
func TestEachMigrationIsTakenBackAlone(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	conn := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, "create table jobs (id int primary key)")
	all := sql.Migrations()
	var before []string
	for _, m := range all {
		before = append(before, schema(t, url))
		pgtest.Exec(t, conn, m.Up)
	}
	for i := len(all) - 1; i >= 0; i-- {
		pgtest.Exec(t, conn, all[i].Down)
		if now := schema(t, url); now != before[i] {
			t.Errorf("down of migration %d left\n%s\nwant\n%s", all[i].Version, now, before[i])
		}
	}
}

// Whoever could run workers before an upgrade can do so after it.
func TestAnUpgradeKeepsWorkersRights(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	conn := pgtest.Connect(t, url)
	role := "upgraded_" + query1[string](t, conn, "select current_database()")
	pgtest.Exec(t, conn, "create role "+role)
	t.Cleanup(func() { // roles belong to the server, which other tests share
		_, _ = conn.Exec(context.Background(), "reset role; drop owned by "+role+"; drop role "+role)
	})
	for _, m := range sql.Migrations()[:2] {
		pgtest.Exec(t, conn, m.Up)
	}
	pgtest.Exec(t, conn, "select trumpet.grant_worker('"+role+"')")
	if _, err := sql.Up(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, conn, "set role "+role)
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	pgtest.Exec(t, conn, "select trumpet.cut()")
	pgtest.Exec(t, conn, "select trumpet.watched_columns('jobs')")
	var pg *pgconn.PgError
	if _, err := conn.Exec(t.Context(), "select trumpet.step(true, null)"); !errors.As(err, &pg) || pg.Code != "42501" {
		t.Errorf("a worker may call trumpet.step: %v", err)
	}
}
