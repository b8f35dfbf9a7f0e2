package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// slotPatience bounds how long a slot takes to come and go. A worker hears with its heartbeats, every two seconds,
// that it is to make one or to drop it.
const slotPatience = 30 * time.Second

// watch watches a table. With the WAL capture the events come once a worker has a slot: awaitSlot.
func (b *bench) watch(ctx context.Context, table string, by capture) error {
	_, err := b.conn.Exec(ctx, "select trumpet.watch($1::text::regclass, capture => $2)", table, string(by))
	return err
}

// awaitSlot waits until a worker reads the slot, and the events that tell of the slot's beginning have their places
// in the log: all that comes then are changes.
func (b *bench) awaitSlot(ctx context.Context) error {
	return b.awaitTrue(ctx, slotPatience, "a worker that reads the replication slot", `
		select exists (select from pg_replication_slots r join trumpet.wal_slot s on s.name = r.slot_name where r.active)
		   and not h.pending from trumpet.head() h`)
}

// awaitNoSlot waits until the slot is gone, which costs every commit of the server while it is there. No table may
// be watched by the WAL.
func (b *bench) awaitNoSlot(ctx context.Context) error {
	return b.awaitTrue(ctx, slotPatience, "the replication slot to be dropped",
		"select not exists (select from pg_replication_slots) and not exists (select from trumpet.wal_slot)")
}

// awaitSequenced waits until the records that there are have their places in the log.
func (b *bench) awaitSequenced(ctx context.Context) error {
	return b.awaitTrue(ctx, patience, "a worker that sequences what was written before", "select not pending from trumpet.head()")
}

// awaitTrue asks again and again until the answer is yes.
func (b *bench) awaitTrue(ctx context.Context, most time.Duration, what, query string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		var yes bool
		err := b.conn.QueryRow(ctx, query, args...).Scan(&yes)
		if err == nil && yes {
			return nil
		}
		if err == nil {
			err = sleep(ctx, 5*time.Millisecond)
		}
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
	}
}

// sender is the server's process that reads the WAL for a slot; 0: there is none.
type sender int

func (b *bench) sender(ctx context.Context) (s sender, err error) {
	err = b.conn.QueryRow(ctx, "select coalesce(max(active_pid), 0) from pg_replication_slots").Scan(&s)
	return s, err
}

// cpu is its processor time.
func (s sender) cpu() (time.Duration, error) {
	if s == 0 {
		return 0, nil
	}
	return cpuTime(int(s))
}

// awaitSender waits until the WAL that there is has been read for the slot.
func (b *bench) awaitSender(ctx context.Context) error {
	var end string
	if err := b.conn.QueryRow(ctx, "select pg_current_wal_insert_lsn()::text").Scan(&end); err != nil {
		return err
	}
	return b.awaitTrue(ctx, patience, "the slot's WAL to be read", "select coalesce(bool_and(sent_lsn >= $1::text::pg_lsn), false) from pg_stat_replication", end)
}

// behind is how far the log was behind its writers when they stopped.
type behind struct {
	commits int64         // had no place in it
	time    time.Duration // until all had one
}

// awaitLog waits until the log has gone so many commits past a position. It is called when the last of them has
// returned.
func (b *bench) awaitLog(ctx context.Context, from, commits int64) (lag behind, err error) {
	stopped := time.Now()
	for first := true; ; first = false {
		_, now, err := b.head(ctx)
		if err != nil {
			return lag, err
		}
		if first {
			lag.commits = max(0, commits-(now-from))
		}
		lag.time = time.Since(stopped)
		switch {
		case now-from >= commits:
			return lag, nil
		case lag.time > patience:
			return lag, fmt.Errorf("of %d commits %d have a place in the log after %v", commits, now-from, patience)
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return lag, err
		}
	}
}

// verifyLog compares the log after a position with what was committed since: so many updates of one row each, of one
// table. Its newest event of each row has to be what stands in the table.
func (b *bench) verifyLog(ctx context.Context, table string, from, commits int64) error {
	var count, others, wrong int64
	err := b.conn.QueryRow(ctx, `
		with told as materialized (
		  select l.position, r.op, r.rows, r.topic, r.after->0 as row
		    from trumpet.log l join trumpet.record r on r.xid = l.xid and r.id = l.id where l.position > $1),
		newest as (
		  select distinct on ((row->>'id')::int) (row->>'id')::int as id, row from told order by 1, position desc)
		select (select count(*) from told), (select count(*) from told where op <> 'update' or rows <> 1 or topic <> $2),
		       (select count(*) from newest n left join `+pgx.Identifier{table}.Sanitize()+` t on t.id = n.id where to_jsonb(t) is distinct from n.row::jsonb)`,
		from, table).Scan(&count, &others, &wrong)
	switch {
	case err != nil:
		return fmt.Errorf("read log: %w", err)
	case count != commits || others > 0:
		return fmt.Errorf("of %d commits to %s the log has %d events, and %d of these are something else", commits, table, count, others)
	case wrong > 0:
		return fmt.Errorf("the newest events of %d rows of %s are not what the table has", wrong, table)
	}
	return nil
}
