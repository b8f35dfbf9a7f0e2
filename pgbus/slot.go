package pgbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// slotName is SQL: names of slots are the cluster's, so this one has the database in it. Another one is made
// beside a slot whose reader is frozen: slotNames is the condition for all of them.
const (
	slotName  = "(select 'trumpet_' || oid from pg_database where datname = current_database())"
	slotNames = "s.slot_name ~ ('^' || " + slotName + " || '(_[1-9])?$')"
)

type madeSlot struct {
	name string
	lsn  pglogrepl.LSN
	err  error
}

// startMaking makes a slot beside everything else.
func (c *capture) startMaking(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	c.endMaking = func() {
		cancel()
		<-done
	}
	go func() {
		defer close(done)
		c.making <- c.bus.makeSlot(ctx) // it has room for the one
		poke(c.bus.sequencer.now)
	}()
}

// makeSlot makes this database's replication slot, anew if there is one. It waits until every transaction
// that writes now has ended (PostgreSQL manual, 47.2), however long that takes.
func (b *Bus) makeSlot(ctx context.Context) madeSlot {
	fail := func(err error) madeSlot { return madeSlot{err: err} }
	began := time.Now()
	conn, err := b.connectReplication(ctx)
	if err != nil {
		return fail(explainSlot(err))
	}
	defer closeConn(conn)
	row, err := askRow(ctx, conn, "select "+slotName+`, current_setting('wal_level'), current_setting('server_version_num'),
		exists (select from pg_publication where pubname = 'trumpet'),
		(select count(pg_terminate_backend(s.active_pid)) from pg_replication_slots s where `+slotNames+" and s.active)")
	if err != nil {
		return fail(err)
	}
	switch {
	case row[1] != "logical":
		return fail(fmt.Errorf("wal_level is %s; alter system set wal_level = logical; and restart Postgres", row[1]))
	case row[3] != "t":
		return fail(errors.New("there is no publication trumpet; watch the tables again: select trumpet.watch('…', capture => 'wal')"))
	}
	name := row[0]
	if _, err := conn.Exec(ctx, "select pg_drop_replication_slot(s.slot_name) from pg_replication_slots s where not s.active and "+slotNames).ReadAll(); err != nil {
		return fail(fmt.Errorf("drop the slot that was there: %w", err))
	}
	// One that is left is read by a process that does not end.
	taken, err := askRow(ctx, conn, "select coalesce(max(substr(s.slot_name, length("+slotName+") + 2)), '-') from pg_replication_slots s where "+slotNames)
	if err != nil {
		return fail(err)
	}
	if taken[0] != "-" {
		number, _ := strconv.Atoi(taken[0]) // nothing: the first
		name += "_" + strconv.Itoa(number%9+1)
	}
	options := "NOEXPORT_SNAPSHOT"
	if version, _ := strconv.Atoi(row[2]); version >= 170000 {
		options = "(SNAPSHOT 'nothing', FAILOVER true)" // it is there after a fail-over, if standbys synchronize slots
	}
	b.log.Info("making a replication slot for the WAL capture: it waits for every transaction that writes now", "slot", name)
	results, err := conn.Exec(ctx, "CREATE_REPLICATION_SLOT "+pgx.Identifier{name}.Sanitize()+" LOGICAL pgoutput "+options).ReadAll()
	if err != nil {
		return fail(explainSlot(err))
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) < 2 {
		return fail(errors.New("make slot: unexpected answer"))
	}
	lsn, err := pglogrepl.ParseLSN(string(results[0].Rows[0][1]))
	if err != nil {
		return fail(fmt.Errorf("make slot: %w", err))
	}
	b.log.Debug("made a replication slot", "slot", name, "took", time.Since(began))
	return madeSlot{name: name, lsn: lsn}
}

// explainSlot adds what to do.
func explainSlot(err error) error {
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		return err
	}
	return fmt.Errorf("%w%s", err, cmp.Or(map[string]string{
		"42501": "; the workers' role needs the attribute REPLICATION: alter role … replication",
		"53400": "; max_replication_slots is reached",
		"53300": "; max_wal_senders is reached",
	}[said.Code]))
}

// slotLost reports whether the server said that a slot, or what it publishes, is not there any more, or
// may not be read.
func slotLost(err error) bool {
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		return false
	}
	switch said.Code {
	case "42704", // undefined object: no such slot, no such publication
		"55000", // not in prerequisite state: invalidated, or wal_level
		"42501", // insufficient privilege
		"58P01": // undefined file: its WAL has been removed
		return true
	}
	return false
}

// endReader ends the session that reads the slot.
func (c *capture) endReader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if _, err := c.d.conn.Exec(ctx, "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1::text and active_pid is not null", c.slot); err != nil {
		var refused *pgconn.PgError
		if errors.As(err, &refused) {
			c.bus.log.Warn("cannot end the session that reads the replication slot", "error", err)
			return nil
		}
		return fmt.Errorf("end the slot's reader: %w", err)
	}
	return nil
}

// dropStale drops this database's slots but for the one that is used, and looks again as long as one of them
// is still read: the server may take a moment to notice that its reader is gone.
func (c *capture) dropStale(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var left int
	const stale = " from pg_replication_slots s where " + slotNames + " and s.slot_name is distinct from (select w.slot from trumpet.wal_state() w)"
	_, err := c.d.conn.Exec(ctx, "select pg_drop_replication_slot(s.slot_name)"+stale+" and not s.active")
	if err == nil {
		// Also one whose reader ended between the two statements.
		err = c.d.conn.QueryRow(ctx, "select count(*) + 0 * count(pg_terminate_backend(s.active_pid))"+stale).Scan(&left)
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		c.bus.log.Warn("cannot drop a replication slot that is not needed any more", "error", err)
		c.stale = false
		return nil
	}
	if err != nil {
		return fmt.Errorf("drop slots: %w", err)
	}
	c.stale = left > 0
	if c.stale {
		c.again(captureTick)
	}
	return nil
}
