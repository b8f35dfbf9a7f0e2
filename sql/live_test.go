package sql_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// What a live query or aggregate must not be is refused where it is defined, and says what to do.
func TestLiveDefinitionsAreChecked(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, `create type mood as enum ('fine', 'bad'); create domain price as numeric(10, 2);
		create table jobs (id int primary key, status text, amount price, weight float8, doc jsonb, secret text, m mood, at timestamptz);
		create table other (id int primary key); create schema app; create table app.visits (id int primary key)`)
	pgtest.Exec(t, conn, "select trumpet.watch('jobs', columns => '{id,status,amount,weight,doc,m,at}'), trumpet.watch('app.visits')")
	for _, test := range []struct{ statement, message, hint string }{
		{`live_query('stats', 'select count(*) from jobs', '{jobs}')`, "", ""},
		{`live_query('stats', E'select 1; -- once\n', '{jobs}')`, "syntax error", "one SELECT"},
		{`live_query('stats', E'select status, count(*) from jobs group by 1 order by 1 -- by status\n ; ', '{jobs,jobs}')`, "", ""},
		{`live_query('stats', 'with n as (select 1 as x) select * from n', '{app.visits}')`, "", ""},
		{`live_query('jobs', 'select 1', '{jobs}')`, "is that of table public.jobs", "another name"},
		{`live_query('a b', 'select 1', '{jobs}')`, "not a valid name", "white space"},
		{`live_query('s', 'select 1', '{other}')`, "no watched table", "trumpet.watch('public.other')"},
		{`live_query('s', 'select 1', '{nothing}')`, "no watched table", "trumpet.watched"},
		{`live_query('s', 'select 1', '{"not a ( name"}')`, "no watched table", ""},
		{`live_query('s', 'select 1', '{}')`, "names no table", ""},
		{`live_query('s', null, '{jobs}')`, "is empty", ""},
		{`live_query('s', 'select 1; select 2', '{jobs}')`, "cannot open", ""},
		{`live_query('s', 'select 1) q; drop table jobs; select * from (select 1', '{jobs}')`, "syntax error", ""},
		{`live_query('s', 'insert into other values (1) returning id', '{jobs}')`, "syntax error", "one SELECT"},
		{`live_query('s', 'with x as (delete from jobs returning id) select * from x', '{jobs}')`, "cannot run", ""},
		{`live_query('s', 'drop table jobs', '{jobs}')`, "cannot open", "one SELECT"},
		{`live_query('s', 'select * from visits', '{app.visits}')`, `relation "visits" does not exist`, "search_path"},
		{`live_query('s', 'select * from visits', '{visits}', search_path => 'app')`, "", ""},
		{`live_query('s', 'select 1', '{jobs}', min_interval => '1 ms')`, "min_interval", ""},
		{`live_query('s', 'select 1', '{jobs}', timeout => '0')`, "timeout", ""},
		{`live_query('s', 'select 1', '{jobs}', run_as => 'no such role')`, `no role "no such role"`, "create role"},
		{`live_aggregate('sums', 'jobs')`, "", ""},
		{`live_aggregate('sums', 'jobs', '{count,COUNT( amount ) as priced,sum(amount),avg(amount) as mean,min(at),max(at)}', '{status,m}', 'status=in.(open,"a&b")&m=not.is.null')`, "no condition", "status=eq.open"},
		{`live_aggregate('sums', 'jobs', '{count,COUNT( amount ) as priced,sum(amount),avg(amount) as mean,min(at),max(at)}', '{status,m}', 'status=in.(open,done)&m=not.is.null')`, "", ""},
		{`live_aggregate('sums', 'other')`, "no watched table", "trumpet.watch('public.other')"},
		{`live_aggregate('sums', 'jobs', '{median(amount)}')`, "no aggregate", "live_query"},
		{`live_aggregate('sums', 'jobs', '{sum}')`, "no aggregate", ""},
		{`live_aggregate('sums', 'jobs', '{count,count(*)}')`, "two columns", ""},
		{`live_aggregate('sums', 'jobs', '{sum(weight)}')`, "cannot be kept up", "live_query"},
		{`live_aggregate('sums', 'jobs', '{max(status)}')`, "cannot be kept up", "live_query"},
		{`live_aggregate('sums', 'jobs', '{max(weight)}')`, "", ""},
		{`live_aggregate('sums', 'jobs', '{sum(nothing)}')`, "no column", ""},
		{`live_aggregate('sums', 'jobs', '{count(secret)}')`, "not watched", "secret"},
		{`live_aggregate('sums', 'jobs', '{count}', '{doc}')`, "cannot group by", "live_query"},
		{`live_aggregate('sums', 'jobs', filter => 'secret=eq.1')`, "not watched", ""},
		{`live_aggregate('sums', 'jobs', filter => 'status')`, "no condition", "status=eq.open"},
		{`drop_live_query('nothing')`, "no live query", "live_queries"},
	} {
		_, err := conn.Exec(t.Context(), "select trumpet."+test.statement)
		var pg *pgconn.PgError
		errors.As(err, &pg)
		switch {
		case test.message == "" && err != nil:
			t.Errorf("%s: %v", test.statement, err)
		case test.message != "" && (pg == nil || !strings.Contains(pg.Message, test.message) || !strings.Contains(pg.Hint, test.hint)):
			t.Errorf("%s: %v (%+v), want %q and the hint %q", test.statement, err, pg, test.message, test.hint)
		}
	}
	if got := query1[string](t, conn, `select string_agg(name || ': ' || kind || ': ' || definition || ': ' || array_to_string(depends_on, ','), E'\n' order by name)
		from trumpet.live_queries where name in ('stats', 'sums')`); got != "stats: query: with n as (select 1 as x) select * from n: app.visits\n"+
		"sums: aggregate: max(weight) as max_weight: jobs" {
		t.Errorf("got %s", got)
	}
	if role := query1[string](t, conn, "select current_setting('role') || ' ' || current_setting('search_path')"); role != `none "$user", public` {
		t.Errorf("a definition left %s", role)
	}
	if n := query1[int](t, conn, "select count(*) from trumpet.record where op = 'result' and data->>'error' = 'not run yet' and topic = 'stats'"); n != 3 {
		t.Errorf("%d records tell of 3 definitions", n)
	}
}
