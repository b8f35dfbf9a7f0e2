package sql_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// records returns what was recorded since the last call, one line each:
// op [statement] rows [before] [after].
func records(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), `with gone as (delete from trumpet.record returning *)
		select op || coalesce(' ' || statement, '') || ' ' || rows
		    || coalesce(' ' || translate(before::text, E'\n ', ''), '') || coalesce(' ' || translate(after::text, E'\n ', ''), '')
		  from gone order by id`)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func expect(t *testing.T, conn *pgx.Conn, what string, want ...string) {
	t.Helper()
	got := records(t, conn)
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s: recorded\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestCaptureOfStatements(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, "create table jobs (id int primary key, status text)")
	pgtest.Exec(t, conn, "select trumpet.watch('jobs', max_rows => 3)")

	for _, test := range []struct {
		statement string
		want      []string
	}{
		{"insert into jobs values (1, 'open'), (2, 'open')", []string{`insert 2 [{"id":1,"status":"open"},{"id":2,"status":"open"}]`}},
		{"insert into jobs select 9, '' where false", nil},
		{"update jobs set status = 'open'", nil},
		{"update jobs set status = 'done' where id = 1", []string{`update 1 [{"id":1,"status":"open"}] [{"id":1,"status":"done"}]`}},
		{"update jobs set id = 5 where id = 2", []string{`update 1 [{"id":2,"status":"open"}] [{"id":5,"status":"open"}]`}},
		{"insert into jobs values (1, 'x'), (7, 'new') on conflict (id) do update set status = excluded.status", []string{
			`insert 1 [{"id":7,"status":"new"}]`, `update 1 [{"id":1,"status":"done"}] [{"id":1,"status":"x"}]`,
		}},
		{"insert into jobs values (1, 'y') on conflict do nothing", nil},
		{"with moved as (delete from jobs where id = 5 returning *) insert into jobs select 6, status from moved", []string{
			`delete 1 [{"id":5,"status":"open"}]`, `insert 1 [{"id":6,"status":"open"}]`,
		}},
		{"insert into jobs select g, 'bulk' from generate_series(10, 13) g", []string{"bulk insert 4"}},
		{"update jobs set status = 'b'", []string{"bulk update 7"}},
		{"update jobs set status = 'b'", []string{"bulk update 7"}}, // nobody compares that many rows
		{"delete from jobs where id > 5", []string{"bulk delete 6"}},
		{"truncate jobs", []string{"truncate 0"}},
		{"begin; insert into jobs values (1, null); savepoint s; insert into jobs values (2, null); rollback to s; insert into jobs values (3, null); commit",
			[]string{`insert 1 [{"id":1,"status":null}]`, `insert 1 [{"id":3,"status":null}]`}},
		{"begin; insert into jobs values (4, null); rollback", nil},
	} {
		pgtest.Exec(t, conn, test.statement)
		got := records(t, conn)
		// ON CONFLICT and data-modifying WITH fire their statements' triggers in an order that
		// Postgres decides.
		if len(got) == 2 && len(test.want) == 2 && got[0] == test.want[1] {
			got[0], got[1] = got[1], got[0]
		}
		if strings.Join(got, "\n") != strings.Join(test.want, "\n") {
			t.Errorf("%s: recorded %q, want %q", test.statement, got, test.want)
		}
	}
}

// One transaction, one wake-up: its first record, whatever savepoints do.
func TestFirstRecordOfATransaction(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, "create table jobs (id int primary key)")
	pgtest.Exec(t, conn, "select trumpet.watch('jobs')")
	for _, test := range []struct{ statements, want string }{
		{"begin; insert into jobs values (1); insert into jobs values (2); commit", "true,false"},
		{"begin; savepoint s; insert into jobs values (3); rollback to s; insert into jobs values (4); insert into jobs values (5); commit", "true,false"},
		{"insert into jobs values (6)", "true"},
		{"begin; select trumpet.broadcast('a', '1'); insert into jobs values (7); commit", "true,false"},
	} {
		pgtest.Exec(t, conn, test.statements)
		got := query1[string](t, conn, "with gone as (delete from trumpet.record returning *) select string_agg(first::text, ',' order by id) from gone")
		if got != test.want {
			t.Errorf("%s: first is %s, want %s", test.statements, got, test.want)
		}
	}
}

func TestColumnsAndKey(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, `create table jobs (a int, secret text, "odd ""name" text, primary key ("odd ""name", a))`)
	pgtest.Exec(t, conn, `select trumpet.watch('jobs', columns => '{a}')`)
	pgtest.Exec(t, conn, `insert into jobs values (1, 'hidden', 'x')`)
	expect(t, conn, "insert", `insert 1 [{"a":1,"odd\"name":"x"}]`) // translate() took the space
	pgtest.Exec(t, conn, `update jobs set secret = 'other'`)
	expect(t, conn, "an update of a column that is not watched")

	// The writer must not notice what happens to the table's columns.
	pgtest.Exec(t, conn, "alter table jobs drop constraint jobs_pkey; alter table jobs rename a to b")
	pgtest.Exec(t, conn, "insert into jobs values (2, 'hidden', 'y')")
	expect(t, conn, "a renamed column", `insert 1 [{"odd\"name":"y"}]`)
	pgtest.Exec(t, conn, `alter table jobs drop column "odd ""name"; alter table jobs add column a text`)
	pgtest.Exec(t, conn, "insert into jobs values (3, 'hidden', 'again')")
	expect(t, conn, "a column that came back", `insert 1 [{"a":"again"}]`)

	pgtest.Exec(t, conn, "create table keyless (a int)")
	if _, err := conn.Exec(t.Context(), "select trumpet.watch('keyless')"); err == nil || !strings.Contains(err.Error(), "no primary key") {
		t.Errorf("watching a table without a key: %v", err)
	}
	pgtest.Exec(t, conn, "select trumpet.watch('keyless', key => '{}')")
	pgtest.Exec(t, conn, "insert into keyless values (1)")
	expect(t, conn, "no key", `insert 1 [{"a":1}]`)
}

// What the session that writes is set to must not show.
func TestRowsLookTheSameWhoeverWrites(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, `create table things (id int primary key, at timestamptz, span interval, bytes bytea, float float8, number numeric, doc json)`)
	pgtest.Exec(t, conn, "select trumpet.watch('things')")
	pgtest.Exec(t, conn, "create schema evil; create function evil.now() returns timestamptz language sql as 'select null::timestamptz'")
	pgtest.Exec(t, conn, `set timezone = 'Asia/Kathmandu'; set datestyle = 'German'; set intervalstyle = 'iso_8601';
		set bytea_output = 'escape'; set extra_float_digits = -5; set search_path = evil, pg_catalog, public`)
	pgtest.Exec(t, conn, `insert into things values (1, '2026-11-23 12:00:00+00', '1 day 02:00', '\x00ff', 0.1234567890123, 'NaN', '{"a": "\u0000"}')`)
	pgtest.Exec(t, conn, "reset all")
	expect(t, conn, "insert", `insert 1 [{"id":1,"at":"2026-11-23T12:00:00+00:00","span":"1day02:00:00","bytes":"\\x00ff","float":0.1234567890123,"number":"NaN","doc":{"a":"\u0000"}}]`)
}

// Row values are what to_jsonb(row) gives, as JSON values.
func TestRowsAreWhatToJsonbGives(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, `create type mood as enum ('fine'); create type pair as (a int, b text); create domain short as varchar(9);
		create table things (id int primary key, m mood, p pair, s short, r int4range, a int[][], u uuid, j jsonb, d date, t time, b bool, f float8, n numeric)`)
	pgtest.Exec(t, conn, "select trumpet.watch('things')")
	pgtest.Exec(t, conn, `insert into things values (1, 'fine', '(1,"x y")', 'short', '[1,5)', '{{1,2},{3,null}}', gen_random_uuid(),
		'{"k": [1.0, {"é": "\"\\\n"}]}', 'infinity', '12:00', true, 1e100, 123456789012345678901234567890.10)`)
	recorded := query1[string](t, conn, "select after->>0 from trumpet.record")
	wanted := query1[string](t, conn, "select to_jsonb(things)::text from things")
	equal := query1[bool](t, conn, "select $1::text::jsonb = $2::text::jsonb", recorded, wanted)
	if !equal || !json.Valid([]byte(recorded)) {
		t.Errorf("recorded\n%s\nwant\n%s", recorded, wanted)
	}
}

func TestLargeRows(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, "create table docs (id int primary key, body text)")
	pgtest.Exec(t, conn, "select trumpet.watch('docs')")
	size := func(n int) string {
		return fmt.Sprintf("(select string_agg(md5(g::text), '') from generate_series(1, %d) g)", n/32)
	}
	pgtest.Exec(t, conn, "insert into docs values (1, "+size(1<<20)+")")
	if got := query1[int](t, conn, "select length(after->0->>'body') from trumpet.record where op = 'insert'"); got != 1<<20 {
		t.Errorf("a row of 1 MB was recorded with %d characters", got)
	}
	pgtest.Exec(t, conn, "delete from trumpet.record")
	pgtest.Exec(t, conn, "update docs set body = body || 'x'")
	if got := query1[int](t, conn, "select length(after->0->>'body') - length(before->0->>'body') from trumpet.record where op = 'update'"); got != 1 {
		t.Errorf("an update of a row of 1 MB: the row grew by %d", got)
	}
	pgtest.Exec(t, conn, "delete from trumpet.record")
	pgtest.Exec(t, conn, "insert into docs values (2, "+size(9<<20)+")")
	expect(t, conn, "a row of 9 MB, above max_bytes", "bulk insert 1")
	// Small as stored, because it compresses well, and large as JSON.
	pgtest.Exec(t, conn, "insert into docs select g, repeat('x', 30000000) from generate_series(3, 4) g")
	expect(t, conn, "two rows of 30 MB of the same letter", "bulk insert 2")
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, `create table visits (id int, day date, note text, primary key (id, day)) partition by range (day);
		create table visits_old partition of visits for values from (minvalue) to ('2026-01-01');
		create table visits_new partition of visits for values from ('2026-01-01') to (maxvalue) partition by list (id);
		create table visits_new_rest partition of visits_new default`)
	pgtest.Exec(t, conn, "select trumpet.watch('visits')")
	pgtest.Exec(t, conn, "insert into visits values (1, '2025-05-05', 'a'), (2, '2026-05-05', 'b')")
	expect(t, conn, "insert through the root", `insert 2 [{"id":1,"day":"2025-05-05","note":"a"},{"id":2,"day":"2026-05-05","note":"b"}]`)
	pgtest.Exec(t, conn, "insert into visits_old values (3, '2025-06-06', 'c')")
	expect(t, conn, "insert into a leaf", `insert 1 [{"id":3,"day":"2025-06-06","note":"c"}]`)
	pgtest.Exec(t, conn, "insert into visits_new values (4, '2026-06-06', 'd')")
	expect(t, conn, "insert into a partition with partitions", `insert 1 [{"id":4,"day":"2026-06-06","note":"d"}]`)
	pgtest.Exec(t, conn, "update visits set day = '2026-07-07' where id = 1")
	expect(t, conn, "a row that moves to another partition", `update 1 [{"id":1,"day":"2025-05-05","note":"a"}] [{"id":1,"day":"2026-07-07","note":"a"}]`)
	pgtest.Exec(t, conn, "truncate visits_old")
	expect(t, conn, "truncate of a leaf", "bulk truncate 0")
	pgtest.Exec(t, conn, "truncate visits")
	expect(t, conn, "truncate of the root", "truncate 0")
	pgtest.Exec(t, conn, "begin; truncate visits; insert into visits values (5, '2025-01-01', ''); truncate visits_old; commit")
	expect(t, conn, "both in one transaction", "truncate 0", `insert 1 [{"id":5,"day":"2025-01-01","note":""}]`, "bulk truncate 0")

	pgtest.Exec(t, conn, "create table visits_older partition of visits_new for values in (77)")
	pgtest.Exec(t, conn, "select trumpet.watch('visits')") // takes the new one in
	pgtest.Exec(t, conn, "insert into visits_older values (77, '2026-02-02', '')")
	expect(t, conn, "insert into a partition that came later", `insert 1 [{"id":77,"day":"2026-02-02","note":""}]`)
	pgtest.Exec(t, conn, "alter table visits detach partition visits_old")
	pgtest.Exec(t, conn, "select trumpet.unwatch('visits')")
	if n := query1[int64](t, conn, "select count(*) from pg_trigger where tgname like 'trumpet%'"); n != 0 {
		t.Errorf("unwatch left %d triggers", n)
	}
}

func TestWatchRefuses(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, `create table jobs (id int primary key); create view v as select 1 as id; create temp table tmp (id int primary key);
		create table "two words" (id int primary key); create schema other; create table other.jobs (id int primary key);
		create table parted (id int primary key) partition by list (id); create table part partition of parted default`)
	pgtest.Exec(t, conn, "select trumpet.watch('jobs')")
	for statement, want := range map[string]string{
		"select trumpet.watch(null)":                                           "needs a table",
		"select trumpet.watch('v')":                                            "cannot be watched",
		"select trumpet.watch('tmp')":                                          "cannot be watched",
		"select trumpet.watch('trumpet.record')":                               "cannot be watched",
		"select trumpet.watch('part')":                                         "is a partition",
		"select trumpet.watch('missing')":                                      "does not exist",
		"select trumpet.watch('jobs', columns => '{nope}')":                    "no column nope",
		"select trumpet.watch('jobs', columns => '{}')":                        "columns is empty",
		"select trumpet.watch('jobs', key => '{id,x}')":                        "no column x",
		"select trumpet.watch('jobs', max_rows => 0)":                          "max_rows is from 1",
		"select trumpet.watch('jobs', max_bytes => 1)":                         "max_bytes is from 1024",
		`select trumpet.watch('"two words"')`:                                  "not a valid topic",
		"select trumpet.watch('other.jobs', topic => 'jobs')":                  "is taken by",
		"select trumpet.unwatch('other.jobs')":                                 "is not watched",
		"select trumpet.broadcast('', '1')":                                    "not a valid topic",
		"select trumpet.broadcast('a b', '1')":                                 "not a valid topic",
		"select trumpet.broadcast('a', null)":                                  "needs data",
		"select trumpet.broadcast('a', to_jsonb(repeat('x',1048576)))":         "at most 1048576 bytes",
		"begin; select trumpet.broadcast('a', '1'); select trumpet.sequence()": "must be alone",
		"begin isolation level repeatable read; select trumpet.sequence()":     "READ COMMITTED",
		"select trumpet.prune(null, 1)":                                        "needs a keep",
	} {
		_, err := conn.Exec(t.Context(), statement)
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || !strings.Contains(pg.Message, want) {
			t.Errorf("%s: %v, want …%s…", statement, err, want)
		}
		pgtest.Exec(t, conn, "rollback")
	}
	if topic := query1[string](t, conn, "select trumpet.watch('other.jobs')"); topic != "other.jobs" {
		t.Errorf("topic of a table in another schema: %q", topic)
	}
	pgtest.Exec(t, conn, `select trumpet.watch('"two words"', topic => 'zwei-wörter')`)
	got := query1[string](t, conn, "select string_agg(topic, ' ' order by topic) from trumpet.watched")
	if got != "jobs other.jobs zwei-wörter" {
		t.Errorf("watched: %s", got)
	}
}

// Some columns are watched, and a json value that Postgres stores but cannot take apart is written, to
// one that is not watched, too: the statement goes through.
func TestJSONThatCannotBeTakenApart(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, "create table jobs (id int primary key, doc json); select trumpet.watch('jobs', columns => '{id}')")
	for _, doc := range []string{`{"a":"\u0000"}`, `["\ud83d"]`} {
		pgtest.Exec(t, conn, "insert into jobs values (1, $1::text::json)", doc)
		pgtest.Exec(t, conn, "update jobs set id = 2")
		pgtest.Exec(t, conn, "delete from jobs")
		expect(t, conn, doc, "insert 1", "bulk update 1", "delete 1")
	}
}
