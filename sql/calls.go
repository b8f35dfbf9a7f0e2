package sql

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Watch says how to watch a table; zero values leave a setting to trumpet.watch.
type Watch struct {
	// Table is a table's name as SQL spells it: jobs, app.jobs, "Odd Name".
	Table string
	// Columns and Key are names as they are stored. An empty Key that is not nil
	// means that rows have no key.
	Columns []string
	Key     []string
	Topic   string
	MaxRows int
	// Capture is triggers or wal.
	Capture string
}

// String is the statement that watches the table, with everything quoted, as it is run
// by Apply and as anybody else may run it.
func (w Watch) String() string {
	var b strings.Builder
	b.WriteString("select trumpet.watch(" + literal(w.Table))
	if w.Columns != nil {
		b.WriteString(", columns => " + textArray(w.Columns))
	}
	if w.Key != nil {
		b.WriteString(", key => " + textArray(w.Key))
	}
	if w.Topic != "" {
		b.WriteString(", topic => " + literal(w.Topic))
	}
	if w.MaxRows != 0 {
		b.WriteString(", max_rows => " + strconv.Itoa(w.MaxRows))
	}
	if w.Capture != "" {
		b.WriteString(", capture => " + literal(w.Capture))
	}
	b.WriteString(")")
	return b.String()
}

// Apply watches the table and returns the topic of its events.
func (w Watch) Apply(ctx context.Context, db Querier) (topic string, err error) {
	rows, err := db.Query(ctx, w.String())
	if err != nil {
		return "", fmt.Errorf("watch %s: %w", w.Table, err)
	}
	if topic, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[string]); err != nil {
		return "", fmt.Errorf("watch %s: %w", w.Table, err)
	}
	return topic, nil
}

// Unwatch is the end of watching a table, named as in Watch.
type Unwatch struct{ Table string }

// String is the statement that ends watching.
func (u Unwatch) String() string { return "select trumpet.unwatch(" + literal(u.Table) + ")" }

// Apply ends watching.
func (u Unwatch) Apply(ctx context.Context, db Querier) error {
	return call(ctx, db, "unwatch "+u.Table, u.String())
}

// GrantWorker lets a role do a worker's work, and nothing else.
func GrantWorker(ctx context.Context, db Querier, role string) error {
	return call(ctx, db, "grant to "+role, "select trumpet.grant_worker("+literal(role)+")")
}

func call(ctx context.Context, db Querier, what, statement string) error {
	rows, err := db.Query(ctx, statement)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// literal quotes a text so that it is the same with standard_conforming_strings on and off.
func literal(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		return "E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

func textArray(texts []string) string {
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = literal(text)
	}
	if len(quoted) == 0 {
		return "'{}'"
	}
	return "array[" + strings.Join(quoted, ", ") + "]"
}
