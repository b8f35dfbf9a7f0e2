package pgbus_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// Rows of many types, written by sessions with all kinds of settings, come as Postgres itself makes JSON of
// them, byte for byte; package wal has the property test of each type's values.
func TestWALRows(t *testing.T) {
	t.Parallel()
	url, conn, _, r := walBus(t, `
		create type mood as enum ('so so', 'it''s "fine"'); create type place as (x int, "y z" text[], at timestamptz);
		create domain percent as numeric check (value <= 100); create domain moods as mood[];
		create table many (id int primary key, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, n2 numeric(10,2), t text, v varchar(9), c char(6),
		  d date, tm time, tz timetz, ts timestamp, tsz timestamptz, iv interval, u uuid, by bytea, j json, jb jsonb, arr int[], tarr text[], grid int[][],
		  r int4range, rs tstzrange, m mood, p place, ps place[], dp percent, dm moods, ip inet, bits varbit, mon money, pt point, x xml, nm name, o oid,
		  "odd ""name" text default 'x');
		alter table many replica identity full;
		select trumpet.watch('many', capture => 'wal')`)
	random := rand.New(rand.NewPCG(7, 7))
	pick := func(values ...string) string { return values[random.IntN(len(values))] }
	row := func(id int) string {
		return fmt.Sprintf("(%d, %s)", id, strings.Join([]string{
			pick("true", "false", "null"), pick("0", "-32768", "null"), pick("9223372036854775807", "-1"),
			pick("'NaN'", "1.5e10", "'-Infinity'", "0.1"), pick("'NaN'", "1e300", "-0.0", "0.1", "5e-324"),
			pick("'NaN'", "'Infinity'", "1.500", "1e50", "-0.00001", "null"), pick("12.50", "0", "99999999.99"),
			pick("''", "E'a\\tb\\n\"c\\\\d\\x01'", "'{}'", "'é€😀'", "repeat('long ', 3000)", "null"), pick("'a,b'", "null"), pick("'x'", "'  y'"),
			pick("'0044-03-15 BC'", "'infinity'", "'2026-11-27'", "null"), pick("'23:59:59.999999'", "'00:00'"), pick("'12:00+05:30'", "'12:00:00.5-08'"),
			pick("'infinity'", "'2026-01-01 10:00:00.123'", "'10000-01-01'", "'0001-01-01 BC'"), pick("'-infinity'", "'2026-07-01 10:00:00.5+02'", "'0044-03-15 12:00+00 BC'"),
			pick("'1 year 2 mons -3 days 04:05:06.7'", "'-1 second'", "'0'"), pick("'00000000-0000-0000-0000-0000000000AB'", "null"), pick(`'\x'`, `'\x00ff10'`),
			pick(`'{ "b" : 1,  "a" : [ null , "\u0000" ] }'`, "'null'", "null"), pick(`'{"b": 1, "a": [1.50, "\u00e9"]}'`, "'[]'", "'\"x\"'"),
			pick("'{}'", "'{1,NULL,-3}'", "'[0:1]={4,5}'"), pick(`'{"a b","NULL",NULL,"","\"\\"}'`, "null"), pick("'{{1,2},{3,4}}'", "null"),
			pick("'[1,5)'", "'empty'", "'(,)'"), pick("'[2026-01-01 00:00+02,infinity)'", "null"), pick("'so so'", "'it''s \"fine\"'", "null"),
			pick("row(1, '{\"a,b\",NULL}', '2026-01-01 00:00+02')::place", "row(null, null, null)::place", "null"),
			pick("array[row(1, null, null)::place, null, row(2, '{}', 'infinity')::place]", "null"), pick("99.9", "null"), pick("'{so so,NULL}'", "null"),
			pick("'10.0.0.1/8'", "'::1'"), pick("'101'", "''"), pick("12.5", "-3"), pick("'(1.5,-2)'", "null"), pick("'<a b=\"c\"/>'", "null"), pick("'n'"), pick("4294967295", "0"),
		}, ", "))
	}
	const columns = "(id, b, i2, i8, f4, f8, n, n2, t, v, c, d, tm, tz, ts, tsz, iv, u, by, j, jb, arr, tarr, grid, r, rs, m, p, ps, dp, dm, ip, bits, mon, pt, x, nm, o)"
	writer := pgtest.Connect(t, url)
	for i, settings := range []string{
		"", "set datestyle = 'German'; set timezone = 'America/New_York'", "set datestyle = 'Postgres, DMY'; set intervalstyle = 'iso_8601'; set bytea_output = 'escape'",
		"set extra_float_digits = -5; set timezone = 'Asia/Kathmandu'; set search_path = pg_catalog, public; set xmloption = content",
	} {
		pgtest.Exec(t, writer, "reset all; "+settings)
		var rows []string
		for n := range 40 {
			rows = append(rows, row(i*100+n))
		}
		pgtest.Exec(t, writer, "insert into public.many "+columns+" values "+strings.Join(rows, ", "))
		pgtest.Exec(t, writer, fmt.Sprintf("update public.many set (b, t) = (not b, t || '!') where id / 100 = %d", i))
	}
	events := r.end(t, conn)
	pgtest.Exec(t, conn, `set timezone = 'UTC'; set intervalstyle = 'postgres'; set datestyle = 'ISO, MDY'; set bytea_output = 'hex'; set extra_float_digits = 1`)
	want := map[string]string{}
	rows, err := conn.Query(t.Context(), "select json_build_object('id', id)::text, row_to_json(m.*)::text from many m")
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var key, json string
		if err := rows.Scan(&key, &json); err != nil {
			t.Fatal(err)
		}
		want[strings.ReplaceAll(key, " ", "")] = json
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, e := range events {
		whole := string(e.New)
		if e.Op == trumpet.OpInsert {
			continue // the update's row is what the table has
		}
		if expected := strings.NewReplacer("\t", " ", "\n", " ", "\r", " ").Replace(want[strings.ReplaceAll(string(e.Key), " ", "")]); whole != expected {
			t.Errorf("%s\ngot  %s\nwant %s", e.Key, whole, expected)
		}
		compared++
	}
	if compared < 100 {
		t.Errorf("only %d rows were compared", compared)
	}
}
