package sql

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrSharedSession is wrapped by CheckSession's error.
var ErrSharedSession = errors.New("a connection pooler in transaction or statement mode stands between this program and Postgres, " +
	"and LISTEN does not work through it; connect to Postgres itself, or give this database pool_mode = session")

// sessionRounds is how often CheckSession looks again before it believes a pooler.
const sessionRounds = 3

// CheckSession returns an error if a pooler gives the statements of this connection to sessions that
// other connections use too. It leaves nothing behind in any of them. connect makes another connection
// the same way; it is called only where a pooler is seen.
//
// A pooler is seen by its telling another process id when connecting than the backend has. One in
// session mode keeps a backend for each connection. One in transaction mode lends this
// connection's backend to the other one, which is in a transaction, or gives this one another meanwhile.
func CheckSession(ctx context.Context, conn *pgconn.PgConn, connect func(context.Context) (*pgconn.PgConn, error)) error {
	backend, err := backendOf(ctx, conn, "")
	if err != nil || backend == conn.PID() {
		return err
	}
	other, err := connect(ctx)
	if err != nil {
		return fmt.Errorf("connect once more through the pooler: %w", err)
	}
	defer other.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is begun that would matter
	for range sessionRounds {
		borrowed, err := backendOf(ctx, other, "begin read only; ")
		var refused *pgconn.PgError
		switch {
		case errors.As(err, &refused) && refused.Code == "08P01":
			return ErrSharedSession // PgBouncer in statement mode allows no transactions
		case err != nil:
			return err
		}
		now, err := backendOf(ctx, conn, "")
		if err != nil {
			return err
		}
		// Before it closes, or the pooler would end the session that it lent.
		if err := other.Exec(ctx, "rollback").Close(); err != nil {
			return fmt.Errorf("end transaction: %w", err)
		}
		if borrowed == backend || now != backend {
			return ErrSharedSession
		}
	}
	return nil
}

// backendOf asks, behind another statement, which process answers.
func backendOf(ctx context.Context, conn *pgconn.PgConn, before string) (uint32, error) {
	results, err := conn.Exec(ctx, before+"select pg_catalog.pg_backend_pid()").ReadAll()
	if err != nil {
		return 0, fmt.Errorf("ask for backend: %w", err)
	}
	last := results[len(results)-1]
	if len(last.Rows) != 1 {
		return 0, errors.New("ask for backend: unexpected answer")
	}
	pid, err := strconv.ParseUint(string(last.Rows[0][0]), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("ask for backend: %w", err)
	}
	return uint32(pid), nil
}
