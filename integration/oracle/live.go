package oracle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// liveQuery is one that is defined over the oracle's tables, and what its result must be.
type liveQuery struct{ name, define, query string }

var liveQueries = []liveQuery{
	{
		"by_status",
		`select trumpet.live_aggregate('by_status', 'jobs', '{count,count(amount) as amounts,sum(price),avg(price),min(id),max(updated_at),sum(customer_id)}',
			group_by => '{status}', min_interval => '100 ms')`,
		`select status, count(*), count(amount) as amounts, sum(price) as sum_price, avg(price) as avg_price, min(id) as min_id,
			max(updated_at) as max_updated_at, sum(customer_id) as sum_customer_id from jobs group by status order by status`,
	},
	{
		"amounts",
		`select trumpet.live_aggregate('amounts', 'jobs', '{sum(amount),count(amount),min(amount),max(amount),avg(priority)}',
			filter => 'priority=gte.1&status=neq.done', min_interval => '50 ms')`,
		`select sum(amount) as sum_amount, count(amount) as count_amount, min(amount) as min_amount, max(amount) as max_amount, avg(priority) as avg_priority
			from jobs where priority >= 1 and status <> 'done'`,
	},
	{
		"by_customer",
		`select trumpet.live_aggregate('by_customer', 'jobs', '{count as n,min(price),max(price)}', group_by => '{customer_id,priority}')`,
		`select customer_id, priority, count(*) as n, min(price) as min_price, max(price) as max_price from jobs
			group by customer_id, priority order by customer_id, priority`,
	},
	{
		"noted",
		`select trumpet.live_aggregate('noted', 'customers', '{count,count(note) as notes,max(id)}')`,
		`select count(*), count(note) as notes, max(id) as max_id from customers`,
	},
	{
		"totals",
		`select trumpet.live_query('totals', 'select (select count(*) from jobs) as jobs, (select count(*) from customers) as customers, (select sum(price) from jobs) as revenue',
			'{jobs,customers}', min_interval => '100 ms')`,
		`select (select count(*) from jobs) as jobs, (select count(*) from customers) as customers, (select sum(price) from jobs) as revenue`,
	},
	{
		"newest",
		`select trumpet.live_query('newest', 'select id, title, status from jobs order by id desc limit 5', '{jobs}')`,
		`select id, title, status from jobs order by id desc limit 5`,
	},
}

func liveNames() (names []string) {
	for _, q := range liveQueries {
		names = append(names, q.name)
	}
	return names
}

func defineLive() string {
	var b strings.Builder
	for _, q := range liveQueries {
		b.WriteString(q.define + ";\n")
	}
	return b.String()
}

// checkResult looks at a result in the log: it must be true of a place before its own, and never of an
// older one than the result before it.
func (t *truth) checkResult(e *logged, newest map[string]int64) *broken {
	if e.asOf >= e.id.Position {
		return breaks(current, "%s is true of %d, which it stands before", e.describe(), e.asOf)
	}
	if e.asOf > 0 && e.asOf < newest[e.topic] {
		return breaks(current, "%s is true of %d, the one before it was of %d", e.describe(), e.asOf, newest[e.topic])
	}
	newest[e.topic] = e.asOf // a definition's begin has 0
	return nil
}

// held is the newest result that a client has of a live query.
type held struct {
	asOf  int64
	stale bool
	data  string
}

// result takes a result, as it comes in its place of the log or, without an id, when a client comes.
func (c *client) result(m *trumpettest.Message) *broken {
	before, had := c.results[m.Topic]
	now := held{m.AsOf, m.Stale, string(m.Data)}
	if m.Data == nil {
		now.asOf = 0 // a definition begins, or ended
	}
	c.run.tally.results.Add(1)
	c.results[m.Topic] = now
	switch {
	case !had || now.asOf == 0:
	case now.asOf < before.asOf:
		return breaks(current, "%s of %d came after the one of %d", m.Topic, now.asOf, before.asOf)
	case now.asOf == before.asOf && now.data != before.data:
		return breaks(current, "two results of %s are true of %d: %.300s, and %.300s", m.Topic, now.asOf, before.data, now.data)
	}
	return nil
}

// answers asks for what the live queries must give, and, of the database, what they gave.
func (r *run) answers(ctx context.Context) (want map[string]string, differs *broken, err error) {
	want = map[string]string{}
	err = pgx.BeginTxFunc(ctx, r.db.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		for _, q := range liveQueries {
			var value, got, reason string
			var stale bool
			if err := tx.QueryRow(ctx, "select coalesce(json_agg(row_to_json(q)), '[]')::text from ("+q.query+") q").Scan(&value); err != nil {
				return fmt.Errorf("ask for %s: %w", q.name, err)
			}
			if err := tx.QueryRow(ctx, "select coalesce(value::text, ''), stale, coalesce(error, '') from trumpet.live_queries where name = $1", q.name).
				Scan(&got, &stale, &reason); err != nil {
				return fmt.Errorf("ask for the result of %s: %w", q.name, err)
			}
			want[q.name] = plain(value)
			if got = plain(got); stale || got != want[q.name] {
				differs = breaks(current, "the result of %s (stale: %v, %s) is %.1000s, and must be %.1000s", q.name, stale, reason, got, want[q.name])
			}
		}
		return nil
	})
	return want, differs, err
}

// number is a JSON number outside of strings, with a fraction.
var number = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|-?[0-9]+\.[0-9]+`)

// plain is JSON without white space, and numbers without zeros at their end: a sum of numbers whose type
// has no scale has as many digits as it needs.
func plain(text string) string {
	var b bytes.Buffer
	if json.Compact(&b, []byte(text)) != nil {
		return text
	}
	return number.ReplaceAllStringFunc(b.String(), func(s string) string {
		if s[0] == '"' {
			return s
		}
		return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
	})
}

// awaitAnswers waits until the live queries have results that are true now.
func (r *run) awaitAnswers(ctx context.Context) (want map[string]string) {
	began := time.Now()
	patience, cancel := context.WithTimeout(ctx, r.config.Patience)
	defer cancel()
	var last *broken
	for {
		want, differs, err := r.answers(patience)
		switch {
		case err != nil:
			last = breaks(current, "live queries could not be asked for: %v", err)
		case differs == nil:
			r.tally.answered(time.Since(began))
			return want
		default:
			last = differs
		}
		if !pause(patience, 100*time.Millisecond) {
			r.fail("live queries", breaks(current, "at rest, for %v: %s", r.config.Patience, last.what))
			return want
		}
	}
}

// compareResults compares the newest results that the client has. Its mu is held.
func (c *client) compareResults(want map[string]string) *broken {
	for _, q := range liveQueries {
		if c.interest[q.name] == 0 || want == nil {
			continue
		}
		if mine, ok := c.results[q.name]; !ok || mine.stale || plain(mine.data) != want[q.name] {
			return breaks(current, "its newest result of %s (stale: %v, true of %d) is %.1000s, and must be %.1000s", q.name, mine.stale, mine.asOf, mine.data, want[q.name])
		}
		c.run.tally.resultsCompared.Add(1)
	}
	return nil
}

// keeper is the worker that runs the live queries.
func (r *run) keeper(ctx context.Context) (*station, error) {
	var name string
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := r.db.pool.QueryRow(ctx, `select a.application_name from pg_locks l join pg_stat_activity a using (pid)
		where l.locktype = 'advisory' and l.classid = 1953656176 and l.objid = 6 and l.mode = 'ExclusiveLock' and l.granted limit 1`).Scan(&name)
	if err != nil {
		return nil, fmt.Errorf("find who runs live queries: %w", err)
	}
	for _, s := range r.stations {
		if strings.HasSuffix(name, " "+s.worker.Name) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%q runs live queries, and is no worker", name)
}
