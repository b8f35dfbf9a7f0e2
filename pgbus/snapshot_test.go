package pgbus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

// errNoTable: the snapshot leaves the topic out.
var errNoTable = errors.New("no table")

func readAll(t *testing.T, bus *pgbus.Bus, topic string, matchers ...*trumpet.Matcher) ([]string, error) {
	t.Helper()
	s, err := bus.ReadSnapshot(t.Context(), []trumpet.SnapshotRequest{{Topic: topic, Matchers: matchers}}, trumpet.SnapshotLimits{})
	if err != nil {
		return nil, err
	}
	if len(s.Topics) == 0 {
		return nil, errNoTable
	}
	var rows []string
	for _, page := range s.Topics[0].Pages {
		for _, row := range page {
			rows = append(rows, string(row))
		}
	}
	return rows, nil
}

// A row in a snapshot is what its event showed, byte for byte: whatever its types, whoever wrote it,
// with all columns and with some, in partitioned tables and out of them.
func TestSnapshotRowsAreThoseOfEvents(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	pgtest.Exec(t, conn, `create schema app; create type app.mood as enum ('sad', 'glad'); create domain app.cents as numeric(12,2) check (value >= 0);
		create type app.pair as (at timestamptz, span tstzrange)`)
	const columns = `(id int, r text, "odd ""name" text, gone int, at timestamptz, local timestamp, day date, span interval, bytes bytea,
		f8 float8, f4 float4, n numeric, cents app.cents, mood app.mood, doc json, docb jsonb, list timestamptz[], during tstzrange, days daterange,
		pair app.pair, ident uuid, fixed char(5), bits bit(3), net inet, class regclass, tsv tsvector, twice int generated always as (id * 2) stored, secret text, primary key (id))`
	pgtest.Exec(t, conn, `create table app.plain `+columns+`; create table app.some `+columns+`; create table app.parts `+columns+` partition by range (id);
		create table app.parts_1 partition of app.parts for values from (0) to (2); create table app.parts_2 partition of app.parts for values from (2) to (100)`)
	pgtest.Exec(t, conn, `alter table app.plain drop column gone; alter table app.some drop column gone; alter table app.parts drop column gone`)
	pgtest.Exec(t, conn, `select trumpet.watch('app.plain'), trumpet.watch('app.parts'), trumpet.watch('app.some', columns =>
		'{r,at,doc,during,n,mood,twice,"odd \"name",bytes}')`)
	bus, r, _ := start(t, url, "w1", nil)
	topics := []string{"app.plain", "app.some", "app.parts"}
	writers := []string{
		"", "set timezone = 'Asia/Kathmandu'; set datestyle = 'German'; set intervalstyle = 'iso_8601'; set bytea_output = 'escape'; set extra_float_digits = -5; set search_path = app",
	}
	id := 0
	for _, settings := range writers {
		writer := pgtest.Connect(t, url)
		pgtest.Exec(t, writer, settings)
		for _, values := range []string{
			`null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null`,
			`E'tab\t\r\n"é😀\\', 'x', '2026-11-26 12:34:56.789+05:45', '2026-11-26 01:02:03', 'infinity', '1 year 2 days 03:04:05.6', '\x00ff'::bytea, 0.1::float8 + 0.2, 'NaN', 1.500,
				12.5, 'glad', E'{"a" :\t[1,\r\n 2], "a": "\\u0000"}', '{"b": 1, "a": 2}', '{"2026-11-26 12:00+00",NULL}', '[2026-11-26 12:00+00,2026-11-27)', '[2026-11-26,infinity)',
				row('2026-11-26 12:00+00', '[2026-11-26 12:00+00,)'), '5F3A09C1-8B1E-4C57-9D53-0F6C4F0E7A11', 'ab', '101', '10.0.0.0/8', 'pg_class', 'a fat cat'`,
			`repeat('x', 3000), '', '-infinity', '0044-03-15 10:00:00 BC', '0044-03-15 BC', '-1 day', '', 1e300, 1e-30, 'NaN', 0, 'sad', '[]', '[]', '{}', 'empty', 'empty', null, null, '', '000', '::1', 'pg_type', ''`,
		} {
			id++
			for _, table := range topics {
				values := values
				if table == "app.some" { // trumpet.pick_columns() does not take it
					values = strings.Replace(values, `\\u0000`, `\\u0001`, 1)
				}
				pgtest.Exec(t, writer, fmt.Sprintf(`insert into %s (id, r, "odd ""name", at, local, day, span, bytes, f8, f4, n, cents, mood, doc, docb, list, during, days, pair, ident, fixed, bits, net, class, tsv)
					values (%d, %s)`, table, id, values))
			}
		}
	}
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	events := r.waitData(t, `"end"`)
	for _, topic := range topics {
		var want []string
		for _, e := range events {
			if e.Topic == topic {
				want = append(want, string(e.New))
			}
		}
		got, err := readAll(t, bus, topic)
		if err != nil {
			t.Fatal(err)
		}
		if len(want) != 6 {
			t.Fatalf("%s: %d events", topic, len(want))
		}
		for i := range max(len(got), len(want)) {
			if i >= len(got) || got[i] != want[i] {
				t.Errorf("%s: row %d is\n%.2000s\nits event showed\n%.2000s", topic, i, slices.Concat(got, make([]string, 6))[i], want[i])
			}
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, _, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, `create schema app; create type app.mood as enum ('sad', 'glad'); create domain app.cents as numeric(12,2); create domain app.price as app.cents;
		create table app.visits (note text, id int, mood app.mood, price app.price, fixed char(4), at timestamptz, doc json, tags text[], secret text,
			twice int generated always as (id * 2) stored, primary key (id, fixed));
		select trumpet.watch('app.visits', columns => '{note,mood,price,at,doc,tags,twice}')`)
	table, ok, err := bus.Table(t.Context(), "app.visits")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	var got []string
	for _, c := range table.Columns {
		got = append(got, fmt.Sprintf("%s %s %d %q", c.Name, c.Type, c.Kind, c.Labels))
	}
	want := []string{
		fmt.Sprintf("note text %d []", trumpet.KindText), fmt.Sprintf("id integer %d []", trumpet.KindNumber), fmt.Sprintf(`mood app.mood %d ["sad" "glad"]`, trumpet.KindEnum),
		fmt.Sprintf("price numeric %d []", trumpet.KindNumber), fmt.Sprintf("fixed bpchar %d []", trumpet.KindChar), fmt.Sprintf("at timestamp with time zone %d []", trumpet.KindTimestampTZ),
		fmt.Sprintf("doc json %d []", trumpet.KindOther), fmt.Sprintf("tags text[] %d []", trumpet.KindOther), fmt.Sprintf("twice integer %d []", trumpet.KindNumber),
	}
	if !slices.Equal(got, want) || table.Schema != "app" || table.Name != "visits" || table.Topic != "app.visits" || !slices.Equal(table.Key, []string{"id", "fixed"}) {
		t.Errorf("got %+v\nwant columns %q", table, want)
	}
	for _, topic := range []string{"visits", "dispatch", "", "no\x01thing"} {
		if _, ok, err := bus.Table(t.Context(), topic); ok || err != nil {
			t.Errorf("topic %q: %v, %v", topic, ok, err)
		}
	}
	// A changed schema shows within a second.
	pgtest.Exec(t, conn, "alter table app.visits rename column note to remark; alter table app.visits drop constraint visits_pkey; alter table app.visits drop column fixed")
	waitUntil(t, "the change to show", func() bool {
		table, _, err := bus.Table(t.Context(), "app.visits")
		return err == nil && table.Columns[0].Name == "id" && slices.Equal(table.Key, []string{"id"})
	})
}

func TestSnapshotBounds(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, _, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs (id, note) select g, repeat('x', 1000) from generate_series(1, 1000) g")
	read := func(rows int, bytes int64, matchers ...*trumpet.Matcher) (int, int, error) {
		s, err := bus.ReadSnapshot(t.Context(), []trumpet.SnapshotRequest{{Topic: "jobs", Matchers: matchers}}, trumpet.SnapshotLimits{Rows: rows, Bytes: bytes})
		if err != nil {
			return 0, 0, err
		}
		count := 0
		for _, page := range s.Topics[0].Pages {
			if len(page) == 0 || len(page) > 500 {
				t.Errorf("a page of %d rows", len(page))
			}
			count += len(page)
		}
		return count, len(s.Topics[0].Pages), nil
	}
	if rows, pages, err := read(1000, 0); rows != 1000 || pages < 4 || err != nil {
		t.Errorf("%d rows in %d pages, %v", rows, pages, err)
	}
	for range 6 { // more often than there are sessions
		for _, test := range []struct {
			rows  int
			bytes int64
		}{{999, 0}, {0, 500_000}, {0, 100}} {
			if _, _, err := read(test.rows, test.bytes); !errors.Is(err, trumpet.ErrTooLarge) || !strings.Contains(err.Error(), "filter") {
				t.Errorf("%+v: %v", test, err)
			}
		}
	}
	if rows, _, err := read(10, 50_000, matcher(t, bus, "jobs?id=lte.7"), matcher(t, bus, "jobs?id=in.(5,100,200)"), matcher(t, bus, "jobs?id=eq.5000")); rows != 9 || err != nil {
		t.Errorf("with filters: %d rows, %v", rows, err)
	}
	if rows, _, err := read(1000, 0, matcher(t, bus, "jobs?id=eq.1"), matcher(t, bus, "jobs")); rows != 1000 || err != nil {
		t.Errorf("with all among them: %d rows, %v", rows, err)
	}
	if _, err := readAll(t, bus, "dispatch"); !errors.Is(err, errNoTable) {
		t.Errorf("no table: %v", err)
	}
	s, err := bus.ReadSnapshot(t.Context(), nil, trumpet.SnapshotLimits{})
	if err != nil || len(s.Topics) != 0 || s.At.IsZero() {
		t.Errorf("no topics: %+v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bus.ReadSnapshot(ctx, nil, trumpet.SnapshotLimits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// The worker's role needs a right on what it reads, and says which.
func TestSnapshotNeedsRights(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	var suffix string
	if err := conn.QueryRow(t.Context(), "select current_database()").Scan(&suffix); err != nil {
		t.Fatal(err)
	}
	role := "worker_" + suffix
	pgtest.Exec(t, conn, "create role "+role+" login password 'secret'")
	t.Cleanup(func() { // roles belong to the server, which other tests share
		_, _ = conn.Exec(context.Background(), "drop owned by "+role+"; drop role "+role)
	})
	pgtest.Exec(t, conn, `create schema app; create table app.things (id int primary key, note text, secret text); insert into app.things values (1, 'n', 's');
		select trumpet.watch('app.things', columns => '{note}'); insert into jobs (id) values (1), (2)`)
	pgtest.Exec(t, conn, "select trumpet.grant_worker('"+role+"')")
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	bus, _, _ := start(t, fmt.Sprintf("host=%s port=%d dbname=%s user=%s password=secret", config.Host, config.Port, config.Database, role), "w1", nil)
	for topic, grant := range map[string]string{
		"jobs":       "grant select on public.jobs to " + role,
		"app.things": "grant usage on schema app to " + role + "; grant select (id, note) on app.things to " + role,
	} {
		_, err := readAll(t, bus, topic)
		if !errors.Is(err, trumpet.ErrNotReadable) || !strings.HasSuffix(err.Error(), ": "+grant) {
			t.Fatalf("%s: %v", topic, err)
		}
		pgtest.Exec(t, conn, grant)
		if rows, err := readAll(t, bus, topic); err != nil || len(rows) == 0 {
			t.Errorf("%s, granted: %q, %v", topic, rows, err)
		}
		if _, ok, err := bus.Table(t.Context(), topic); !ok || err != nil {
			t.Errorf("%s: %v, %v", topic, ok, err)
		}
	}
	// Rows that a policy hides are in events all the same: no snapshot rather than a part of one.
	pgtest.Exec(t, conn, "alter table jobs enable row level security; create policy first_only on jobs for select using (id = 1)")
	if rows, err := readAll(t, bus, "jobs"); !errors.Is(err, trumpet.ErrNotReadable) || !strings.Contains(err.Error(), "BYPASSRLS") {
		t.Errorf("row-level security: %q, %v", rows, err)
	}
}

// The table changes after a filter was fitted to it.
func TestSnapshotAfterASchemaChange(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, _, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into jobs (id, note) values (1, 'a'), (2, 'b')")
	m := matcher(t, bus, "jobs?note=eq.b")
	pgtest.Exec(t, conn, "alter table jobs add column added int default 7, alter column version type text")
	if rows, err := readAll(t, bus, "jobs", m); err != nil || !slices.Equal(rows, []string{`{"id":2,"version":"0","note":"b","added":7}`}) {
		t.Errorf("a column more: %q, %v", rows, err)
	}
	pgtest.Exec(t, conn, "alter table jobs rename column note to remark")
	if rows, err := readAll(t, bus, "jobs", m); !errors.Is(err, trumpet.ErrFilter) || !strings.Contains(err.Error(), "remark") {
		t.Errorf("the column renamed: %q, %v", rows, err)
	}
	pgtest.Exec(t, conn, "drop table jobs")
	if rows, err := readAll(t, bus, "jobs"); !errors.Is(err, errNoTable) {
		t.Errorf("the table dropped: %q, %v", rows, err)
	}
	if rows, err := readAll(t, bus, "jobs", m); !errors.Is(err, trumpet.ErrFilter) {
		t.Errorf("the table dropped, filtered: %q, %v", rows, err)
	}
}

// trumpet.pick_columns() cannot take such a row apart, so its event is a bulk one; a snapshot has it.
func TestSnapshotHasWhatEventsCouldNotShow(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	pgtest.Exec(t, conn, `create table docs (id int primary key, doc json, other int); select trumpet.watch('docs', columns => '{doc}')`)
	bus, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, `insert into docs values (1, '{"a":"\u0000"}')`)
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	if got := describe(r.waitData(t, `"end"`)); !slices.Equal(got, []string{"bulk insert 1", `broadcast "end"`}) {
		t.Errorf("events %q", got)
	}
	if rows, err := readAll(t, bus, "docs"); err != nil || !slices.Equal(rows, []string{`{ "id" : 1, "doc" : {"a":"\u0000"} }`}) {
		t.Errorf("rows %q, %v", rows, err)
	}
}

// Virtual generated columns (PostgreSQL 18) are null in events, so they are in snapshots, and no
// filter takes them.
func TestSnapshotOfVirtualColumns(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	kind, values := "virtual", []string{"null", "null"}
	var version int
	if err := conn.QueryRow(t.Context(), "select current_setting('server_version_num')::int").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < 180000 {
		kind, values = "stored", []string{"2", "2"}
	}
	pgtest.Exec(t, conn, fmt.Sprintf(`create table whole (id int primary key, twice int generated always as (id * 2) %[1]s);
		create table part (id int primary key, other int, twice int generated always as (id * 2) %[1]s);
		select trumpet.watch('whole'), trumpet.watch('part', columns => '{twice}')`, kind))
	bus, r, _ := start(t, url, "w1", nil)
	pgtest.Exec(t, conn, "insert into whole values (1); insert into part values (1)")
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	events := r.waitData(t, `"end"`)
	for i, topic := range []string{"whole", "part"} {
		rows, err := readAll(t, bus, topic)
		if err != nil || len(rows) != 1 || rows[0] != string(events[i].New) || !strings.Contains(rows[0], values[i]) {
			t.Errorf("%s: %q, %v; its event has %s", topic, rows, err, events[i].New)
		}
		table, _, err := bus.Table(t.Context(), topic)
		hasIt := slices.ContainsFunc(table.Columns, func(c trumpet.Column) bool { return c.Name == "twice" })
		if err != nil || hasIt != (kind == "stored") {
			t.Errorf("%s: %+v, %v", topic, table, err)
		}
	}
}
