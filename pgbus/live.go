package pgbus

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
)

// liveBus is how the runner of live queries sees the bus.
type liveBus struct{ *Bus }

// Condition appends a filter as SQL.
func (liveBus) Condition(dst []byte, m *trumpet.Matcher, args []any) ([]byte, []any) {
	return appendCondition(dst, m, args)
}

// Session opens a session that has a duty.
func (b liveBus) Session(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	config := b.connConfig("live", b.places.follow)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if _, err := conn.PgConn().Exec(ctx, longLived).ReadAll(); err != nil {
		closeConn(conn.PgConn())
		return nil, fmt.Errorf("set up session: %w", err)
	}
	return conn, nil
}

// Ask lends a session of the pool.
func (b liveBus) Ask(ctx context.Context, ask func(ctx context.Context, conn *pgx.Conn) error) error {
	conn, err := b.acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return ask(ctx, conn.Conn())
}

// liveAgain tells the runner of live queries that what it heard may be void.
func (b *Bus) liveAgain() {
	if b.live != nil {
		b.live.Again()
	}
}

// retain gives the sink the newest results of live queries: the log may hold them no more, or
// farther back than a worker that starts reads.
func (d *deliverer) retain(ctx context.Context) error {
	var results []trumpet.Event
	err := d.persist(ctx, "results of live queries", func(ctx context.Context) error {
		conn, err := d.bus.acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		rows, err := conn.Query(ctx, "select name, at, as_of, value, error, position, tag from trumpet.live_results()")
		if err != nil {
			return err
		}
		results, err = pgx.CollectRows(rows, toResult)
		return err
	})
	if results = before(results, d.bus.Status().Head); err == nil && len(results) > 0 {
		d.bus.sink.Retain(results)
	}
	return err
}

// before leaves out results that come in their place of the log yet: given now, they would be followed by older
// ones.
func before(results []trumpet.Event, head trumpet.EventID) []trumpet.Event {
	return slices.DeleteFunc(results, func(e trumpet.Event) bool { return e.ID.Position > head.Position })
}

// toResult reads one row of trumpet.live_results().
func toResult(row pgx.CollectableRow) (trumpet.Event, error) {
	event := trumpet.Event{Op: trumpet.OpResult}
	var (
		at            time.Time
		value, reason *string
		position      *int64
		tag           *int32
	)
	if err := row.Scan(&event.Topic, &at, &event.AsOf, &value, &reason, &position, &tag); err != nil {
		return trumpet.Event{}, err
	}
	event.At = at.UTC()
	if value != nil {
		event.Data = json.RawMessage(*value)
	}
	if reason != nil {
		event.Stale, event.Error = true, *reason
	}
	if position != nil && tag != nil {
		event.ID = trumpet.EventID{Position: *position, Tag: uint32(*tag)}
	}
	return event, nil
}
