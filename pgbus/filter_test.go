package pgbus

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// filterColumns are columns of every kind, with values that lie close to each other and at
// the ends of what the types hold.
var filterColumns = []struct {
	name, typ string
	values    []string
}{
	{"small", "smallint", []string{"0", "1", "-1", "32767", "-32768"}},
	{"whole", "integer", []string{"0", "1", "-1", "7", "2147483647", "-2147483648"}},
	{"large", "bigint", []string{"0", "9007199254740993", "9007199254740992", "9223372036854775807", "-9223372036854775808"}},
	{"exact", "numeric", []string{
		"0", "0.00", "1", "1.0", "1.00", "-1.5", "-1.50", "10", "9", "0.1", "0.10000000000000000001", "NaN", "Infinity", "-Infinity",
		"123456789012345678901234567890.123456789", "123456789012345678901234567890.12345678901", "-0.5", "1e40", "1e-40",
	}},
	{"price", "numeric(10,2)", []string{"0", "1.5", "1.50", "-1.5", "99999999.99", "NaN", "1.55"}},
	{"float", "double precision", []string{"0", "-0", "0.1", "1", "1e22", "1e300", "-1e300", "5e-324", "2.2250738585072011e-308", "NaN", "Infinity", "-Infinity", "123456789.123"}},
	{"real", "real", []string{"0", "-0", "0.1", "0.10000000149011612", "16777216", "16777217", "3.4e38", "1e-45", "NaN", "Infinity", "-Infinity"}},
	{"body", "text", []string{"", "a", "A", "ab", "a b", "a  ", "ä", "a\u0308", "b", "z", "Z", "a\nb", "\t", "\x01", `"q"`, `back\slash`, "😀", "\ufffd", "null", "a,b", "(a)", "100%", "a+b", "a&b=c"}},
	{"short", "varchar(8)", []string{"", "a", "a ", "A", "12345678", "Ünï"}},
	{"fixed", "char(5)", []string{"", "a", "a ", "ab", "abcde", "A", "é", "a\t"}},
	{"padded", "bpchar", []string{"", "a", "a  ", "b"}},
	{"anycase", "text collate anycase", []string{"open", "OPEN", "Open", "closed", "öpen"}},
	{"flag", "boolean", []string{"true", "false"}},
	{"born", "date", []string{"2026-11-26", "2000-02-29", "1999-12-31", "infinity", "-infinity", "0044-03-15 BC", "4713-11-24 BC", "0001-01-01", "0001-12-31 BC", "9999-12-31", "12345-01-01", "5874897-12-31"}},
	{"clock", "time", []string{"00:00:00", "12:34:56", "12:34:56.7", "12:34:56.700001", "23:59:59.999999", "24:00:00"}},
	{"local", "timestamp", []string{"2026-11-26 12:34:56", "2026-11-26 12:34:56.5", "2026-11-26", "infinity", "-infinity", "0044-03-15 10:00:00 BC", "4713-11-24 00:00:00 BC", "12345-01-01 01:02:03", "294276-12-31 23:59:59.999999"}},
	{"moment", "timestamptz", []string{
		"2026-11-26 12:34:56+00", "2026-11-26 12:34:56.5+00", "2026-11-26 14:34:56+02", "2026-11-26T12:34:56Z", "infinity", "-infinity",
		"0044-03-15 10:00:00+00 BC", "12345-01-01 01:02:03+00", "294276-12-31 23:59:59.999999+00", "1900-01-01 00:00:00+05:53:28", "2026-11-26 00:00:00-00:30",
	}},
	{"ident", "uuid", []string{"5f3a09c1-8b1e-4c57-9d53-0f6c4f0e7a11", "5F3A09C1-8B1E-4C57-9D53-0F6C4F0E7A11", "00000000-0000-0000-0000-000000000000", "{ffffffffffffffffffffffffffffffff}"}},
	{"mood", `filters."Mood"`, []string{"sad", "ok", "it's", "Happy, \"very\""}},
	{"level", "filters.level", []string{"1", "2", "3"}},
	{`we"ird näme`, "text", []string{"x", "y"}},
	{"doc", "json", []string{"null", " null ", "1", `{"a":null}`, `"null"`}},
	{"docb", "jsonb", []string{"null", "1", `{"a":null}`}},
	{"pair", "filters.pair", []string{"(,)", "(1,)", "(1,x)"}},
	{"list", "integer[]", []string{"{}", "{NULL}", "{1,2}"}},
	{"bytes", "bytea", []string{`\x`, `\x00ff`}},
	{"span", "interval", []string{"1 day", "24:00:00"}},
}

// filterTable makes the table, fills it with random rows, and returns it as filters see it.
func filterTable(t *testing.T, conn *pgx.Conn, rows int) trumpet.Table {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("rows are made with seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pgtest.Exec(t, conn, `create schema filters;
		create type filters."Mood" as enum ('sad', 'ok', 'it''s', 'Happy, "very"');
		create type filters.pair as (n int, t text);
		create domain filters.level as integer check (value > 0);
		create collation anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`)
	columns := []string{"id int primary key"}
	for _, c := range filterColumns {
		columns = append(columns, pgx.Identifier{c.name}.Sanitize()+" "+c.typ)
	}
	pgtest.Exec(t, conn, "create table filters.t ("+strings.Join(columns, ", ")+")")
	for id := range rows {
		places, args := []string{"$1"}, []any{id}
		for _, c := range filterColumns {
			var value any
			if random.IntN(6) > 0 {
				value = c.values[random.IntN(len(c.values))]
			}
			args = append(args, value)
			typ, _, _ := strings.Cut(c.typ, " collate")
			places = append(places, fmt.Sprintf("$%d::text::%s", len(args), typ))
		}
		pgtest.Exec(t, conn, "insert into filters.t values ("+strings.Join(places, ", ")+")", args...)
	}
	table := trumpet.Table{Topic: "t", Schema: "filters", Name: "t", Key: []string{"id"}}
	found, err := conn.Query(t.Context(), `select a.attname, format_type(b.oid, case when t.typtype = 'd' then t.typtypmod else a.atttypmod end),
		(select array_agg(e.enumlabel::text order by e.enumsortorder) from pg_enum e where e.enumtypid = b.oid)
		from pg_attribute a join pg_type t on t.oid = a.atttypid join pg_type b on b.oid = case when t.typtype = 'd' then t.typbasetype else t.oid end
		where a.attrelid = 'filters.t'::regclass and a.attnum > 0 order by a.attnum`)
	if err != nil {
		t.Fatal(err)
	}
	table.Columns, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (c trumpet.Column, err error) {
		err = row.Scan(&c.Name, &c.Type, &c.Labels)
		c.Kind = trumpet.KindOf(c.Type)
		if c.Labels != nil {
			c.Kind = trumpet.KindEnum
		}
		return c, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// drawCondition draws a condition that the column takes, or one that it refuses.
func drawCondition(t *rapid.T, table trumpet.Table) trumpet.Condition {
	place := rapid.IntRange(0, len(filterColumns)-1).Draw(t, "column")
	column := filterColumns[place]
	c := trumpet.Condition{Column: column.name, Not: rapid.Bool().Draw(t, "not")}
	switch kind := table.Columns[place+1].Kind; kind {
	case trumpet.KindOther:
		c.Operator = trumpet.Is
	case trumpet.KindEnum:
		c.Operator = rapid.SampledFrom([]trumpet.Operator{trumpet.Eq, trumpet.Neq, trumpet.In, trumpet.Is}).Draw(t, "operator")
	default:
		c.Operator = rapid.SampledFrom(trumpet.Operators).Draw(t, "operator")
	}
	values := rapid.SampledFrom(column.values)
	switch c.Operator {
	case trumpet.Is:
		what := []string{"null"}
		if column.typ == "boolean" {
			what = []string{"null", "true", "false", "unknown"}
		}
		c.Values = []string{rapid.SampledFrom(what).Draw(t, "what")}
	case trumpet.In:
		c.Values = rapid.SliceOfNDistinct(values, 1, 14, rapid.ID).Draw(t, "values")
	default:
		c.Values = []string{values.Draw(t, "value")}
	}
	return c
}

// For every kind, row and filter the matcher says what Postgres says to the same filter as SQL;
// and whoever looks for matchers by hash finds all that take the row.
func TestFiltersAreTrueWherePostgresSaysSo(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.New(t))
	pgtest.Exec(t, conn, "set timezone = 'UTC'; set intervalstyle = 'postgres'; set bytea_output = 'hex'; set extra_float_digits = 1")
	table := filterTable(t, conn, 300)
	found, err := conn.Query(t.Context(), "select row_to_json(t.*)::text from filters.t t order by id")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	// Whose session it is must not matter.
	pgtest.Exec(t, conn, "set timezone = 'Asia/Kolkata'; set datestyle = 'German'; set search_path = ''; set extra_float_digits = -3")
	counted := make(map[trumpet.Truth]int)
	rapid.Check(t, func(t *rapid.T) {
		s := trumpet.Subscription{Topic: "t"}
		for range rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(t, "conditions") {
			s.Conditions = append(s.Conditions, drawCondition(t, table))
		}
		used := table
		if rapid.Bool().Draw(t, "without labels") {
			used.Columns = append([]trumpet.Column(nil), table.Columns...)
			for i := range used.Columns {
				used.Columns[i].Labels = nil
			}
		}
		checkFilter(t, conn, s, used, rows, counted)
	})
	t.Logf("%v", counted)
	for _, truth := range []trumpet.Truth{trumpet.False, trumpet.True, trumpet.Unknown} {
		if counted[truth] == 0 {
			t.Errorf("truth %v was never seen", truth)
		}
	}
}

func checkFilter(t *rapid.T, conn *pgx.Conn, written trumpet.Subscription, table trumpet.Table, rows []string, counted map[trumpet.Truth]int) {
	s, err := trumpet.ParseSubscription(written.String())
	if err != nil {
		t.Fatalf("%s: %v", written, err)
	}
	m, err := s.Compile(table)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	condition, args := appendCondition(nil, m, []any{0})
	found, err := conn.Query(context.Background(), "select "+string(condition)+" from filters.t where id >= $1 order by id", args...)
	if err != nil {
		t.Fatalf("%s as %s: %v", s, condition, err)
	}
	truths, err := pgx.CollectRows(found, pgx.RowTo[*bool])
	if err != nil {
		t.Fatalf("%s as %s: %v", s, condition, err)
	}
	_, values, indexed := m.Equality()
	among := make(map[string]bool)
	for _, v := range values {
		among[v] = true
	}
	var row trumpet.Row
	for i, object := range rows {
		if err := row.Parse([]byte(object)); err != nil {
			t.Fatal(err)
		}
		want := trumpet.Unknown
		if truths[i] != nil && *truths[i] {
			want = trumpet.True
		} else if truths[i] != nil {
			want = trumpet.False
		}
		got := m.Match(&row)
		counted[got]++
		if got != want {
			t.Errorf("%s as %s %q: %v, Postgres says %v of %s", s, condition, args, got, want, object)
		}
		key, truth := m.IndexKey(nil, &row)
		if hit := truth == trumpet.True && among[string(key)]; indexed && got == trumpet.True && !hit {
			t.Errorf("%s takes %s, but its index form %q is none of %q", s, object, key, values)
		}
	}
}

// A filter on an indexed column does not make Postgres read the whole table.
func TestFiltersUseIndexes(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.New(t))
	table := filterTable(t, conn, 1)
	pgtest.Exec(t, conn, "set enable_seqscan = off")
	for _, c := range filterColumns {
		filter := c.name + "=eq." + strings.NewReplacer(`"`, "%22", "+", "%2B").Replace(c.values[0])
		switch c.name {
		case "anycase", `we"ird näme`, "doc", "docb": // the first is no different from body, the last have no order
			continue
		case "pair", "list", "bytes", "span":
			filter = c.name + "=is.null"
		}
		pgtest.Exec(t, conn, fmt.Sprintf("create index on filters.t (%s)", c.name))
		ways := []string{filter}
		if !strings.HasSuffix(filter, "is.null") {
			ways = append(ways, strings.Replace(filter, "=eq.", "=in.(", 1)+")")
			if c.typ != "text" && c.typ != "bpchar" && !strings.Contains(c.typ, "char") && c.name != "mood" && c.name != "flag" {
				ways = append(ways, strings.Replace(filter, "=eq.", "=gte.", 1))
			}
		}
		for _, way := range ways {
			way = strings.Replace(way, "in.()", "in.(%22%22)", 1)
			s, err := trumpet.ParseSubscription("t?" + way)
			if err != nil {
				t.Fatal(err)
			}
			m, err := s.Compile(table)
			if err != nil {
				t.Fatal(err)
			}
			condition, args := appendCondition(nil, m, nil)
			found, err := conn.Query(t.Context(), "explain (costs off) select from filters.t where "+string(condition), args...)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := pgx.CollectRows(found, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(plan, "\n"); !strings.Contains(text, "Index Cond") {
				t.Errorf("%s as %s:\n%s", way, condition, text)
			}
		}
	}
}
