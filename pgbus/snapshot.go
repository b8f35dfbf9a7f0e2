package pgbus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet"
)

const (
	// snapshotTimeout bounds the reading of one table.
	snapshotTimeout = 15 * time.Second
	// snapshotPageRows and snapshotPageBytes end a page.
	snapshotPageRows  = 500
	snapshotPageBytes = 256 << 10
)

// asCaptured sets what trumpet.capture() sets, so that rows look the same here and there. With
// row_security off a policy that would hide rows is an error: a snapshot that lacks rows of which
// events tell would be wrong without anybody noticing.
var asCaptured = fmt.Sprintf(`set local search_path = pg_catalog, pg_temp; set local timezone = 'UTC';
	set local intervalstyle = 'postgres'; set local datestyle = 'ISO, MDY'; set local bytea_output = 'hex';
	set local extra_float_digits = 1; set local row_security = off; set local jit = off;
	set local statement_timeout = %d`, snapshotTimeout.Milliseconds())

// ReadSnapshot reads rows of watched tables, all in one cut, with the place in the log that they are
// true of. It waits while two others are being read. A *trumpet.Refusal says what is wrong: with
// trumpet.ErrNotReadable this worker's role may not read a table, or row-level security would hide
// rows from it; with trumpet.ErrTooLarge there are more rows or bytes than the limits allow, or
// reading them takes too long; with trumpet.ErrFilter a topic with a matcher is no watched table any
// more, or has lost a column of it. Other topics that are no watched tables are left out.
func (b *Bus) ReadSnapshot(ctx context.Context, topics []trumpet.SnapshotRequest, limits trumpet.SnapshotLimits) (trumpet.Snapshot, error) {
	limits.Rows = cmp.Or(limits.Rows, trumpet.DefaultSnapshotRows)
	limits.Bytes = cmp.Or(limits.Bytes, trumpet.DefaultSnapshotBytes)
	done, err := take(ctx, b.cuts.snapshots)
	if err != nil {
		return trumpet.Snapshot{}, fmt.Errorf("read snapshot: %w", err)
	}
	defer done()
	var snapshot trumpet.Snapshot
	err = b.Cut(ctx, func(ctx context.Context, tx pgx.Tx, at trumpet.EventID) error {
		snapshot = trumpet.Snapshot{At: at}
		if _, err := tx.Exec(ctx, asCaptured); err != nil {
			return fmt.Errorf("set up session: %w", err)
		}
		for _, request := range topics {
			pages, found, err := readTopic(ctx, tx, request, limits)
			if err != nil {
				return err
			}
			if !found {
				continue
			}
			snapshot.Topics = append(snapshot.Topics, trumpet.TopicSnapshot{Topic: request.Topic, Pages: pages})
		}
		return nil
	})
	if err != nil {
		return trumpet.Snapshot{}, fmt.Errorf("read snapshot: %w", err)
	}
	return snapshot, nil
}

func readTopic(ctx context.Context, tx pgx.Tx, request trumpet.SnapshotRequest, limits trumpet.SnapshotLimits) (_ [][]json.RawMessage, found bool, _ error) {
	d, err := readDefinition(ctx, tx, request.Topic)
	switch {
	case err != nil:
		return nil, false, fmt.Errorf("read table of topic %q: %w", request.Topic, err)
	case !d.found && len(request.Matchers) == 0:
		return nil, false, nil
	case !d.found:
		return nil, false, trumpet.Refuse(trumpet.ErrFilter, "topic %s is not a watched table any more, so it cannot be filtered", request.Topic)
	case len(d.missing) > 0:
		return nil, false, trumpet.Refuse(trumpet.ErrNotReadable, "the rows of topic %s cannot be read; the table's owner has to run: %s",
			request.Topic, strings.Join(d.missing, "; "))
	case d.rowSecurity:
		return nil, false, trumpet.Refuse(trumpet.ErrNotReadable, "the rows of topic %s cannot be read: row-level security would hide some of them "+
			"from Trumpet's role, which needs the attribute BYPASSRLS", request.Topic)
	}
	query, args, err := snapshotQuery(d, request.Matchers, limits)
	if err != nil {
		return nil, false, err
	}
	pages, err := readPages(ctx, tx, query, args, request.Topic, limits)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && ctx.Err() == nil {
		switch pg.Code {
		case "57014": // statement_timeout
			return nil, false, trumpet.Refuse(trumpet.ErrTooLarge, "reading the rows of topic %s takes longer than %v; give a filter that an index supports",
				request.Topic, snapshotTimeout)
		case "54000", "53200": // a row of more than 1 GB
			return nil, false, tooLarge(request.Topic, limits)
		}
	}
	if err != nil {
		return nil, false, fmt.Errorf("read rows of topic %q: %w", request.Topic, err)
	}
	return pages, true, nil
}

func tooLarge(topic string, limits trumpet.SnapshotLimits) error {
	return trumpet.Refuse(trumpet.ErrTooLarge, "topic %s has more than a snapshot may hold, %d rows and %d MiB; give a filter",
		topic, limits.Rows, limits.Bytes>>20)
}

// snapshotQuery is the query for a topic's rows. It names the watched columns only: the worker's role
// needs no right on the others.
func snapshotQuery(d definition, matchers []*trumpet.Matcher, limits trumpet.SnapshotLimits) (string, []any, error) {
	columns := make([]string, len(d.shown))
	for i, c := range d.shown {
		columns[i] = c.value
	}
	args := []any{limits.Bytes}
	var where []byte
	for _, m := range matchers {
		// The table may have changed since the matcher was made.
		m, err := m.Subscription().Compile(d.table)
		if err != nil {
			return "", nil, err
		}
		if len(where) > 0 {
			where = append(where, " or "...)
		}
		where = append(where, '(')
		where, args = appendCondition(where, m, args)
		where = append(where, ')')
	}
	if len(where) == 0 {
		where = []byte("true")
	}
	order := ""
	if len(d.table.Key) > 0 {
		keys := make([]string, len(d.table.Key))
		for i, k := range d.table.Key {
			keys[i] = pgx.Identifier{k}.Sanitize()
		}
		order = " order by " + strings.Join(keys, ", ")
	}
	// As trumpet.capture(), trumpet.pick_columns() and trumpet.line() make it.
	row := "row_to_json(r.*)::text"
	if d.picked {
		row = pickedRow(d.shown)
	}
	return fmt.Sprintf(`select case when octet_length(q.row) <= $1::bigint then q.row end from (
		select translate(%s, E'\t\n\r', '   ') as row from (
		select %s from %s where %s%s limit %d) r offset 0) q`,
		row, strings.Join(columns, ", "), pgx.Identifier{d.table.Schema, d.table.Name}.Sanitize(), where, order, limits.Rows+1), args, nil
}

// pickedRow renders a row as json_object_agg does in trumpet.pick_columns(), but without parsing what
// row_to_json made, which is slower and fails for "\u0000" in a json column.
func pickedRow(columns []shownColumn) string {
	var b strings.Builder
	for i, c := range columns {
		separator := ", "
		if i == 0 {
			separator = "{ "
		}
		name := pgx.Identifier{c.name}.Sanitize()
		fmt.Fprintf(&b, "'%s' || to_json(%s::text)::text || ' : ' || coalesce(to_json(r.%s)::text, 'null') || ", separator, quoteLiteral(c.name), name)
	}
	return b.String() + "' }'"
}

// quoteLiteral quotes a text as a literal that does not depend on standard_conforming_strings.
func quoteLiteral(text string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, "'", "''").Replace(text) + "'"
}

// readPages runs the query. What is too large is not read to its end: the session is given up.
func readPages(ctx context.Context, tx pgx.Tx, query string, args []any, topic string, limits trumpet.SnapshotLimits) ([][]json.RawMessage, error) {
	queryCtx, stop := context.WithCancel(ctx)
	defer stop()
	rows, err := tx.Query(queryCtx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var (
		pages [][]json.RawMessage
		page  pageBuilder
		count int
		bytes int64
	)
	for rows.Next() {
		row := rows.RawValues()[0]
		count++
		bytes += int64(len(row))
		if row == nil || count > limits.Rows || bytes > limits.Bytes {
			stop()
			return nil, tooLarge(topic, limits)
		}
		page.add(row)
		if page.full() {
			pages = append(pages, page.finish())
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if rest := page.finish(); rest != nil {
		pages = append(pages, rest)
	}
	return pages, nil
}

// pageBuilder puts the rows of a page in one piece of memory.
type pageBuilder struct {
	bytes []byte
	ends  []int
}

func (p *pageBuilder) add(row []byte) {
	p.bytes = append(p.bytes, row...)
	p.ends = append(p.ends, len(p.bytes))
}

func (p *pageBuilder) full() bool {
	return len(p.ends) >= snapshotPageRows || len(p.bytes) >= snapshotPageBytes
}

func (p *pageBuilder) finish() []json.RawMessage {
	if len(p.ends) == 0 {
		return nil
	}
	rows := make([]json.RawMessage, len(p.ends))
	from := 0
	for i, end := range p.ends {
		rows[i] = p.bytes[from:end:end]
		from = end
	}
	*p = pageBuilder{}
	return rows
}
