package live

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet"
)

const (
	// maxResultBytes bounds a result; trumpet.publish_result has the same bound.
	maxResultBytes = 1 << 20
	// cutGrace is how long a run may take beside its query: to make the cut, and to
	// notice that a connection is dead.
	cutGrace = 40 * time.Second
)

// errTooLarge is a result above maxResultBytes.
var errTooLarge = fmt.Errorf("the result has more than %d bytes", maxResultBytes)

// inCut runs read in a cut, as the definition's role, with its settings and time-out.
func (d *definition) inCut(ctx context.Context, bus Bus, read func(ctx context.Context, tx pgx.Tx, at trumpet.EventID) error) error {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout+cutGrace)
	defer cancel()
	return bus.Cut(ctx, func(ctx context.Context, tx pgx.Tx, at trumpet.EventID) error {
		// Values look as they do in events. The role is set last, by which it may set what it may not else.
		_, err := tx.Exec(ctx, `select pg_catalog.set_config('statement_timeout', $1, true), pg_catalog.set_config('timezone', 'UTC', true),
			pg_catalog.set_config('datestyle', 'ISO, MDY', true), pg_catalog.set_config('intervalstyle', 'postgres', true),
			pg_catalog.set_config('bytea_output', 'hex', true), pg_catalog.set_config('extra_float_digits', '1', true),
			pg_catalog.set_config('standard_conforming_strings', 'on', true), pg_catalog.set_config('search_path', $2, true),
			case when $3::text <> '' then pg_catalog.set_config('role', $3::text, true) end`,
			fmt.Sprint(max(d.Timeout.Milliseconds(), 1)), d.SearchPath, d.RunAs)
		if err != nil {
			return err
		}
		return read(ctx, tx, at)
	})
}

// runQuery gives a query's rows, as a JSON array, and the position that they are true of.
func (d *definition) runQuery(ctx context.Context, bus Bus) (value []byte, asOf int64, err error) {
	err = d.inCut(ctx, bus, func(ctx context.Context, tx pgx.Tx, at trumpet.EventID) error {
		asOf = at.Position
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // of a result that is too large the rest is not read
		rows, err := tx.Query(ctx, "select pg_catalog.row_to_json(q)::text from ("+d.Query+"\n) q")
		if err != nil {
			return err
		}
		defer rows.Close()
		value = []byte{'['}
		for rows.Next() {
			if len(value) > 1 {
				value = append(value, ',')
			}
			row := rows.RawValues()[0]
			if len(value)+len(row) > maxResultBytes {
				return errTooLarge
			}
			value = append(value, row...)
		}
		value = append(value, ']')
		return rows.Err()
	})
	return []byte(oneLine(string(value))), asOf, err
}

// lineEnds are white space between JSON's values: within strings they are escaped.
var lineEnds = strings.NewReplacer("\n", " ", "\r", " ", "\t", " ")

func oneLine(json string) string { return lineEnds.Replace(json) }

// reasons says why there is no result: to clients, without what may stand in the database; and to operators.
func (d *definition) reasons(err error) (public, detail string) {
	var pg *pgconn.PgError
	var refusal *trumpet.Refusal
	switch {
	case errors.As(err, &pg) && pg.Code == "57014", errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("took longer than %v", d.Timeout), fmt.Sprintf("took longer than its timeout of %v", d.Timeout)
	case errors.As(err, &pg) && pg.Code == "42501":
		return "its role may not read what it reads", pg.Message + hint(pg)
	case errors.As(err, &pg):
		return "failed with SQLSTATE " + pg.Code, pg.Message + hint(pg)
	case errors.Is(err, errTooLarge), errors.Is(err, errTooManyGroups), errors.As(err, &refusal):
		return err.Error(), err.Error()
	}
	return "could not be run", err.Error()
}

func hint(pg *pgconn.PgError) string {
	if pg.Hint == "" {
		return ""
	}
	return " (" + pg.Hint + ")"
}
