package sql

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// LiveSettings are what live queries and aggregates have in common.
type LiveSettings struct {
	MinInterval time.Duration // between two runs, or results
	Timeout     time.Duration
	RunAs       string // the role as which Postgres is asked
}

// LiveQuery says how to define a live query; zero values leave a setting to trumpet.live_query.
type LiveQuery struct {
	Name      string
	Query     string
	DependsOn []string // topics, or tables as SQL names them
	LiveSettings
}

// String is the statement that defines it, with everything quoted.
func (q LiveQuery) String() string {
	return "select trumpet.live_query(" + literal(q.Name) + ", " + literal(q.Query) + ", " + textArray(q.DependsOn) +
		q.settings() + ")"
}

// Apply defines it.
func (q LiveQuery) Apply(ctx context.Context, db Querier) error {
	return call(ctx, db, "define live query "+q.Name, q.String())
}

// LiveAggregate says how to define a live aggregate; zero values leave a setting to trumpet.live_aggregate.
type LiveAggregate struct {
	Name       string
	Table      string   // as SQL spells it
	Aggregates []string // count, sum(amount) as revenue, …
	GroupBy    []string // columns, as they are stored
	Filter     string   // as in a subscription: status=eq.open&priority=gt.1
	LiveSettings
}

// String is the statement that defines it, with everything quoted.
func (a LiveAggregate) String() string {
	var b strings.Builder
	b.WriteString("select trumpet.live_aggregate(" + literal(a.Name) + ", " + literal(a.Table))
	if a.Aggregates != nil {
		b.WriteString(", aggregates => " + textArray(a.Aggregates))
	}
	if a.GroupBy != nil {
		b.WriteString(", group_by => " + textArray(a.GroupBy))
	}
	if a.Filter != "" {
		b.WriteString(", filter => " + literal(a.Filter))
	}
	return b.String() + a.settings() + ")"
}

// Apply defines it.
func (a LiveAggregate) Apply(ctx context.Context, db Querier) error {
	return call(ctx, db, "define live aggregate "+a.Name, a.String())
}

func (s LiveSettings) settings() string {
	var b strings.Builder
	for _, setting := range []struct {
		name string
		is   time.Duration
	}{{"min_interval", s.MinInterval}, {"timeout", s.Timeout}} {
		if setting.is != 0 {
			fmt.Fprintf(&b, ", %s => '%d milliseconds'", setting.name, setting.is.Milliseconds())
		}
	}
	if s.RunAs != "" {
		b.WriteString(", run_as => " + literal(s.RunAs))
	}
	return b.String()
}

// DropLive is the end of a live query or aggregate.
type DropLive struct{ Name string }

// String is the statement that drops it.
func (d DropLive) String() string { return "select trumpet.drop_live_query(" + literal(d.Name) + ")" }

// Apply drops it.
func (d DropLive) Apply(ctx context.Context, db Querier) error {
	return call(ctx, db, "drop live query "+d.Name, d.String())
}

// Live is a live query or aggregate, and how it is.
type Live struct {
	Name        string        `json:"name"`
	Kind        string        `json:"kind"` // query or aggregate
	Definition  string        `json:"definition"`
	DependsOn   []string      `json:"depends_on"`
	MinInterval time.Duration `json:"-"`
	Timeout     time.Duration `json:"-"`
	RunAs       *string       `json:"run_as"` // nil: the workers' role
	Stale       bool          `json:"stale"`
	Error       *string       `json:"error"` // why it is stale
	Since       time.Time     `json:"since"` // it is so
	AsOf        *int64        `json:"as_of"` // nil: there is no result yet
	PublishedAt time.Time     `json:"published_at"`
}

// ListLive returns all live queries and aggregates, by name.
func ListLive(ctx context.Context, db Querier) ([]Live, error) {
	rows, err := db.Query(ctx, `select l.name, l.kind, l.definition, l.depends_on,
		(extract(epoch from l.min_interval) * 1000000)::bigint * 1000, (extract(epoch from l.timeout) * 1000000)::bigint * 1000,
		l.run_as::text, l.stale, l.error, l.since, l.as_of, l.published_at from trumpet.live_queries l order by l.name`)
	if err != nil {
		return nil, fmt.Errorf("read trumpet.live_queries: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Live])
	if err != nil {
		return nil, fmt.Errorf("read trumpet.live_queries: %w", err)
	}
	return list, nil
}
