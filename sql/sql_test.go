package sql_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/internal/postgres"
	"github.com/trumpet-realtime/trumpet/sql"
)

// connect opens a connection that ends with the test.
func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec1(t *testing.T, conn *pgx.Conn, statement string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

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

// schema is what pg_dump says of the whole database, less what differs by chance.
func schema(t *testing.T, url string) string {
	t.Helper()
	bindir, err := postgres.FindBindir()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(bindir, "pg_dump"), "--schema-only", url).Output()
	if err != nil {
		t.Fatalf("pg_dump: %v", err)
	}
	var kept []string
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, `\restrict`) && !strings.HasPrefix(line, `\unrestrict`) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func TestUpDownUp(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	conn := connect(t, url)
	exec1(t, conn, "create table jobs (id int primary key)")
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
	exec1(t, conn, "select trumpet.watch('jobs')")
	exec1(t, conn, "insert into jobs values (1)")

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
	if _, err := sql.Up(t.Context(), connect(t, byUp)); err != nil {
		t.Fatal(err)
	}
	bindir, err := postgres.FindBindir()
	if err != nil {
		t.Fatal(err)
	}
	psql := func(down bool) {
		t.Helper()
		var script bytes.Buffer
		if err := sql.Print(&script, down); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), filepath.Join(bindir, "psql"), "-v", "ON_ERROR_STOP=1", "-q", byPsql)
		cmd.Stdin = &script
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("psql: %v\n%s", err, out)
		}
	}
	empty := schema(t, byPsql)
	psql(false)
	if schema(t, byUp) != schema(t, byPsql) {
		t.Error("print | psql made another schema than up")
	}
	conn := connect(t, byPsql)
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
	conn := connect(t, pgtest.Migrated(t))
	exec1(t, conn, "insert into trumpet.migration (version, name) values (9999, 'of the future')")
	if err := sql.Check(t.Context(), conn); err == nil || !strings.Contains(err.Error(), "9999") {
		t.Errorf("got %v", err)
	}
}

// Nobody needs to be superuser: one role installs and watches, one works, one writes.
func TestRoles(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	admin := connect(t, url)
	suffix := query1[string](t, admin, "select replace(current_database(), '-', '_')")
	quoted := func(role string) string { return pgx.Identifier{role + "_" + suffix}.Sanitize() }
	owner, worker, writer := quoted("owner"), quoted("worker"), quoted("writer")
	for _, role := range []string{owner, worker, writer} {
		exec1(t, admin, "create role "+role)
	}
	t.Cleanup(func() { // roles belong to the server, which other tests share
		ctx := context.Background()
		for _, role := range []string{owner, worker, writer} {
			_, _ = admin.Exec(ctx, "reset role; drop owned by "+role+" cascade; drop role "+role)
		}
	})
	exec1(t, admin, "do $$ begin execute format('grant create on database %I to "+owner+"', current_database()); end $$")
	exec1(t, admin, "create schema app authorization "+owner)

	exec1(t, admin, "set role "+owner)
	if _, err := sql.Up(t.Context(), admin); err != nil {
		t.Fatalf("install without superuser: %v", err)
	}
	exec1(t, admin, "create table app.jobs (id int primary key, status text)")
	exec1(t, admin, "select trumpet.watch('app.jobs')")
	exec1(t, admin, "select trumpet.grant_worker('"+strings.Trim(worker, `"`)+"')")
	exec1(t, admin, "grant usage on schema app to "+writer)
	exec1(t, admin, "grant insert on app.jobs to "+writer)

	exec1(t, admin, "set role "+writer)
	exec1(t, admin, "insert into app.jobs values (1, 'open')")
	for _, forbidden := range []string{
		"select * from trumpet.record", "select * from trumpet.sequence()", "select secret from trumpet.cluster",
		"select trumpet.broadcast('dispatch', '1')", "insert into trumpet.record (topic, op, rows) values ('x', 'broadcast', 1)",
	} {
		var pg *pgconn.PgError
		if _, err := admin.Exec(t.Context(), forbidden); !errors.As(err, &pg) || pg.Code != "42501" {
			t.Errorf("a writer may %s: %v", forbidden, err)
		}
	}

	exec1(t, admin, "set role "+worker)
	if err := sql.Check(t.Context(), admin); err != nil {
		t.Errorf("check as worker: %v", err)
	}
	if n := query1[int64](t, admin, "select sequenced from trumpet.sequence()"); n != 1 {
		t.Errorf("the insert of a role without any right on the schema made %d records", n)
	}
	exec1(t, admin, "select trumpet.broadcast('dispatch', '1')")
	exec1(t, admin, "select * from trumpet.prune('1 day', 1000000)")
	exec1(t, admin, "select trumpet.verify_cluster()")
}
