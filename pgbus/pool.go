package pgbus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// openPool makes a pool whose sessions have no prepared statements, and which asks nothing at rest.
func (b *Bus) openPool(ctx context.Context, role string, size int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(b.config.ConnString)
	if err != nil {
		return nil, fmt.Errorf("read database URL: %w", err)
	}
	config.ConnConfig = b.conn.Copy()
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		b.configure(c, role, b.places.follow)
		return nil
	}
	// No cached prepared statements: they would break when a migration changes a function.
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.MaxConns = size
	config.MinConns = 0
	// At rest nothing is asked of Postgres, health checks included.
	config.HealthCheckPeriod = time.Hour
	config.MaxConnIdleTime = time.Hour
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, ownDefaults)
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	return pool, nil
}

// errNotRunning is what calls get that come before Run has begun or after it has ended.
var errNotRunning = errors.New("the bus is not running")

// acquire gives a connection of the pool.
func (b *Bus) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	pool := b.pool.Load()
	if pool == nil {
		return nil, errNotRunning
	}
	return pool.Acquire(ctx)
}

// resetPools makes the pools leave all connections: those at rest at once, the others when they are
// given back.
func (b *Bus) resetPools() {
	for _, p := range []*atomic.Pointer[pgxpool.Pool]{&b.pool, &b.cutPool} {
		if pool := p.Load(); pool != nil {
			pool.Reset()
		}
	}
}
