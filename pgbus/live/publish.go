package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// publish publishes a result, unless it is what was published before.
func (h *holder) publish(ctx context.Context, q *query, value []byte, asOf int64) error {
	if q.failures > 0 {
		h.log.Info("live query runs again", "name", q.Name, "failures", q.failures)
	}
	q.failures, q.retryAt, q.refused = 0, time.Time{}, nil
	if !q.last.stale && q.last.value != nil && bytes.Equal(q.last.value, value) {
		h.unchanged.Add(1)
		return nil
	}
	taken, err := h.store(ctx, q, asOf, value, "", "")
	if err != nil {
		return err
	}
	if !taken { // a query runs again, a keeper's result is given again
		q.retryAt = time.Now().Add(retryFirst)
		q.refused = &kept{query: q, value: value, asOf: asOf}
		return nil
	}
	q.last = published{value: value, asOf: asOf}
	h.published.Add(1)
	return nil
}

// failed marks a live query's value stale, once, and has it tried again.
func (h *holder) failed(ctx context.Context, q *query, reason error) error {
	h.failures.Add(1)
	q.retryAt = time.Now().Add(jitter(min(retryFirst<<min(q.failures, 20), retryLongest)))
	q.failures++
	public, detail := q.reasons(reason)
	if q.failures == 1 {
		h.log.Warn("live query failed, its value is stale", "name", q.Name, "error", detail)
	} else {
		h.log.Debug("live query failed again", "name", q.Name, "error", detail)
		if q.told {
			return nil
		}
	}
	q.told = true
	if q.last.stale && q.last.reason == public {
		return nil // published by whoever had the duty before
	}
	taken, err := h.store(ctx, q, q.last.asOf, nil, public, detail)
	if q.told = taken; err != nil || !taken {
		return err
	}
	q.last.stale, q.last.reason = true, public
	return nil
}

// store publishes on the session that has the duty. If that is refused, the definitions are read anew.
func (h *holder) store(ctx context.Context, q *query, asOf int64, value []byte, public, detail string) (taken bool, err error) {
	var rows, reason, full *string
	if public == "" {
		text := string(value)
		rows = &text
	} else {
		reason, full = &public, &detail
	}
	lost := false
	err = h.ask(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		err := conn.QueryRow(ctx, "select trumpet.publish_result($1, $2, $3, $4::text::json, $5, $6)", q.Name, q.Version, asOf, rows, reason, full).Scan(&taken)
		lost = conn.IsClosed()
		return err
	})
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && !lost:
		h.log.Error("cannot publish the result of a live query", "name", q.Name, "error", err)
		h.failures.Add(1)
		q.retryAt = time.Now().Add(retryLongest)
		return false, nil
	case err != nil:
		return false, fmt.Errorf("publish result of live query: %w", err)
	}
	h.signed = time.Now()
	if !taken {
		h.notes.note(&h.notes.look)
	}
	return taken, nil
}
