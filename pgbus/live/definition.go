package live

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// definition is one row of trumpet.live.
type definition struct {
	Name        string
	Version     int64
	Query       string // empty for an aggregate
	Aggregates  []aggregate
	GroupBy     []string
	Filter      string
	DependsOn   []string
	MinInterval time.Duration
	Timeout     time.Duration
	RunAs       string // empty: the worker's own role
	SearchPath  string
}

// aggregate is one of a live aggregate's functions.
type aggregate struct {
	Name     string `json:"name"`
	Function string `json:"function"` // count, sum, avg, min, max
	Column   string `json:"column"`   // empty: count(*)
}

// published is what a live query's newest result is.
type published struct {
	value  []byte // nil: none yet
	asOf   int64
	stale  bool
	reason string // why it is stale
}

// readDefinitions reads what live queries there are, and their newest results.
func readDefinitions(ctx context.Context, conn *pgx.Conn) (map[string]*query, error) {
	rows, err := conn.Query(ctx, `
		select l.name, l.version, coalesce(l.query, ''), l.aggregates::text, coalesce(l.group_by, '{}'), coalesce(l.filter, ''), l.depends_on,
		       (extract(epoch from l.min_interval) * 1000000)::bigint, (extract(epoch from l.timeout) * 1000000)::bigint,
		       coalesce(l.run_as, ''), l.search_path, r.value::text, r.as_of, r.error is not null, coalesce(r.error, '')
		  from trumpet.live l join trumpet.live_result r on r.name = l.name`)
	if err != nil {
		return nil, fmt.Errorf("read trumpet.live: %w", err)
	}
	queries := make(map[string]*query)
	var (
		d                 definition
		aggregates, value *string
		interval, timeout int64
		last              published
	)
	_, err = pgx.ForEachRow(rows, []any{&d.Name, &d.Version, &d.Query, &aggregates, &d.GroupBy, &d.Filter, &d.DependsOn,
		&interval, &timeout, &d.RunAs, &d.SearchPath, &value, &last.asOf, &last.stale, &last.reason}, func() error {
		q := &query{definition: d, last: last, forced: true}
		q.MinInterval, q.Timeout = time.Duration(interval)*time.Microsecond, time.Duration(timeout)*time.Microsecond
		if value != nil {
			q.last.value = []byte(oneLine(*value))
		}
		if aggregates != nil {
			if err := json.Unmarshal([]byte(*aggregates), &q.Aggregates); err != nil {
				return fmt.Errorf("aggregates of %q: %w", d.Name, err)
			}
		}
		queries[d.Name] = q
		d = definition{} // its slices are the query's now
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read trumpet.live: %w", err)
	}
	return queries, nil
}

// readTopics reads what all live queries depend on, and the definitions' versions.
func readTopics(ctx context.Context, conn *pgx.Conn) (topics []string, known map[string]int64, err error) {
	var (
		names    []string
		versions []int64
	)
	row := conn.QueryRow(ctx, `select array(select distinct unnest(l.depends_on) from trumpet.live l),
		array(select l.name from trumpet.live l order by l.name), array(select l.version from trumpet.live l order by l.name)`)
	if err := row.Scan(&topics, &names, &versions); err != nil {
		return nil, nil, fmt.Errorf("read trumpet.live: %w", err)
	}
	known = make(map[string]int64, len(names))
	for i, name := range names {
		known[name] = versions[i]
	}
	return topics, known, nil
}
