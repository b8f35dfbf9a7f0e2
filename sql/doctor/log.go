package doctor

import (
	"fmt"
	"strings"
	"time"
)

// wake: a commit tells the sequencer at once.
func (e *examination) wake() error {
	var enabled string
	if err := e.scan(`select coalesce((select t.tgenabled::text from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
		where n.nspname = 'trumpet' and c.relname = 'record' and t.tgname = 'wake'), '')`, &enabled); err != nil {
		return err
	}
	switch enabled {
	case "D", "R":
		e.add(Warning, "the wake-up trigger is disabled: workers that start look for records every 50 ms, those that run every 2 s; commits can be prepared (two-phase)",
			"alter table trumpet.record enable trigger wake; -- then restart the workers")
	case "":
		e.add(Error, "the wake-up trigger of trumpet.record is gone: events come some 2 s late",
			"create constraint trigger wake after insert on trumpet.record deferrable initially deferred for each row when (new.first) execute function trumpet.wake();")
	}
	settings, err := e.defaults("trumpet.wake", "off")
	for _, s := range settings {
		e.add(Warning, fmt.Sprintf("trumpet.wake is off by default %s: what is written there is found some 2 s late", s.where()), s.reset("trumpet.wake"))
	}
	return err
}

// setting is a default that was given to a role or a database.
type setting struct{ Role, Database string }

func (s setting) where() string {
	var parts []string
	if s.Role != "" {
		parts = append(parts, "for role "+identifier(s.Role))
	}
	if s.Database != "" {
		parts = append(parts, "in database "+identifier(s.Database))
	}
	return strings.Join(parts, " ")
}

func (s setting) reset(name string) string {
	switch {
	case s.Role == "":
		return "alter database " + identifier(s.Database) + " reset " + name + ";"
	case s.Database == "":
		return "alter role " + identifier(s.Role) + " reset " + name + ";"
	}
	return "alter role " + identifier(s.Role) + " in database " + identifier(s.Database) + " reset " + name + ";"
}

// defaults finds who has a setting with this value by default in this database.
func (e *examination) defaults(name, value string) ([]setting, error) {
	return rows[setting](e, `
		select coalesce(quote_ident(r.rolname), ''), coalesce(quote_ident(d.datname), '')
		  from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase
		 where (s.setdatabase = 0 or d.datname = current_database())
		   and exists (select from unnest(s.setconfig) c where lower(c) = $1::text) order by 1, 2 limit 20`, name+"="+value)
}

// replica: who writes without firing triggers.
func (e *examination) replica() error {
	settings, err := e.defaults("session_replication_role", "replica")
	if err != nil {
		return err
	}
	for _, s := range settings {
		e.add(Error, fmt.Sprintf("session_replication_role is replica by default %s: what is written there fires no triggers, and is no event", s.where()), s.reset("session_replication_role"))
	}
	var here string
	if err := e.scan("select current_setting('session_replication_role')", &here); err != nil {
		return err
	}
	if here == "replica" && len(settings) == 0 {
		e.add(Error, "session_replication_role is replica on this server: triggers do not fire, and nothing that is written is an event",
			"alter system reset session_replication_role; select pg_reload_conf(); -- and look at PGOPTIONS and the URL")
	}
	var version int
	if err := e.scan("select current_setting('server_version_num')::int", &version); err != nil || version < 150000 {
		return err
	}
	var granted []string
	if err := e.scan(`select array(select distinct coalesce(quote_ident(r.rolname), 'public') from pg_parameter_acl p, aclexplode(p.paracl) x
		left join pg_roles r on r.oid = x.grantee where p.parname = 'session_replication_role' and x.privilege_type = 'SET'
		   and not coalesce(r.rolsuper, false) order by 1 limit 20)`, &granted); err != nil {
		return err
	}
	for _, role := range granted {
		e.add(Warning, fmt.Sprintf("role %s may set session_replication_role: what it then writes is no event, and nobody notices", identifier(role)),
			"revoke set on parameter session_replication_role from "+identifier(role)+";")
	}
	return nil
}

// pendingPatience is for how long committed records may wait while a step is under way.
const pendingPatience = 3 * time.Second

// pending: committed records get a position at once.
func (e *examination) pending() error {
	var first, position int64
	var pending bool
	begin := time.Now()
	for tries := 0; ; tries++ {
		if err := e.scan(`select "position", pending from trumpet.head()`, &position, &pending); err != nil {
			return err
		}
		if tries == 0 {
			first = position
		}
		if !pending || position != first {
			e.add(OK, fmt.Sprintf("the log is at position %d", position))
			return nil
		}
		if time.Since(begin) > pendingPatience {
			break
		}
		select {
		case <-e.ctx.Done():
			return e.ctx.Err()
		case <-time.After(pendingPatience / 10):
		}
	}
	since, err := e.pendingSince()
	if err != nil {
		return err
	}
	var sequencer bool
	if err := e.scan("select exists (select from "+advisoryLocks+" where l.objid = 3)", &sequencer); err != nil {
		return err
	}
	message := "committed records wait for a position, and nobody sequences: no client hears of them"
	mend := "trumpet serve -- or see why the workers that run do not reach this database; their logs say"
	if sequencer {
		message = "committed records wait for a position, and the worker that has the duty gives none"
		mend = "select pg_terminate_backend(l.pid) from pg_locks l where l.locktype = 'advisory' and l.classid = 1953656176 and l.objid = 3 and l.granted; -- another worker takes the duty"
	}
	e.addSince(Error, since, message, mend)
	return nil
}

// pendingSince is when the oldest record without a position was written, where this role may see records.
func (e *examination) pendingSince() (*time.Time, error) {
	var may bool
	if err := e.scan("select has_table_privilege('trumpet.record', 'select') and has_table_privilege('trumpet.log', 'select')", &may); err != nil || !may {
		return nil, err
	}
	var since *time.Time
	err := e.scan(`
		with head as materialized (select l.snapshot from trumpet.log l order by l.position desc limit 1)
		select min(f.at) from (
		  (select r.at from trumpet.record r where r.xid >= (select pg_snapshot_xmax(snapshot) from head) order by r.xid, r.id limit 1000)
		  union all
		  (select r.at from trumpet.record r where r.xid = any (array(select pg_snapshot_xip(snapshot) from head)) limit 1000)) f`, &since)
	return since, err
}

// log: it is pruned in time.
func (e *examination) log() error {
	var records, bytes, size int64
	var oldest *time.Time
	if err := e.scan(`
		with ends as materialized (
		  select (select l.position from trumpet.log l order by l.position limit 1) as anchor,
		         (select l.bytes from trumpet.log l order by l.position limit 1) as before,
		         (select l.bytes from trumpet.log l order by l.position desc limit 1) as upto,
		         (select l.position from trumpet.log l order by l.position desc limit 1) as head)
		select head - anchor, upto - before, pg_total_relation_size('trumpet.record') + pg_total_relation_size('trumpet.log'),
		       (select min(r.at) from (select l.xid, l.id from trumpet.log l where l.position > anchor order by l.position limit 100) l
		          join trumpet.record r on r.xid = l.xid and r.id = l.id)
		  from ends`, &records, &bytes, &size, &oldest); err != nil {
		return err
	}
	const byHand = "select trumpet.prune('%d seconds', %d); -- as the owner, while no worker runs; until pruned is 0"
	prune := fmt.Sprintf(byHand, int64(e.options.Retention/time.Second), e.options.RetentionBytes)
	if oldest != nil && time.Since(*oldest) > e.options.Retention+e.options.Retention/10+10*time.Minute {
		e.addSince(Warning, oldest, fmt.Sprintf("the oldest record is %s old, and the retention is %s: nobody prunes", age(time.Since(*oldest)), age(e.options.Retention)), prune)
	}
	if bytes > e.options.RetentionBytes+e.options.RetentionBytes/2 {
		e.add(Warning, fmt.Sprintf("the log holds %d MiB of records, and should hold %d: nobody prunes, or more is written than pruning keeps up with", bytes>>20, e.options.RetentionBytes>>20), prune)
	}
	since := "it is empty"
	if oldest != nil {
		since = "the oldest is " + age(time.Since(*oldest)) + " old"
	}
	e.add(OK, fmt.Sprintf("%s, %s; the tables take %d MiB", plural(records, "record", "records"), since, size>>20))
	return nil
}

// holes: the newest positions are contiguous, and have their records.
func (e *examination) holes() error {
	const newest = 10000
	var positions, records int64
	if err := e.tx.QueryRow(e.ctx, `
		with newest as materialized (select l.position, l.xid, l.id from trumpet.log l order by l.position desc limit $1::int),
		     anchor as materialized (select l.position from trumpet.log l order by l.position limit 1)
		select max(n.position) - min(n.position) + 1 - count(*),
		       count(*) filter (where r.id is null and n.xid is not null and n.position > (select position from anchor)
		                          -- The head's own record may be pruned; what is newer than others that stay may not.
		                          and exists (select from newest o join trumpet.record p on p.xid = o.xid and p.id = o.id where o.position < n.position))
		  from newest n left join trumpet.record r on r.xid = n.xid and r.id = n.id`, newest).Scan(&positions, &records); err != nil {
		return err
	}
	if positions > 0 || records > 0 {
		e.add(Error, fmt.Sprintf("the log has holes among its newest %d positions: %s and %s gone. Somebody deleted them; clients that need them get a reset",
			newest, plural(positions, "position is", "positions are"), plural(records, "record is", "records are")),
			"select trumpet.prune('0', 0, 2147483647); -- as the owner: the log begins after them; each client that comes back from before gets a reset")
	}
	return nil
}

// cluster: the log was begun in this cluster.
func (e *examination) cluster() error {
	var same bool
	if err := e.scan("select c.system_identifier = (select s.system_identifier from pg_control_system() s) from trumpet.cluster c", &same); err != nil {
		return err
	}
	if !same {
		e.add(Warning, "this database came from another cluster, by a dump or pg_upgrade: the first worker that starts begins the log again, and clients that come back get a reset", "trumpet serve")
	}
	return nil
}

// autovacuum: pruning leaves dead rows.
func (e *examination) autovacuum() error {
	var global string
	var tables []string
	if err := e.scan(`
		select current_setting('autovacuum'), array(select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
		        where n.nspname = 'trumpet' and c.relname in ('log', 'record') and exists (
		              select from pg_options_to_table(c.reloptions) o where o.option_name = 'autovacuum_enabled' and o.option_value in ('off', 'false', 'no', '0'))
		        order by 1)`, &global, &tables); err != nil {
		return err
	}
	if global == "off" {
		e.add(Warning, "autovacuum is off on this server: what is pruned from the log is never freed", "alter system set autovacuum = on; select pg_reload_conf();")
	}
	for _, table := range tables {
		e.add(Warning, "autovacuum is off for trumpet."+table+": what is pruned is never freed", "alter table trumpet."+table+" reset (autovacuum_enabled);")
	}
	return nil
}
