package pgbus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
)

// place is which server, and which of its histories, a connection came to.
type place struct {
	started  string // when its postmaster started: no two servers, or runs of one, have the same
	timeline uint64 // PostgreSQL manual, 26.3.6; 0 if the server does not tell
}

// places keeps the worker's connections at one server. A fail-over can leave the old primary
// alive, or bring it back: what it has is another history from the promotion on, and a worker that
// listened to the one and read from the other would miss events without a gap.
type places struct {
	mu       sync.Mutex
	here     place  // the listening session's
	timeline uint64 // the newest seen
}

// errStandby is a server that cannot listen.
var errStandby = errors.New("this server is a standby: LISTEN works on the primary only")

// arrive asks a new connection where it came to, and refuses an old timeline: then the next host
// is tried.
func (p *places) arrive(ctx context.Context, conn *pgconn.PgConn) (place, error) {
	at, err := askPlace(ctx, conn)
	if err != nil {
		return place{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if at.timeline > 0 && at.timeline < p.timeline {
		return place{}, fmt.Errorf("this server is an old primary, on timeline %d; this worker has seen timeline %d", at.timeline, p.timeline)
	}
	p.timeline = max(p.timeline, at.timeline)
	return at, nil
}

// settle notes where the listening session is, and reports whether that is another place than before.
func (p *places) settle(at place) (moved bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	moved = p.here != place{} && p.here != at
	p.here = at
	return moved
}

// follow refuses a connection that is not where the listening session is.
func (p *places) follow(ctx context.Context, conn *pgconn.PgConn) error {
	at, err := p.arrive(ctx, conn)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if at != p.here {
		return errors.New("this is not the server that this worker listens to")
	}
	return nil
}

// passed reports whether some connection has come to a newer timeline than the listening session's.
func (p *places) passed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.here.timeline > 0 && p.here.timeline < p.timeline
}

func askPlace(ctx context.Context, conn *pgconn.PgConn) (place, error) {
	row, err := askRow(ctx, conn, "select pg_is_in_recovery(), pg_postmaster_start_time()")
	if err != nil {
		return place{}, fmt.Errorf("ask where this is: %w", err)
	}
	if row[0] == "t" {
		return place{}, errStandby
	}
	at := place{started: row[1]}
	// Some hosted servers keep their WAL's functions to themselves.
	row, err = askRow(ctx, conn, "select left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)")
	var refused *pgconn.PgError
	switch {
	case errors.As(err, &refused):
		return at, nil
	case err != nil:
		return place{}, fmt.Errorf("ask for timeline: %w", err)
	}
	if at.timeline, err = strconv.ParseUint(row[0], 16, 32); err != nil {
		return place{}, fmt.Errorf("ask for timeline: %w", err)
	}
	return at, nil
}

// askRow returns the one row of a query, as text.
func askRow(ctx context.Context, conn *pgconn.PgConn, query string) ([]string, error) {
	results, err := conn.Exec(ctx, query).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return nil, errors.New("unexpected answer")
	}
	var row []string
	for _, value := range results[0].Rows[0] {
		row = append(row, string(value))
	}
	return row, nil
}
