package doctor

import (
	"fmt"
	"slices"
	"time"
)

// walTable is a table watched by the WAL, or a partition of one.
type walTable struct {
	Name          string // as SQL
	Topic         string
	Key, Columns  []string
	MaxRows       int
	MaxBytes      int
	IsPartition   bool
	Published     bool     // its root is
	Listed        []string // the columns of the publication; none: all
	Full          bool     // REPLICA IDENTITY FULL
	Identity      []string // else the columns that identify a row in the WAL
	Attributes    []string
	Generated     []string // stored ones
	ServerVersion int
}

const walTables = `
	select format('%I.%I', n.nspname, c.relname), w.topic, w.key, coalesce(w.columns, '{}'), w.max_rows, w.max_bytes,
	       c.oid <> w.relation, p.oid is not null,
	       array(select a.attname::text from pg_attribute a where a.attrelid = w.relation
	                and a.attnum in (select x::int from jsonb_array_elements_text(coalesce(nullif(to_jsonb(p)->'prattrs', 'null'), '[]')) x)),
	       c.relreplident = 'f',
	       coalesce(trumpet.identity_columns(c.oid), '{}'),
	       array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
	       array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = 's'),
	       current_setting('server_version_num')::int
	  from trumpet.wal_table w
	  join lateral (select w.relation::oid as id union select t.relid from pg_partition_tree(w.relation) t) m on true
	  join pg_class c on c.oid = m.id
	  join pg_namespace n on n.oid = c.relnamespace
	  left join (select r.* from pg_publication_rel r join pg_publication b on b.oid = r.prpubid and b.pubname = 'trumpet') p on p.prrelid = w.relation
	 order by 2, c.oid <> w.relation, 1 limit 10000`

// wal: tables that are watched by the WAL are published so that nobody's statement fails, and somebody
// reads the slot.
func (e *examination) wal() error {
	tables, err := rows[walTable](e, walTables)
	if err != nil {
		return err
	}
	var level string
	if err := e.scan("select current_setting('wal_level')", &level); err != nil {
		return err
	}
	if len(tables) > 0 && level != "logical" {
		e.add(Error, "tables are watched by the WAL, and wal_level is "+level+": nothing of them is an event",
			"alter system set wal_level = logical; -- and restart Postgres")
		return nil
	}
	var brief []string
	for i := range tables {
		w := &tables[i]
		e.published(w)
		if !w.Full && !w.IsPartition {
			brief = append(brief, w.Name)
		}
	}
	if len(tables) > 0 {
		if err := e.replicators(); err != nil {
			return err
		}
	}
	if err := e.slot(len(tables) > 0); err != nil {
		return err
	}
	if len(brief) > 0 {
		e.add(OK, "events of "+names(brief)+" show no old values, and cannot be filtered but by what identifies a row: for that run alter table … replica identity full, "+
			"which writes whole old rows to the WAL")
	}
	return nil
}

// published says what is wrong with how a table is published.
func (e *examination) published(w *walTable) {
	if !w.Published {
		if !w.IsPartition {
			e.add(Error, w.Name+" is watched by the WAL, but not published any more: nobody hears of its changes", w.again())
		}
		return
	}
	lost := func(wanted []string) (gone []string) {
		for _, name := range wanted {
			if !slices.Contains(w.Attributes, name) {
				gone = append(gone, name)
			}
		}
		return gone
	}
	switch {
	case !w.Full && len(w.Identity) == 0:
		e.add(Error, "nothing identifies a row of "+w.Name+" in the WAL: each UPDATE and DELETE of it fails",
			"alter table "+w.Name+" replica identity full; -- or give it a primary key")
	case w.Full && len(w.Listed) > 0:
		e.add(Error, w.Name+" is published with a list of columns, and has REPLICA IDENTITY FULL now: each UPDATE and DELETE of it fails", w.again())
	case len(w.Listed) > 0 && slices.ContainsFunc(w.Identity, func(name string) bool { return !slices.Contains(w.Listed, name) }):
		e.add(Error, "what identifies a row of "+w.Name+", "+names(w.Identity)+", is not among its published columns: each UPDATE and DELETE of it fails", w.again())
	case len(lost(w.Key)) > 0:
		e.add(Error, fmt.Sprintf("%s is watched with the key %s, but has no column %s any more: its events do not say which row they are of",
			w.Name, names(w.Key), names(lost(w.Key))), "-- name another key: "+w.again())
	case !w.Full && slices.ContainsFunc(w.Key, func(name string) bool { return !slices.Contains(w.Identity, name) }):
		e.add(Error, fmt.Sprintf("the key %s of %s is not what identifies a row of it in the WAL, %s: events of a DELETE do not say which row it was",
			names(w.Key), w.Name, names(w.Identity)), "alter table "+w.Name+" replica identity full;")
	}
	if w.IsPartition {
		return
	}
	if gone := slices.DeleteFunc(lost(w.Columns), func(name string) bool { return slices.Contains(w.Key, name) }); len(gone) > 0 {
		e.add(Warning, fmt.Sprintf("%s is watched for the column %s, which it has no more: it was dropped or renamed, and events leave it out", w.Name, names(gone)),
			"-- name what is wanted: "+w.again())
	}
	if w.ServerVersion < 180000 {
		shown := slices.DeleteFunc(slices.Clone(w.Generated), func(name string) bool { return len(w.Columns) > 0 && !slices.Contains(w.Columns, name) })
		if len(shown) > 0 {
			e.add(Warning, "events of "+w.Name+" leave out the generated column "+names(shown)+": the WAL's readers get none before PostgreSQL 18",
				"select trumpet.watch("+literal(w.Name)+"); -- by triggers")
		}
	}
}

// again is the statement that watches the table anew with the settings that it has, but for what is gone.
func (w *walTable) again() string {
	if w.IsPartition {
		return "-- watch the table that it is a partition of again"
	}
	statement := "select trumpet.watch(" + literal(w.Name)
	if len(w.Columns) > 0 {
		statement += ", columns => " + textArray(slices.DeleteFunc(slices.Clone(w.Columns), func(name string) bool { return !slices.Contains(w.Attributes, name) }))
	}
	if len(w.Key) > 0 && !slices.ContainsFunc(w.Key, func(name string) bool { return !slices.Contains(w.Attributes, name) }) {
		statement += ", key => " + textArray(w.Key)
	} else if len(w.Key) == 0 {
		statement += ", key => '{}'"
	}
	return statement + fmt.Sprintf(", topic => %s, max_rows => %d, max_bytes => %d, capture => 'wal');", literal(w.Topic), w.MaxRows, w.MaxBytes)
}

// replicators says which of the roles that run workers may not read the WAL.
func (e *examination) replicators() error {
	found, err := rows[struct{ Role string }](e, `
		select quote_ident(r.rolname) from pg_proc p join pg_namespace n on n.oid = p.pronamespace, aclexplode(p.proacl) a, pg_roles r
		 where n.nspname = 'trumpet' and p.proname = 'sequence' and a.privilege_type = 'EXECUTE' and r.oid = a.grantee and a.grantee <> p.proowner
		   and r.rolcanlogin and not r.rolreplication and not r.rolsuper order by 1`)
	if err != nil {
		return err
	}
	for _, f := range found {
		e.add(Error, "workers run as "+f.Role+", which may not read the WAL", "alter role "+identifier(f.Role)+" replication;")
	}
	return nil
}

// walSlot is the replication slot.
type walSlot struct {
	Name     string
	Known    bool // trumpet.wal_slot has it
	There    bool // the server has it
	Active   bool
	Status   string
	Retained int64
	Safe     *int64
	Lag      int64
	Bounded  bool // max_slot_wal_keep_size
}

// slot: there is one if it is needed, somebody reads it, and it does not fill the disk.
func (e *examination) slot(wanted bool) error {
	found, err := rows[walSlot](e, `
		select coalesce(s.slot_name, k.name)::text, k.name is not null, s.slot_name is not null, coalesce(s.active, false), coalesce(s.wal_status, ''),
		       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), 0)::bigint, s.safe_wal_size,
		       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn), 0)::bigint,
		       current_setting('max_slot_wal_keep_size') <> '-1'
		  from (select s.* from pg_replication_slots s
		         where s.slot_name ~ format('^trumpet_%s(_[1-9])?$', (select d.oid from pg_database d where d.datname = current_database()))) s
		  full join trumpet.wal_slot k on k.name = s.slot_name order by 2 desc, 1`)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		if wanted {
			return e.noSlot()
		}
		return nil
	}
	if wanted && !found[0].Known {
		if err := e.noSlot(); err != nil {
			return err
		}
	}
	for _, s := range found {
		e.slotState(s)
	}
	if !found[0].Bounded {
		e.add(Warning, "nothing bounds what a replication slot retains: while no worker reads it, the WAL fills the disk",
			"alter system set max_slot_wal_keep_size = '10GB'; select pg_reload_conf();")
	}
	return nil
}

// slotState says how one slot is.
func (e *examination) slotState(s walSlot) {
	size := fmt.Sprintf("it retains %s of WAL", megabytes(s.Retained))
	switch {
	case !s.Known:
		e.add(Error, "the replication slot "+s.Name+" is not needed any more: "+size,
			"select pg_drop_replication_slot("+literal(s.Name)+");")
	case !s.There:
		e.add(Error, "the replication slot "+s.Name+" is gone; the worker that sequences makes another one, and tells its topics by bulk events", "-- see that a worker runs")
	case s.Status == "lost":
		e.add(Error, "the replication slot "+s.Name+" was given up by Postgres, because it retained more than max_slot_wal_keep_size; the worker that sequences makes another one",
			"-- see that a worker runs")
	case !s.Active:
		e.add(Error, "nobody reads the replication slot "+s.Name+": no change of its tables is an event, and "+size, "-- start a worker, or see in its log why it does not read")
	case s.Status == "unreserved" || s.Safe != nil && *s.Safe < s.Retained:
		e.add(Warning, "the replication slot "+s.Name+" is about to be given up by Postgres (max_slot_wal_keep_size): "+size, "-- see in the log of the worker that sequences why it is slow")
	case s.Retained > 1<<30:
		e.add(Warning, "the replication slot "+s.Name+" is far behind: "+size, "-- see in the log of the worker that sequences why it is slow, and for transactions that are open for long")
	default:
		e.add(OK, "the replication slot "+s.Name+" is read: "+size)
	}
}

// noSlot says why there may be none yet.
func (e *examination) noSlot() error {
	found, err := rows[struct {
		Since *time.Time
		Who   string
	}](e, `
		select a.xact_start, format('%s in %s, pid %s', quote_ident(a.usename), quote_ident(a.datname), a.pid)
		  from pg_stat_activity a where a.backend_xid is not null and a.pid <> pg_backend_pid() order by a.xact_start limit 1`)
	if err != nil {
		return err
	}
	message := "tables are watched by the WAL, and there is no replication slot: the worker that sequences makes one, once every transaction that writes now has ended"
	if len(found) > 0 && found[0].Since != nil && time.Since(*found[0].Since) > 10*time.Second {
		e.addSince(Error, found[0].Since, message+"; the oldest is of "+found[0].Who, "-- end that transaction, or wait for it")
		return nil
	}
	e.add(Error, message, "-- start a worker, or see in its log why it makes none")
	return nil
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
