package pgbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trumpet-realtime/trumpet"
)

const (
	// maxCuts bounds the cuts that this worker reads in at once, and maxSnapshots those of them that
	// are ReadSnapshot's: two live queries need not wait for two large tables to be read.
	maxCuts      = 4
	maxSnapshots = 2
	// cutPoolSize is a session for each cut, and one more in which one of them at a time is made: no
	// cut ever waits for a session that another one has.
	cutPoolSize = maxCuts + 1
	// cutTimeout bounds the making of a cut, in which a backlog may have to be sequenced first.
	cutTimeout = 30 * time.Second
	// cutLockTimeout bounds the waiting for a table that is being altered: others wait behind.
	cutLockTimeout = 3 * time.Second
	// cutIdleTimeout ends a reading session that asks nothing: as long as its snapshot is held,
	// autovacuum removes nothing that it sees.
	cutIdleTimeout = 10 * time.Second
)

// cuts is what making and reading cuts needs. It has sessions of its own: reading a table may take
// long, and must not keep clients from the log.
type cuts struct {
	reading   chan struct{} // maxCuts slots
	snapshots chan struct{} // maxSnapshots slots
	making    chan struct{} // one slot
}

func newCuts() *cuts {
	return &cuts{
		reading:   make(chan struct{}, maxCuts),
		snapshots: make(chan struct{}, maxSnapshots),
		making:    make(chan struct{}, 1),
	}
}

// take waits for a slot.
func take(ctx context.Context, slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Cut runs read inside a transaction, REPEATABLE READ and READ ONLY, that sees exactly what the log
// holds up to at: what the events up to at made of the database, and nothing of those after. It
// waits while four others of this worker are being read. Settings that read makes must be local
// to the transaction.
//
// A cut is one step of the sequencer. Its snapshot is exported by the statement that decides which
// records get a position; the reading transaction imports it, and then the step is committed. Only
// then does the position exist, so where that commit fails nothing is read.
//
// One thing is not as the snapshot has it: a table that is truncated, or rewritten by ALTER TABLE,
// between the snapshot and the reading looks empty (PostgreSQL manual, 13.6). Then read is called
// again, with another cut, before which the table was locked.
func (b *Bus) Cut(ctx context.Context, read func(ctx context.Context, tx pgx.Tx, at trumpet.EventID) error) error {
	done, err := take(ctx, b.cuts.reading)
	if err != nil {
		return fmt.Errorf("cut: %w", err)
	}
	defer done()
	var rewritten []string
	for range maxRewritten {
		var found []string
		if found, err = b.cut(ctx, rewritten, read); !errors.Is(err, errRewritten) {
			return err
		}
		rewritten = append(rewritten, found...)
	}
	return err
}

// errRewritten is a cut in which tables looked empty. maxRewritten is how often that may happen.
var errRewritten = errors.New("other tables are being rewritten again and again")

const maxRewritten = 3

// cut makes a cut and reads. Tables that are to be locked first, so that nobody rewrites them in
// between, are named as SQL does. With errRewritten it returns those that were rewritten
// and can be locked.
func (b *Bus) cut(ctx context.Context, lock []string, read func(ctx context.Context, tx pgx.Tx, at trumpet.EventID) error) (rewritten []string, err error) {
	pool := b.cutPool.Load()
	if pool == nil {
		return nil, fmt.Errorf("cut: %w", errNotRunning)
	}
	reader, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("cut: %w", err)
	}
	defer reader.Release()
	begin := fmt.Sprintf("begin isolation level repeatable read, read only; set local lock_timeout = %d; set local idle_in_transaction_session_timeout = %d",
		cutLockTimeout.Milliseconds(), cutIdleTimeout.Milliseconds())
	for _, table := range lock {
		begin += "; lock table " + table + " in access share mode"
	}
	tx, err := reader.BeginTx(ctx, pgx.TxOptions{BeginQuery: begin})
	if err != nil {
		return nil, fmt.Errorf("cut: begin: %w", err)
	}
	defer rollback(ctx, tx) // it wrote nothing, and changed settings only for itself
	at, err := b.makeCut(ctx, pool, tx)
	if err != nil {
		return nil, fmt.Errorf("cut: %w", err)
	}
	if err := read(ctx, tx, at); err != nil {
		return nil, err
	}
	// What was read is locked now. The query sees pg_class as the snapshot does, the functions as it
	// is. A partition cannot be locked with the rights on the whole table, nor any with those on columns.
	var count int
	if err := tx.QueryRow(ctx, `
		select count(*), coalesce(array_agg(distinct pg_catalog.format('%I.%I', n.nspname, whole.relname))
		                            filter (where pg_catalog.has_table_privilege(session_user, whole.oid, 'select')), '{}')
		  from pg_catalog.pg_locks l
		  join pg_catalog.pg_class c on c.oid = l.relation
		  join pg_catalog.pg_class whole on whole.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)
		  join pg_catalog.pg_namespace n on n.oid = whole.relnamespace
		 where l.pid = pg_catalog.pg_backend_pid() and l.locktype = 'relation' and c.relkind in ('r', 'm')
		   and c.relfilenode <> 0 and c.relfilenode <> pg_catalog.pg_relation_filenode(c.oid)`).Scan(&count, &rewritten); err != nil {
		return nil, fmt.Errorf("cut: look for rewritten tables: %w", err)
	}
	if count > 0 {
		return rewritten, errRewritten
	}
	return nil, nil
}

// makeCut makes a cut, and what the transaction sees.
func (b *Bus) makeCut(ctx context.Context, pool *pgxpool.Pool, tx pgx.Tx) (at trumpet.EventID, err error) {
	ctx, cancel := context.WithTimeout(ctx, cutTimeout)
	defer cancel()
	done, err := take(ctx, b.cuts.making)
	if err != nil {
		return trumpet.EventID{}, err
	}
	defer done()
	maker, err := pool.Acquire(ctx)
	if err != nil {
		return trumpet.EventID{}, err
	}
	defer maker.Release()
	step, err := maker.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return trumpet.EventID{}, fmt.Errorf("begin: %w", err)
	}
	defer rollback(ctx, step)
	var (
		tag       int32
		snapshot  string
		upto, end *string
	)
	// Without a position the WAL has to be read first, up to where it ends now. Whoever has the duty is woken
	// by another session: a notification from this one would come with the commit.
	row := step.QueryRow(ctx, "select coalesce(position, 0), coalesce(last_ordinal, 0), coalesce(tag, 0), snapshot, upto::text, wal::text from trumpet.cut()")
	if err := row.Scan(&at.Position, &at.Ordinal, &tag, &snapshot, &upto, &end); err != nil {
		return trumpet.EventID{}, fmt.Errorf("sequence: %w", err)
	}
	if upto != nil {
		conn, err := b.acquire(ctx)
		if err != nil {
			return trumpet.EventID{}, err
		}
		_, err = conn.Exec(ctx, "select pg_notify($1, '')", channelWake)
		conn.Release()
		if err != nil {
			return trumpet.EventID{}, fmt.Errorf("wake the sequencer: %w", err)
		}
		row := step.QueryRow(ctx, "select position, last_ordinal, tag from trumpet.cut_until($1::text::pg_snapshot, $2::text::pg_lsn)", *upto, *end)
		if err := row.Scan(&at.Position, &at.Ordinal, &tag); err != nil {
			return trumpet.EventID{}, fmt.Errorf("sequence: %w", err)
		}
	}
	at.Tag = uint32(tag)
	// Until the commit nobody else sequences.
	if _, err := tx.Exec(ctx, "set transaction snapshot '"+snapshot+"'"); err != nil {
		return trumpet.EventID{}, fmt.Errorf("import snapshot: %w", err)
	}
	if err := step.Commit(ctx); err != nil {
		return trumpet.EventID{}, fmt.Errorf("commit: %w", err)
	}
	return at, nil
}

// rollback ends a transaction, whether its context is still good or not, within the time that a
// cancel request has. After a commit it does nothing.
func rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	if err := tx.Rollback(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		_ = tx.Conn().Close(ctx) // the pool takes no session back that may still be in a transaction
	}
}
