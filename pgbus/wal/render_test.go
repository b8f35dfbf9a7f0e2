package wal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// renderSettings are those that texts come with and that JSON is compared in.
var renderSettings = map[string]string{
	"timezone": "UTC", "intervalstyle": "postgres", "datestyle": "ISO, MDY", "bytea_output": "hex", "extra_float_digits": "1",
}

func renderConn(t testing.TB, url string, more map[string]string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(config.RuntimeParams, renderSettings)
	maps.Copy(config.RuntimeParams, more)
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// renderSchema is where the types of tests are; "our." stands for it in their names.
const renderSchema = `"o""ur 'schema"`

func ours(sql string) string { return strings.ReplaceAll(sql, "our.", renderSchema+".") }

const renderTypes = `
create schema "o""ur 'schema";

create type our.strange as enum ('it''s', 'a "b"', 'x,y', '{}', ' lead', 'NULL', 'ünï', 'back\slash', '(1;2)', E'new\nline');
create type our."ty'pe ""x""" as enum ('a', 'b');
create type our.textrange as range (subtype = text, collation = "C");
create domain our.positive as int check (value > 0);
create domain our.positiver as our.positive;
create domain our.label as our.strange;
create domain our.moment as timestamptz;
create domain our.document as json;
create domain our.area as box;
create domain our.ints as int[];
create domain our.areas as box[];
create domain our.moments as our.moment[];

create type our.odd as (a int, "na""me" text, "ünï\code" numeric, "new
line" timestamptz, "<&>" bool);
create type our.nothing as ();
create type our.single as (value text);
create type our.dropped as (a int, gone text, b text, gone_too int);
alter type our.dropped drop attribute gone, drop attribute gone_too;
create domain our.odd_domain as our.odd;
create domain our.odds as our.odd[];
create type our.nested as (
  odd our.odd, odds our.odd[], single our.single, singles our.single[], nothing our.nothing, dropped our.dropped,
  areas box[], domain our.odd_domain, domains our.odds, doc json, docs jsonb[], ranges our.textrange[],
  labels our.label[], bytes bytea[], vector int2vector, flags bool[]);

create table our.person (id int primary key, was text, name text not null, born date default 'today', tags text[]);
alter table our.person drop column was;

-- With a cast to json that counts, and with those that do not.
create type our.shouted as enum ('a', 'b "c"', 'd,e');
create function our.shout(our.shouted) returns json immutable language sql
  return json_build_object('shouted', upper($1::text));
create cast (our.shouted as json) with function our.shout(our.shouted);
create type our.inout as enum ('1', '2');
create cast (our.inout as json) with inout;
create type our.only_jsonb as enum ('1', '2');
create function our.to_b(our.only_jsonb) returns jsonb immutable language sql return '{}'::jsonb;
create cast (our.only_jsonb as jsonb) with function our.to_b(our.only_jsonb) as implicit;
create function our.single_json(our.single) returns json immutable language sql return '"cast"'::json;
create cast (our.single as json) with function our.single_json(our.single) as implicit;

create domain our.shouted_domain as our.shouted;
create domain our.shouted_list as our.shouted_domain[];
create type our.with_shouted as (a timestamptz, b our.shouted, c our.shouted_list);
`

// typeSpec is a type, texts that its input function reads, and what comes between its elements in an array.
type typeSpec struct {
	name      string
	texts     *rapid.Generator[string]
	delimiter string
	cast      bool
}

func spec(name string, texts *rapid.Generator[string]) typeSpec {
	return typeSpec{name: name, texts: texts, delimiter: ","}
}

func (s typeSpec) delimited(by string) typeSpec { s.delimiter = by; return s }

func (s typeSpec) onlyPostgres() typeSpec { s.cast = true; return s }

// array makes of the type that of its arrays, or of a domain over them, by its name.
func (s typeSpec) array(name string) typeSpec {
	return typeSpec{name: name, texts: arraysOf(s.texts, s.delimiter), delimiter: s.delimiter, cast: s.cast}
}

func compositeSpec(name string, attributes ...typeSpec) typeSpec {
	s := spec(name, compositesOf(attributes))
	for _, a := range attributes {
		s.cast = s.cast || a.cast
	}
	return s
}

func arraysOf(elements *rapid.Generator[string], delimiter string) *rapid.Generator[string] {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	return rapid.Custom(func(t *rapid.T) string {
		var bounds strings.Builder
		sizes := rapid.SliceOfN(rapid.IntRange(1, 3), 0, 3).Draw(t, "dimensions")
		if len(sizes) == 0 {
			return "{}"
		}
		if rapid.IntRange(0, 3).Draw(t, "bounded") == 0 {
			for _, size := range sizes {
				lower := rapid.IntRange(-2, 12).Draw(t, "lower")
				fmt.Fprintf(&bounds, "[%d:%d]", lower, lower+size-1)
			}
			bounds.WriteByte('=')
		}
		var write func(sizes []int) string
		write = func(sizes []int) string {
			if len(sizes) == 0 {
				if rapid.IntRange(0, 5).Draw(t, "null") == 0 {
					return "NULL"
				}
				return `"` + quote.Replace(elements.Draw(t, "element")) + `"`
			}
			parts := make([]string, sizes[0])
			for i := range parts {
				parts[i] = write(sizes[1:])
			}
			return "{" + strings.Join(parts, delimiter) + "}"
		}
		return bounds.String() + write(sizes)
	})
}

func compositesOf(attributes []typeSpec) *rapid.Generator[string] {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `""`)
	return rapid.Custom(func(t *rapid.T) string {
		fields := make([]string, len(attributes))
		for i, a := range attributes {
			if rapid.IntRange(0, 5).Draw(t, "null") > 0 {
				fields[i] = `"` + quote.Replace(a.texts.Draw(t, a.name)) + `"`
			}
		}
		return "(" + strings.Join(fields, ",") + ")"
	})
}

func sampled(texts ...string) *rapid.Generator[string] { return rapid.SampledFrom(texts) }

func formatted[T any](g *rapid.Generator[T], format string) *rapid.Generator[string] {
	return rapid.Map(g, func(v T) string { return fmt.Sprintf(format, v) })
}

func joined(a, b *rapid.Generator[string]) *rapid.Generator[string] {
	return formatted2(a, b, "%s%s")
}

func formatted2[A, B any](a *rapid.Generator[A], b *rapid.Generator[B], format string) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string { return fmt.Sprintf(format, a.Draw(t, "a"), b.Draw(t, "b")) })
}

func rangesOf[K int | string](bounds *rapid.Generator[string], key func(string) K) *rapid.Generator[string] {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	return rapid.Custom(func(t *rapid.T) string {
		a, b := bounds.Draw(t, "lower"), bounds.Draw(t, "upper")
		if key(a) > key(b) {
			a, b = b, a
		}
		switch rapid.IntRange(0, 5).Draw(t, "form") {
		case 0:
			return "empty"
		case 1:
			return `(,"` + quote.Replace(b) + `")`
		case 2:
			return `["` + quote.Replace(a) + `",]`
		}
		return `["` + quote.Replace(a) + `","` + quote.Replace(b) + `"]`
	})
}

func multirangesOf(ranges *rapid.Generator[string]) *rapid.Generator[string] {
	return rapid.Map(rapid.SliceOfN(ranges, 0, 3), func(r []string) string { return "{" + strings.Join(r, ",") + "}" })
}

// jsonTexts have white space wherever JSON may have it.
func jsonTexts(anyText *rapid.Generator[string], jsonb bool) *rapid.Generator[string] {
	space := sampled("", "", "", " ", "\n\t ", "\r\n")
	escapes := []string{`"\u0041\/\b\f"`, `"😀"`, `""`, `"A\\\""`}
	if !jsonb {
		escapes = append(escapes, `"\u0000"`, `"\ud83d\ude00 \ud800"`) // jsonb knows no such text
	}
	scalar := rapid.OneOf(
		sampled("null", "true", "false", "0", "-0", "1.50", "1E5", "1e-7", "123456789012345678901234567890"),
		rapid.SampledFrom(escapes),
		rapid.Map(anyText, func(s string) string { b, _ := json.Marshal(s); return string(b) }),
	)
	var value func(depth int) *rapid.Generator[string]
	value = func(depth int) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			form := rapid.IntRange(0, 4).Draw(t, "form")
			if depth == 0 || form < 3 {
				return space.Draw(t, "before") + scalar.Draw(t, "scalar") + space.Draw(t, "after")
			}
			parts := rapid.SliceOfN(value(depth-1), 0, 3).Draw(t, "parts")
			open, end := "[", "]"
			if form == 4 {
				open, end = "{", "}"
				for i := range parts {
					parts[i] = fmt.Sprintf(`%s"k%d"%s:%s`, space.Draw(t, "space"), i%2, space.Draw(t, "space"), parts[i])
				}
			}
			return open + strings.Join(parts, ",") + space.Draw(t, "space") + end
		})
	}
	return value(2)
}

// renderSpecs are all types that the property is about. Generators are not safe for concurrent use, so
// that each caller gets its own.
func renderSpecs(contrib bool) []typeSpec {
	anyRune := rapid.OneOf(
		rapid.SampledFrom([]rune("\"\\{}(),;:[]=' NULLnull/<>&\b\f\n\r\t\v\x01\x1f\x7f\u0080\u0085\u00a0üß€\u2028\u2029\ufeff\ufffd😀\U0010ffff")),
		rapid.Rune().Filter(func(r rune) bool { return r > 0 && utf8.ValidRune(r) }),
		rapid.RuneFrom([]rune("abcdefghij klmnopqrstuvwxyz0123456789")),
	)
	anyText := rapid.StringOfN(anyRune, 0, 40, -1)
	shortText := rapid.StringOfN(anyRune, 0, 5, -1)
	number := rapid.OneOf(rapid.Int64Range(-10, 10), rapid.Int64Range(-100000, 100000))

	float8Text := rapid.OneOf(
		sampled("NaN", "Infinity", "-Infinity", "0", "-0", "5e-324", "-2.2250738585072011e-308", "1.7976931348623157e308", "1e15", "1e16", "123456789012345680", "0.0001", "0.00001"),
		rapid.Map(rapid.Float64(), func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }),
	)
	float4Text := rapid.OneOf(
		sampled("NaN", "Infinity", "-Infinity", "0", "-0", "1e-45", "3.4028235e38", "1e6", "1e7", "16777217", "0.1"),
		rapid.Map(rapid.Float32(), func(f float32) string { return strconv.FormatFloat(float64(f), 'g', -1, 32) }),
	)
	numericText := rapid.OneOf(
		sampled("NaN", "Infinity", "-Infinity", "0", "-0", "0.000", "-0.00", "1e100", "-1e-100", "1.500e3", "1e1000", ".5", "100", "100.00"),
		rapid.StringMatching(`-?[0-9]{1,40}(\.[0-9]{1,30})?`),
	)

	dayText := rapid.Custom(func(t *rapid.T) string {
		year := rapid.OneOf(rapid.IntRange(1990, 2030), rapid.IntRange(1, 9999), rapid.IntRange(10000, 294275)).Draw(t, "year")
		era := ""
		if rapid.IntRange(0, 4).Draw(t, "era") == 0 {
			year, era = year%4712+1, " BC"
		}
		return fmt.Sprintf("%04d-%02d-%02d%s", year, rapid.IntRange(1, 12).Draw(t, "month"), rapid.IntRange(1, 28).Draw(t, "day"), era)
	})
	dateText := rapid.OneOf(dayText, sampled("infinity", "-infinity", "5874897-12-31", "4713-11-24 BC", "0001-01-01", "0001-12-31 BC", "9999-12-31", "10000-01-01"))
	timeText := rapid.OneOf(sampled("00:00:00", "23:59:59.999999", "24:00:00"), rapid.Custom(func(t *rapid.T) string {
		fraction := rapid.SampledFrom([]string{"", ".5", ".123", ".000001", ".120000", ".999999"}).Draw(t, "fraction")
		return fmt.Sprintf("%02d:%02d:%02d%s", rapid.IntRange(0, 23).Draw(t, "hour"), rapid.IntRange(0, 59).Draw(t, "minute"), rapid.IntRange(0, 59).Draw(t, "second"), fraction)
	}))
	zoneText := sampled("", "+00", "-08", "+05:30", "-00:30", "+05:53:28", "+14", "-15:59")
	timeTZText := joined(timeText, zoneText)
	timestampText := rapid.OneOf(
		sampled("infinity", "-infinity", "294276-12-31 23:59:59.999999", "4713-11-24 00:00:00 BC", "0001-01-01 00:00:00", "0001-12-31 23:59:59.999999 BC"),
		rapid.Custom(func(t *rapid.T) string {
			day, era, _ := strings.Cut(dayText.Draw(t, "day"), " ")
			return day + " " + timeText.Draw(t, "time") + zoneText.Draw(t, "zone") + " " + era // timestamps ignore the zone
		}),
	)
	intervalText := rapid.OneOf(sampled("0", "1 year", "-1 day +00:00:01", "178000000 years", "00:00:00.000001", "-00:00:00.5"), rapid.Custom(func(t *rapid.T) string {
		return fmt.Sprintf("%d years %d mons %d days %d:%02d:%02d.%06d", number.Draw(t, "years"), number.Draw(t, "months"), number.Draw(t, "days"),
			number.Draw(t, "hours"), rapid.IntRange(0, 59).Draw(t, "minutes"), rapid.IntRange(0, 59).Draw(t, "seconds"), rapid.SampledFrom([]int{0, 1, 500000}).Draw(t, "microseconds"))
	}))

	uuidText := rapid.StringMatching(`[0-9a-f]{8}-[0-9A-F]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	byteaText := formatted(rapid.SliceOfN(rapid.Byte(), 0, 20), `\x%x`)
	boolText := sampled("t", "f")
	pointText := formatted2(float8Text, float8Text, "(%s,%s)")
	boxText := formatted2(pointText, pointText, "(%s,%s)")
	intRange := rangesOf(formatted(rapid.Int32Range(-1<<31, 1<<31-2), "%d"), func(s string) int { n, _ := strconv.Atoi(s); return n })
	dayRange := rangesOf(formatted(rapid.IntRange(10, 28), "2026-11-%d"), func(s string) string { return s })
	momentText := formatted(rapid.IntRange(10, 28), "2026-11-%d 12:34:56.5+00")
	textRange := rangesOf(shortText, func(s string) string { return s })
	enumText := sampled("it's", `a "b"`, "x,y", "{}", " lead", "NULL", "ünï", `back\slash`, "(1;2)", "new\nline")
	jsonText, jsonbText := jsonTexts(anyText, false), jsonTexts(anyText, true)
	scalars := []typeSpec{
		spec("int2", formatted(rapid.Int16(), "%d")), spec("int4", formatted(rapid.Int32(), "%d")), spec("int8", formatted(rapid.Int64(), "%d")),
		spec("float4", float4Text), spec("float8", float8Text),
		spec("numeric", numericText), spec("numeric(10,2)", rapid.OneOf(sampled("NaN", "0", "-0.001", "99999999.99"), rapid.StringMatching(`-?[0-9]{1,8}(\.[0-9]{1,3})?`).Filter(func(s string) bool { return !strings.Contains(s, "99999999") }))),
		spec("text", anyText), spec("varchar", anyText), spec("varchar(8)", shortText), spec("char(5)", shortText), spec("bpchar", anyText),
		spec(`"char"`, rapid.OneOf(sampled(""), rapid.StringOfN(rapid.RuneFrom([]rune("a\"\\{},;\n\x01 ")), 1, 1, 1))), spec("name", rapid.StringOfN(anyRune, 0, 15, -1)),
		spec("bool", boolText),
		spec("date", dateText), spec("time", timeText), spec("timetz", timeTZText), spec("time(2)", timeText),
		spec("timestamp", timestampText), spec("timestamptz", timestampText),
		spec("interval", intervalText),
		spec("uuid", uuidText), spec("bytea", byteaText), spec("json", jsonText), spec("jsonb", jsonbText),
		spec("jsonpath", sampled("$", `$.a[*] ? (@.b == "x\"y")`, `strict $."na\"me"`)),
		spec("bit(3)", rapid.StringMatching(`[01]{3}`)), spec("varbit", rapid.StringMatching(`[01]{0,20}`)),
		spec("inet", sampled("192.168.0.1", "10.0.0.0/8", "::1", "2001:db8::/32", "::ffff:1.2.3.4")), spec("cidr", sampled("10.0.0.0/8", "192.168.1.0/24", "2001:db8::/32")),
		spec("macaddr", rapid.StringMatching(`[0-9a-f]{2}(:[0-9A-F]{2}){5}`)), spec("macaddr8", rapid.StringMatching(`[0-9a-f]{2}(:[0-9A-F]{2}){7}`)),
		spec("money", rapid.StringMatching(`-?[0-9]{1,12}\.[0-9]{2}`)),
		spec("point", pointText), spec("lseg", formatted2(pointText, pointText, "[%s,%s]")), spec("box", boxText).delimited(";"),
		spec("line", formatted2(number, number, "{%d,1,%d}")), spec("path", formatted2(pointText, pointText, "[%s,%s]")),
		spec("polygon", formatted2(pointText, pointText, "(%s,%s)")), spec("circle", formatted2(pointText, rapid.IntRange(0, 9), "<%s,%d>")),
		spec("int4range", intRange), spec("int8range", intRange), spec("numrange", intRange), spec("daterange", dayRange),
		spec("tsrange", rangesOf(momentText, func(s string) string { return s })), spec("tstzrange", rangesOf(momentText, func(s string) string { return s })),
		spec("int4multirange", multirangesOf(intRange)), spec("int8multirange", multirangesOf(intRange)), spec("nummultirange", multirangesOf(intRange)), spec("datemultirange", multirangesOf(dayRange)),
		spec("tsmultirange", multirangesOf(rangesOf(momentText, func(s string) string { return s }))), spec("tstzmultirange", multirangesOf(rangesOf(momentText, func(s string) string { return s }))),
		spec("tsvector", sampled("", "a b c", `'it''s':1A 'x"y':2,3`, `'back\\slash'`)), spec("tsquery", sampled("a & !b", `'it''s' | 'x"y':*`, "a <-> b")),
		spec("oid", formatted(rapid.Uint32(), "%d")), spec("xid", formatted(rapid.Uint32(), "%d")), spec("cid", formatted(rapid.Uint32(), "%d")),
		spec("xid8", formatted(rapid.Uint64(), "%d")), spec("tid", sampled("(0,1)", "(4294967295,65535)")), spec("pg_lsn", sampled("0/0", "16/B374D848")),
		spec("pg_snapshot", sampled("10:20:10,14,15", "1:1:")), spec("txid_snapshot", sampled("10:20:10,14,15")), spec("refcursor", anyText),
		spec("regclass", sampled("pg_class", renderSchema+".person")), spec("regtype", sampled("int", "text[]", `"char"`)), spec("regproc", sampled("now", "-")), spec("regprocedure", sampled("pg_catalog.now()", "abs(integer)")),
		spec("regoper", sampled("||/", "0")), spec("regoperator", sampled("+(integer,integer)")), spec("regnamespace", sampled("pg_catalog", renderSchema)), spec("regrole", sampled("-")),
		spec("regconfig", sampled("simple")), spec("regdictionary", sampled("simple")), spec("regcollation", sampled(`"C"`)), spec("aclitem", sampled("=r/pg_monitor", "pg_monitor=r*w/pg_monitor")),
		spec("int2vector", sampled("", "1", "1 -2 3")), spec("oidvector", sampled("", "1", "1 4294967295")),
		spec("information_schema.yes_or_no", sampled("YES", "NO")), spec("information_schema.cardinal_number", sampled("0", "5")),
		spec("information_schema.sql_identifier", rapid.StringOfN(anyRune, 0, 15, -1)), spec("information_schema.time_stamp", timestampText),
		spec("our.strange", enumText), spec(`our."ty'pe ""x"""`, sampled("a", "b")), spec("our.textrange", textRange), spec("our.textmultirange", multirangesOf(textRange)),
		spec("our.label", enumText), spec("our.moment", timestampText), spec("our.document", jsonText), spec("our.area", boxText).delimited(";"),
		spec("our.positive", sampled("1", "7", "2147483647")), spec("our.positiver", sampled("1", "7")),
		spec("our.inout", sampled("1", "2")), spec("our.only_jsonb", sampled("1", "2")),
		spec("our.shouted", sampled("a", `b "c"`, "d,e")).onlyPostgres(),
		spec("our.shouted_domain", sampled("a", `b "c"`, "d,e")).onlyPostgres(),
	}
	if contrib {
		texts := rapid.OneOf(sampled(`a=>1, "b c"=>NULL, "\"q\""=>"x\\y"`, ""), rapid.Map(shortText, func(s string) string {
			return `k=>"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
		}))
		scalars = append(scalars, spec("our.hstore", texts).onlyPostgres(), spec("our.settings", texts).onlyPostgres(), spec("our.citext", anyText))
	}
	specs := slices.Clone(scalars)
	for _, s := range scalars {
		specs = append(specs, s.array(s.name+"[]"))
	}
	byName := func(name string) typeSpec {
		i := slices.IndexFunc(specs, func(s typeSpec) bool { return s.name == name })
		return specs[i]
	}
	ints, areas := byName("int4[]"), byName("box[]")
	ints.name, areas.name = "our.ints", "our.areas"
	moments := byName("our.moment").array("our.moments")
	odd := compositeSpec("our.odd", byName("int4"), byName("text"), byName("numeric"), byName("timestamptz"), byName("bool"))
	oddDomain := odd
	oddDomain.name = "our.odd_domain"
	odds := odd.array("our.odds")
	single, nothing := compositeSpec("our.single", byName("text")), spec("our.nothing", sampled("()"))
	dropped := compositeSpec("our.dropped", byName("int4"), byName("text"))
	nested := compositeSpec("our.nested",
		odd, odd.array("our.odd[]"), single, single.array("our.single[]"), nothing, dropped,
		areas, oddDomain, odds, byName("json"), byName("jsonb[]"), byName("our.textrange[]"),
		byName("our.label[]"), byName("bytea[]"), byName("int2vector"), byName("bool[]"))
	person := compositeSpec("our.person", byName("int4"), byName("text"), byName("date"), byName("text[]"))
	shoutedList := byName("our.shouted_domain").array("our.shouted_list")
	withShouted := compositeSpec("our.with_shouted", byName("timestamptz"), byName("our.shouted"), shoutedList)
	withShouted.cast = true
	return append(specs,
		ints, ints.array("our.ints[]"), areas, areas.array("our.areas[]"), moments, moments.array("our.moments[]"),
		odd, odd.array("our.odd[]"), oddDomain, oddDomain.array("our.odd_domain[]"), odds, odds.array("our.odds[]"),
		single, single.array("our.single[]"), nothing, nothing.array("our.nothing[]"), dropped, dropped.array("our.dropped[]"),
		nested, nested.array("our.nested[]"), person, person.array("our.person[]"),
		shoutedList, shoutedList.array("our.shouted_list[]"), withShouted, withShouted.array("our.with_shouted[]"),
	)
}

// renderDatabase makes a database with the types of tests, and says whether those of contrib modules are
// there, which not every Postgres has.
func renderDatabase(t testing.TB) (url string, conn *pgx.Conn, contrib bool) {
	t.Helper()
	url = pgtest.New(t)
	conn = renderConn(t, url, nil)
	pgtest.Exec(t, conn, ours(renderTypes))
	if err := conn.QueryRow(t.Context(), "select count(*) = 2 from pg_available_extensions where name in ('hstore', 'citext')").Scan(&contrib); err != nil {
		t.Fatal(err)
	}
	if contrib {
		pgtest.Exec(t, conn, ours(`
			create extension hstore schema "o""ur 'schema";
			create extension citext schema "o""ur 'schema";
			create domain our.settings as our.hstore`))
	}
	return url, conn, contrib
}

func typeOID(t testing.TB, conn *pgx.Conn, name string) (oid uint32) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "select $1::text::regtype::oid", ours(name)).Scan(&oid); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return oid
}

// Whatever a value is, its text is rendered to the bytes that row_to_json() gives for it.
func TestRenderAsPostgresDoes(t *testing.T) {
	t.Parallel()
	url, _, contrib := renderDatabase(t)
	for half := range 2 {
		t.Run(fmt.Sprint("half ", half), func(t *testing.T) {
			t.Parallel()
			conn := renderConn(t, url, nil)
			elsewhere := renderConn(t, url, map[string]string{"search_path": ""}) // types are found wherever they are
			specs := renderSpecs(contrib)
			oids := make([]uint32, len(specs))
			for i, s := range specs {
				oids[i] = typeOID(t, conn, s.name)
			}
			types := NewTypes()
			if err := types.Load(t.Context(), elsewhere, types.Missing(oids)); err != nil {
				t.Fatal(err)
			}
			if missing := types.Missing(oids); missing != nil {
				t.Fatalf("%d are missing", missing)
			}
			for i := half; i < len(specs); i += 2 {
				t.Run(specs[i].name, func(t *testing.T) {
					renderAsPostgresDoes(t, conn, elsewhere, types, oids[i], specs[i])
				})
			}
		})
	}
}

func renderAsPostgresDoes(t *testing.T, conn, elsewhere *pgx.Conn, types *Types, oid uint32, s typeSpec) {
	inputs := rapid.SliceOfN(s.texts, 1, 8)
	rapid.Check(t, func(t *rapid.T) {
		texts, want := postgresJSON(t, conn, ours(s.name), inputs.Draw(t, "inputs"))
		var got [][]byte
		for _, text := range texts {
			value, err := types.AppendJSON(nil, oid, []byte(text))
			if s.cast && errors.Is(err, ErrCast) {
				continue
			}
			if err != nil || s.cast {
				t.Fatalf("%s of %s: %v", text, s.name, err)
			}
			got = append(got, value)
		}
		if s.cast {
			var err error
			if got, err = types.Cast(context.Background(), elsewhere, oid, texts); err != nil {
				t.Fatal(err)
			}
		}
		for i := range want {
			if string(got[i]) != want[i] {
				t.Errorf("%s of %s\n is %s\nnot %s", texts[i], s.name, got[i], want[i])
			}
		}
	})
}

// postgresJSON returns the values of these inputs as their type's output function writes them, and as JSON.
func postgresJSON(t *rapid.T, conn *pgx.Conn, typ string, inputs []string) (texts, values []string) {
	rows, err := conn.Query(context.Background(), `
		select r.v, pg_catalog.row_to_json(r)::text
		  from (select i::`+typ+` as v from unnest($1::text[]) with ordinality u(i, n) order by n) r`,
		pgx.QueryResultFormats{pgx.TextFormatCode, pgx.TextFormatCode}, inputs)
	if err != nil {
		t.Fatalf("%q as %s: %v", inputs, typ, err)
	}
	defer rows.Close()
	for rows.Next() {
		raw := rows.RawValues()
		value, ok := strings.CutPrefix(string(raw[1]), `{"v":`)
		if !ok || raw[0] == nil {
			t.Fatalf("%s for %q", raw, inputs)
		}
		texts, values = append(texts, string(raw[0])), append(values, strings.TrimSuffix(value, "}"))
	}
	if rows.Err() != nil || len(texts) != len(inputs) {
		t.Fatalf("%q as %s: %d values, %v", inputs, typ, len(texts), rows.Err())
	}
	return texts, values
}

func TestAppendJSON(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		oid        uint32
		text, want string // no want: it does not fit
	}{
		{16, "t", "true"},
		{16, "f", "false"},
		{16, "true", ""},
		{16, "", ""},
		{23, "-7", "-7"},
		{701, "-0", "-0"},
		{701, "NaN", `"NaN"`},
		{701, "-Infinity", `"-Infinity"`},
		{701, "1e+22", "1e+22"},
		{1700, "1.50", "1.50"},
		{1700, "01", `"01"`},
		{1700, "1.", `"1."`},
		{1700, "1e", `"1e"`},
		{1700, "-", `"-"`},
		{1700, "", `""`},
		{25, "", `""`},
		{25, "null", `"null"`},
		{25, "a\b\f\n\r\t\v\"\\/<>&'\x7fü\u2028", `"a\b\f\n\r\t\u000b\"\\/<>&'` + "\x7fü\u2028" + `"`},
		{25, "0123456789abcdef\x1f0123456789abcdef!", `"0123456789abcdef\u001f0123456789abcdef!"`},
		{17, `\x00ff`, `"\\x00ff"`},
		{18, "", `""`},
		{1042, "a    ", `"a    "`},
		{114, "{ \"a\" :\n1 }", "{ \"a\" :\n1 }"},
		{1082, "2026-11-27", `"2026-11-27"`},
		{1082, "0044-03-15 BC", `"0044-03-15 BC"`},
		{1082, "infinity", `"infinity"`},
		{1114, "2026-11-27 12:34:56.5", `"2026-11-27T12:34:56.5"`},
		{1114, "0044-03-15 00:00:00 BC", `"0044-03-15T00:00:00 BC"`},
		{1114, "-infinity", `"-infinity"`},
		{1184, "2026-11-27 12:34:56+00", `"2026-11-27T12:34:56+00:00"`},
		{1184, "0044-03-15 00:00:00.000001+00 BC", `"0044-03-15T00:00:00.000001+00:00 BC"`},
		{1184, "294276-12-31 23:59:59.999999+00", `"294276-12-31T23:59:59.999999+00:00"`},
		{1184, "infinity", `"infinity"`},
		{1184, "1900-01-01 00:00:00-00:25:21", `"1900-01-01T00:00:00-00:25:21"`},
		{1184, "2026-11-27 12:34:56+05:30", `"2026-11-27T12:34:56+05:30"`},
		{1266, "12:34:56+00", `"12:34:56+00"`},
		{1186, "1 year -00:00:01", `"1 year -00:00:01"`},
		{22, "", "[]"},
		{22, "1 -2", "[1,-2]"},
		{30, "1 2", `["1","2"]`},
		{30, "1  2", ""},
		{30, "1 ", ""},
		{100000, "{}", "[]"},
		{100000, "{NULL}", "[null]"},
		{100000, "(,,,,,,,)", ""},
		{100000, `{"(,,,,,,)"}`, ""},
		{100000, `{"(,,,,,,,,)"}`, ""},
		{100000, `{"(x,,,,,,,)"}`, ""},
		{1007, "{1}", ""}, // nobody has loaded it
		{0, "", ""},
	} {
		got, err := fuzzTypes().AppendJSON([]byte("x"), c.oid, []byte(c.text))
		if c.want == "" && (!errors.Is(err, ErrType) || string(got) != "x") || c.want != "" && (err != nil || string(got) != "x"+c.want) {
			t.Errorf("%q of %d is %s, %v", c.text, c.oid, got, err)
		}
	}
}

func TestTypesFollowTheCatalog(t *testing.T) {
	t.Parallel()
	url, conn, _ := renderDatabase(t)
	elsewhere := renderConn(t, url, map[string]string{"search_path": ""})
	render := func(types *Types, oid uint32, text string) string {
		value, err := types.AppendJSON(nil, oid, []byte(text))
		switch {
		case errors.Is(err, ErrCast):
			values, err := types.Cast(t.Context(), elsewhere, oid, []string{text})
			if errors.Is(err, ErrType) {
				return "no such type"
			}
			if err != nil {
				t.Fatal(err)
			}
			return "cast " + string(values[0])
		case errors.Is(err, ErrType):
			return "does not fit"
		case err != nil:
			t.Fatal(err)
		}
		return string(value)
	}
	load := func(types *Types, oids ...uint32) {
		t.Helper()
		if err := types.Load(t.Context(), elsewhere, oids); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, not %s", what, got, want)
		}
	}
	types := NewTypes()
	array, dropped := typeOID(t, conn, "our.dropped[]"), typeOID(t, conn, "our.dropped")
	shouted, gone := typeOID(t, conn, "our.shouted"), typeOID(t, conn, `our."ty'pe ""x"""`)
	record := typeOID(t, conn, "record")

	unknown := []uint32{25, array, 1, dropped, record, 4294967295}
	if missing := types.Missing(unknown); !slices.Equal(missing, []uint32{array, 1, dropped, record, 4294967295}) {
		t.Errorf("%d are missing", missing)
	}
	expect("not loaded", render(types, array, `{"(1,x)"}`), "does not fit")
	load(types, unknown...)
	if missing := types.Missing(unknown); !slices.Equal(missing, []uint32{1, record, 4294967295}) {
		t.Errorf("%d are missing once loaded", missing)
	}
	expect("loaded", render(types, array, `{"(1,x)"}`), `[{"a":1,"b":"x"}]`)

	pgtest.Exec(t, conn, ours("alter type our.dropped add attribute c bool"))
	expect("attribute added", render(types, array, `{"(1,x,t)"}`), "does not fit")
	types.Forget()
	if missing := types.Missing([]uint32{array, 25}); !slices.Equal(missing, []uint32{array}) {
		t.Errorf("%d are missing once forgotten", missing)
	}
	load(types, array)
	expect("read again", render(types, array, `{"(1,x,t)",NULL,"(,,)"}`), `[{"a":1,"b":"x","c":true},null,{"a":null,"b":null,"c":null}]`)
	expect("part of it", render(types, dropped, `(1,x,t)`), `{"a":1,"b":"x","c":true}`)

	// Another type has the name now, then none has it.
	load(types, shouted, gone)
	expect("cast", render(types, shouted, "a"), `cast {"shouted" : "A"}`)
	// A cast from text need not be what the type's input function does.
	pgtest.Exec(t, conn, ours(`
		create function our.mislead(text) returns our.shouted immutable language sql return enum_last(null::our.shouted);
		create cast (text as our.shouted) with function our.mislead(text)`))
	expect("cast from text", render(types, shouted, "a"), `cast {"shouted" : "A"}`)
	pgtest.Exec(t, conn, ours("alter type our.shouted rename to moved; create type our.shouted as enum ('a')"))
	expect("another type", render(types, shouted, "a"), "no such type")
	pgtest.Exec(t, conn, ours("drop type our.shouted"))
	expect("renamed", render(types, shouted, "a"), "no such type")
	load(types, shouted)
	expect("its new name", render(types, shouted, "a"), `cast {"shouted" : "A"}`)
	pgtest.Exec(t, conn, "alter schema "+renderSchema+" rename to moved")
	expect("schema renamed", render(types, shouted, "a"), "no such type")
	load(types, shouted)
	expect("its new schema", render(types, shouted, "a"), `cast {"shouted" : "A"}`)

	// What is in the log may be older than the catalog.
	pgtest.Exec(t, conn, `drop type moved."ty'pe ""x"""`)
	load(types, gone)
	expect("dropped", render(types, gone, "a"), `"a"`)

	if _, err := types.Cast(t.Context(), elsewhere, 25, []string{"a"}); !errors.Is(err, ErrType) {
		t.Errorf("a cast of text: %v", err)
	}
	if _, err := types.Cast(t.Context(), elsewhere, shouted, []string{"a", "secret"}); !errors.Is(err, ErrType) || strings.Contains(err.Error(), "secret") {
		t.Errorf("a cast of a value that there is not: %v", err)
	}
	if values, err := types.Cast(t.Context(), elsewhere, shouted, nil); err != nil || len(values) != 0 {
		t.Errorf("a cast of nothing: %s, %v", values, err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := types.Cast(canceled, elsewhere, shouted, []string{"a"}); !errors.Is(err, context.Canceled) || errors.Is(err, ErrType) {
		t.Errorf("a cast that was canceled: %v", err)
	}
}

// Rows keep the fields that they were written with when their type is altered.
func TestRenderAlteredRows(t *testing.T) {
	t.Parallel()
	_, conn, _ := renderDatabase(t)
	pgtest.Exec(t, conn, ours(`
		create table rows (n int, v our.dropped, vs our.dropped[]);
		insert into rows values (1, '(1,x)', '{"(2,y)"}');
		alter type our.dropped add attribute "new" timestamptz;
		insert into rows values (2, '(1,x,now)', '{"(2,y,infinity)"}');
		alter type our.dropped drop attribute a;
		insert into rows values (3, '(x,now)', '{"(y,-infinity)"}');
		alter type our.dropped rename attribute b to "b""c"`))
	types := NewTypes()
	one, many := typeOID(t, conn, "our.dropped"), typeOID(t, conn, "our.dropped[]")
	if err := types.Load(t.Context(), conn, []uint32{one, many}); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), "select v, vs, to_json(v)::text, to_json(vs)::text from rows order by n", pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	count := 0
	for rows.Next() {
		count++
		raw := rows.RawValues()
		for i, oid := range []uint32{one, many} {
			if value, err := types.AppendJSON(nil, oid, raw[i]); err != nil || string(value) != string(raw[i+2]) {
				t.Errorf("%s\n is %s\nnot %s, %v", raw[i], value, raw[i+2], err)
			}
		}
	}
	if rows.Err() != nil || count != 3 {
		t.Errorf("%d rows, %v", count, rows.Err())
	}
}

func TestScalarsDoNotAllocate(t *testing.T) { // not parallel: others' allocations would count
	types := NewTypes()
	dst := make([]byte, 0, 4096)
	for _, v := range benchScalars {
		text := []byte(v.text)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := types.AppendJSON(dst, v.oid, text); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", v.name, n)
		}
	}
}
