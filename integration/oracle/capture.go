package oracle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// byWAL are the tables that a capture watches by the WAL. The others have triggers.
var byWAL = map[string][]string{
	"triggers": {},
	"wal":      {"jobs", "customers"},
	"mixed":    {"jobs"},
}

// Captures are the names of all ways to watch the tables. The first one is the default.
func Captures() []string { return []string{"triggers", "wal", "mixed"} }

// watch is SQL that watches the tables. Filters and old values need the whole row before a change.
func watch(capture string) string {
	var b strings.Builder
	for _, table := range slices.Sorted(maps.Keys(maxRows)) {
		how := "triggers"
		if slices.Contains(byWAL[capture], table) {
			how = "wal"
			fmt.Fprintf(&b, "alter table %s replica identity full;\n", table)
		}
		fmt.Fprintf(&b, "select trumpet.watch('%s', max_rows => %d, max_bytes => 67108864, capture => '%s');\n", table, maxRows[table], how)
	}
	return b.String()
}

// slotToken begins what the database notes in the table committed when a replication slot begins: then each of its
// topics is told anew, by a bulk event.
const slotToken = "slot "

// noteSlots is SQL that has them noted, in the transaction that makes these events.
func noteSlots(capture string) string {
	return fmt.Sprintf(`
		create function note_slot() returns trigger language plpgsql as $$
		begin
		  insert into public.committed (token, events, by_wal, bulk_rows) values ('%s' || new.name, %d, 0, 0);
		  return null;
		end $$;
		create trigger note_slot after insert on trumpet.wal_slot for each row execute function note_slot()`, slotToken, len(byWAL[capture]))
}

// account is what a transaction did so far, and so how many events it must make. It is a value: a savepoint
// that is rolled back has its copy from before put back.
type account struct {
	events int // that nothing changes any more: of triggers and broadcasts
	rows   int // told by bulk events, of triggers
	byWAL  []string
	tables map[string]deeds // of those watched by the WAL
}

// deeds is what a transaction did to one table that is watched by the WAL: rows, without those that an update did
// not change as long as the bound was not passed.
type deeds struct {
	inserted, updated, deleted int
	truncated                  int // times
	isBulk                     bool
	vague                      bool // which of the rows count depends on their order
}

func newAccount(capture string) account {
	return account{byWAL: byWAL[capture], tables: map[string]deeds{}}
}

func (a account) clone() account {
	a.tables = maps.Clone(a.tables)
	return a
}

// ran notes a statement that touched so many rows of a table, and changed so many of them.
func (a *account) ran(tag pgconn.CommandTag, table string, touched, changed int) {
	if !slices.Contains(a.byWAL, table) {
		if touched > maxRows[table] {
			a.rows += touched
			changed = 1 // a bulk event
		}
		a.events += changed
		return
	}
	d := a.tables[table]
	if !d.isBulk && d.rows()+changed > maxRows[table] {
		d.isBulk, d.vague = true, changed < touched
	}
	if d.isBulk {
		changed = touched
	}
	switch {
	case tag.Insert():
		d.inserted += changed
	case tag.Update():
		d.updated += changed
	case tag.Delete():
		d.deleted += changed
	}
	a.tables[table] = d
}

func (a *account) truncated(table string) {
	if !slices.Contains(a.byWAL, table) {
		a.events++
		return
	}
	d := a.tables[table]
	d.truncated++
	a.tables[table] = d
}

func (d deeds) rows() int { return d.inserted + d.updated + d.deleted }

// made is what a transaction must make.
type made struct {
	events int
	byWAL  int // of them those that come from the WAL
	rows   int // that bulk events tell of; -1: nobody can know
}

// total sums the account up. Where a table's bound was passed, there is one bulk event for each operation.
func (a account) total() made {
	m := made{events: a.events, rows: a.rows}
	vague := false
	for _, d := range a.tables {
		m.byWAL += d.truncated
		if !d.isBulk {
			m.byWAL += d.rows()
			continue
		}
		m.rows += d.rows()
		vague = vague || d.vague
		for _, rows := range []int{d.inserted, d.updated, d.deleted} {
			m.byWAL += min(rows, 1)
		}
	}
	if vague {
		m.rows = -1
	}
	m.events += m.byWAL
	return m
}

// note has the database remember what a transaction must make.
const note = "insert into committed (token, events, by_wal, bulk_rows) values ($1, $2, $3, $4)"

// noteIn does, at the transaction's end.
func (a account) noteIn(ctx context.Context, tx pgx.Tx, token string) error {
	m := a.total()
	_, err := tx.Exec(ctx, note, token, m.events, m.byWAL, m.rows)
	return err
}

// awaitCapture waits until the WAL is read: what is written from here on must come by itself, and not by
// the bulk events with which a replication slot begins.
func (r *run) awaitCapture(ctx context.Context) error {
	if len(byWAL[r.config.Capture]) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		var reading bool
		if err := r.db.pool.QueryRow(ctx, "select exists (select from trumpet.wal_slot)").Scan(&reading); err != nil {
			return fmt.Errorf("ask for the replication slot: %w", err)
		}
		if reading {
			return nil
		}
		if !pause(ctx, 20*time.Millisecond) {
			return errors.New("no worker made a replication slot")
		}
	}
}
