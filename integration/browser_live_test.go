package integration

import (
	"encoding/json"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/demo"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// What the dashboard shows, asked for once more.
const dashboardNumbers = `select json_build_object(
	'figures', (select json_build_object(
		'customers', (select count(*) from customers),
		'open_jobs', (select count(*) from jobs where status not in ('done', 'cancelled')),
		'invoices_today', (select count(*) from invoices where issued_on = (now() at time zone 'UTC')::date),
		'revenue_today', (select coalesce(sum(amount), 0) from invoices where issued_on = (now() at time zone 'UTC')::date))),
	'status', (select coalesce(json_object_agg(status, n), '{}') from (select status, count(*) n from jobs group by status) g),
	'days', (select coalesce(json_object_agg(issued_on, total), '{}') from (select issued_on, sum(amount) total from invoices group by issued_on) g))`

// The cards of a board: titles by lane.
const boardCards = `select coalesce(json_object_agg(status, titles), '{}')
	from (select status, json_agg(title) titles from jobs where `

// Two windows on two workers show the same numbers after each of many changes, and those that the
// database has; two boards with a filter show the rows that a SELECT with the same WHERE has.
func TestWindowsShowTheSame(t *testing.T) {
	t.Parallel()
	url, conn := emptyDatabase(t, capture)
	// Statements that touch more than 20 rows are bulk statements here: a board may not draw more cards.
	pgtest.Exec(t, conn, watching(demo.Schema+demo.Invoices+`
		select trumpet.watch('customers'); select trumpet.watch('jobs', max_rows => 20); select trumpet.watch('invoices', max_rows => 20);
		insert into customers (name, city, phone) select 'Customer ' || g, 'Leeds', '0113 496 0000' from generate_series(1, 5) g;
		insert into jobs (customer_id, title, address, status, priority, price)
			select 1 + g % 5, 'job ' || g, g || ' Mill Lane', (array['new', 'scheduled', 'en_route', 'on_site', 'done', 'cancelled'])[1 + g % 6], 1 + g % 3, g
			from generate_series(1, 30) g;
		insert into invoices (customer_id, amount, issued_on) select 1 + g % 5, g + 0.1, (now() at time zone 'UTC')::date - g % 4 from generate_series(1, 40) g;`))
	awaitSlot(t, url, conn)
	pgtest.Exec(t, conn, demo.Live)
	w1, w2 := startWorker(t, url, "w1"), startWorker(t, url, "w2")
	const filter = "?status=in.(new,scheduled)&priority=lte.2"
	b := startBrowser(t, w1.url("/dashboard"), w2.url("/dashboard"), w1.url("/"+filter), w2.url("/"+filter))

	where := "status in ('new', 'scheduled') and priority <= 2"
	check := func(t *testing.T) {
		t.Helper()
		b.do(t, command{Do: "numbers", Wanted: asJSON(t, conn, dashboardNumbers)}, nil)
		b.do(t, command{Do: "cards", Wanted: asJSON(t, conn, boardCards+where+" group by status) g")}, nil)
	}
	check(t)
	for _, change := range []string{
		"insert into jobs (customer_id, title, address, priority) values (1, 'inserted into the filter', '1 Mill Lane', 1)",
		"insert into jobs (customer_id, title, address, priority) values (1, 'inserted outside', '1 Mill Lane', 3)",
		"update jobs set priority = 2 where title = 'inserted outside'",
		"update jobs set status = 'done' where title = 'inserted into the filter'",
		"update jobs set status = 'scheduled', title = 'moved in' where title = 'inserted into the filter'",
		"update jobs set title = 'renamed' where title = 'moved in'",
		"delete from jobs where title = 'renamed'",
		"insert into invoices (customer_id, amount) values (1, 1234.56), (2, 0.01)",
		"update invoices set amount = amount * 0.9 where amount > 1000",
		"update invoices set issued_on = issued_on - 1 where id = 1",
		"delete from invoices where id in (2, 3)",
		"begin; insert into jobs (customer_id, title, address) values (1, 'never', '1 Mill Lane'); delete from invoices; rollback; " +
			"update jobs set priority = 3 where title = 'job 6'",
		"begin; update jobs set status = 'new' where title = 'job 4'; update jobs set status = 'done' where title = 'job 4'; commit",
		"insert into customers (name, city, phone) values ('Customer 6', 'York', '07700 900000')",
		"update jobs set priority = 1, technician = 'in bulk'",
		"update invoices set amount = amount + 1",
		"insert into jobs (customer_id, title, address, priority) select 1, 'bulk ' || g, '2 Mill Lane', 1 + g % 3 from generate_series(1, 25) g",
		"delete from jobs where title like 'job 1%' or title like 'bulk %'",
		"truncate invoices",
		"insert into invoices (customer_id, amount) values (3, 17)",
		"begin; truncate jobs; insert into jobs (customer_id, title, address) values (2, 'after the truncate', '3 Mill Lane'); commit",
		"truncate jobs, invoices",
		"insert into jobs (customer_id, title, address, status) values (1, 'one of the last', '1 Mill Lane', 'new'), (1, 'the last', '1 Mill Lane', 'en_route')",
	} {
		pgtest.Exec(t, conn, change)
		check(t)
		if t.Failed() {
			t.Fatalf("after: %s", change)
		}
	}

	// A query that fails keeps its value, with a mark, and mends when it succeeds again.
	pgtest.Exec(t, conn, `select trumpet.live_query('stats', 'select 1 / (select count(*) from customers where false) as customers', depends_on => '{customers}')`)
	b.do(t, command{Do: "stale", Text: "stats is stale"}, nil)
	pgtest.Exec(t, conn, demo.Live)
	check(t)

	// Another filter, chosen on the page: the worker's, so rows come that were never there.
	where = "status = 'en_route'"
	b.do(t, command{Do: "filter", Chips: []string{"new", "scheduled", "en_route"}, Priority: new(string)}, nil)
	check(t)
	pgtest.Exec(t, conn, "update jobs set status = 'en_route', priority = 3")
	check(t)
	where = "true"
	b.do(t, command{Do: "filter", Chips: []string{"en_route"}}, nil)
	pgtest.Exec(t, conn, "insert into jobs (customer_id, title, address, status) values (1, 'seen by all', '1 Mill Lane', 'on_site')")
	check(t)

	var asked []string
	if b.do(t, command{Do: "asked"}, &asked); len(asked) > 0 {
		t.Errorf("the dashboards have asked for %q, and should ask for nothing", asked)
	}
}

func asJSON(t *testing.T, conn *pgx.Conn, query string) json.RawMessage {
	t.Helper()
	return queryOne[json.RawMessage](t, conn, query)
}
