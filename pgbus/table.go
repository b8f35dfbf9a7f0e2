package pgbus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/singleflight"

	"github.com/trumpet-realtime/trumpet"
)

const (
	// tableAge is how long the definition of a table is taken to be what it was. Schema changes tell
	// nobody: a row that lacks a filter's column shows one. Then, and when clients come back, the
	// table is asked for again, and is at most this old.
	tableAge = time.Second
	// tableTimeout bounds the question, which is asked for all who wait, whoever of them goes.
	tableTimeout = 10 * time.Second
	// maxTables bounds the definitions that are kept: clients choose topics.
	maxTables = 1024
)

// tables keeps the definitions of watched tables for a moment, so that many clients who come at once
// cost one question for each topic.
type tables struct {
	flight singleflight.Group

	mu    sync.Mutex
	known map[string]knownTable
}

type knownTable struct {
	table trumpet.Table
	found bool
	asked time.Time
}

func newTables() *tables { return &tables{known: make(map[string]knownTable)} }

// get returns what is known and fresh.
func (t *tables) get(topic string) (knownTable, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, ok := t.known[topic]
	return known, ok && time.Since(known.asked) < tableAge
}

func (t *tables) put(topic string, known knownTable) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxTables {
		clear(t.known) // they are good for a second only
	}
	t.known[topic] = known
}

// Table returns the watched table whose events have the topic, with its watched columns; false if
// there is none. It is asked for at most once a second and topic, however many call.
func (b *Bus) Table(ctx context.Context, topic string) (trumpet.Table, bool, error) {
	if known, ok := b.tables.get(topic); ok {
		return known.table, known.found, nil
	}
	result := b.tables.flight.DoChan(topic, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tableTimeout)
		defer cancel()
		known := knownTable{asked: time.Now()}
		conn, err := b.acquire(ctx)
		if err != nil {
			return nil, err
		}
		defer conn.Release()
		d, err := readDefinition(ctx, conn, topic)
		if err != nil {
			return nil, err
		}
		known.table, known.found = d.table, d.found
		b.tables.put(topic, known)
		return known, nil
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return trumpet.Table{}, false, fmt.Errorf("read table of topic %q: %w", topic, r.Err)
		}
		known := r.Val.(knownTable)
		return known.table, known.found, nil
	case <-ctx.Done():
		return trumpet.Table{}, false, ctx.Err()
	}
}

// definition is a watched table and what reading it takes.
type definition struct {
	table  trumpet.Table
	found  bool
	picked bool // the watched columns were named: rows are rendered in another way
	// shown is what events show: the table's columns, and virtual ones, which are null there and
	// which no filter can therefore ask for.
	shown []shownColumn
	// missing is what lacks to read it, as statements for its owner; rowSecurity says that policies
	// would hide rows from this role.
	missing     []string
	rowSecurity bool
}

type shownColumn struct {
	name  string
	value string // as SQL
}

type queryer interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// readDefinition reads the definition of a topic's table.
func readDefinition(ctx context.Context, db queryer, topic string) (definition, error) {
	rows, err := db.Query(ctx, `
		select w.schema_name, w.table_name, w.key, w.picked, w."column", w.type, w.is_virtual, w.is_enum, w.labels,
		       quote_ident(w."column"), format('%I.%I', w.schema_name, w.table_name), quote_ident(current_user),
		       case when not has_schema_privilege(w.schema_name, 'usage') then quote_ident(w.schema_name) end,
		       coalesce(has_column_privilege(w.relation, w.number::int2, 'select'), true), -- dropped just now
		       coalesce(row_security_active(w.relation), false), not w.old_known
		  from trumpet.watched_columns($1) w order by w.number`, topic)
	if err != nil {
		return definition{}, err
	}
	d := definition{table: trumpet.Table{Topic: topic}}
	var (
		column                     trumpet.Column
		virtual, isEnum, readable  bool
		quotedColumn, quoted, role string
		closedSchema               *string
		unreadable                 string // columns
	)
	t := &d.table
	_, err = pgx.ForEachRow(rows, []any{
		&t.Schema, &t.Name, &t.Key, &d.picked, &column.Name, &column.Type, &virtual, &isEnum, &column.Labels,
		&quotedColumn, &quoted, &role, &closedSchema, &readable, &d.rowSecurity, &column.OldUnknown,
	}, func() error {
		if virtual {
			d.shown = append(d.shown, shownColumn{column.Name, "null as " + quotedColumn})
			column.Labels = nil
			return nil
		}
		d.shown = append(d.shown, shownColumn{column.Name, quotedColumn})
		column.Kind = trumpet.KindOf(column.Type)
		if isEnum {
			column.Kind = trumpet.KindEnum
		} else {
			column.Labels = nil
		}
		t.Columns = append(t.Columns, column)
		column.Labels = nil
		if !readable {
			if unreadable != "" {
				unreadable += ", "
			}
			unreadable += quotedColumn
		}
		return nil
	})
	if err != nil {
		return definition{}, err
	}
	d.found = len(t.Columns) > 0
	if closedSchema != nil {
		d.missing = append(d.missing, fmt.Sprintf("grant usage on schema %s to %s", *closedSchema, role))
	}
	switch {
	case unreadable == "":
	case d.picked: // no more than what events show
		d.missing = append(d.missing, fmt.Sprintf("grant select (%s) on %s to %s", unreadable, quoted, role))
	default:
		d.missing = append(d.missing, fmt.Sprintf("grant select on %s to %s", quoted, role))
	}
	return d, nil
}
