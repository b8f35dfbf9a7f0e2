package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/sql"
)

// server: a primary of a version that is tested.
func (e *examination) server() error {
	var number int
	var version string
	var standby bool
	if err := e.scan("select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()", &number, &version, &standby); err != nil {
		return err
	}
	switch major := number / 10000; {
	case major < 14:
		e.add(Error, "PostgreSQL "+version+" is too old: Trumpet needs 14 to 18", "-- upgrade Postgres")
	case major > 18:
		e.add(Warning, "PostgreSQL "+version+" is newer than what Trumpet was tested with, 14 to 18")
	}
	if standby {
		e.add(Error, "this server is a standby: LISTEN does not work on it, and nothing can be given a position",
			"-- name all servers in DATABASE_URL, postgres://user@db1,db2/app: workers take the primary")
	}
	return nil
}

// migrations: the schema is the one that this binary knows.
func (e *examination) migrations() error {
	list, err := sql.List(e.ctx, e.tx)
	var refused *pgconn.PgError
	switch {
	case errors.As(err, &refused):
		e.schema = refused.Code == "42501" // it is there, and most checks only read the catalog
		return err
	case err != nil:
		e.add(Error, err.Error(), "-- replace this binary and the workers' with the newer one that migrated the database")
		return nil //nolint:nilerr // it is the finding
	}
	var missing []string
	for _, s := range list {
		if s.AppliedAt.IsZero() {
			missing = append(missing, fmt.Sprintf("%04d %s", s.Version, s.Name))
		}
	}
	switch {
	case len(missing) == len(list):
		e.add(Error, "there is no schema trumpet in this database", "trumpet migrate up")
	case len(missing) > 0:
		e.add(Error, "migrations are missing: "+names(missing), "trumpet migrate up")
	default:
		e.schema = true
	}
	return nil
}

// workerFunctions are those that trumpet.grant_worker grants.
const workerFunctions = "{sequence,sequence_until,cut,cut_until,wal_state,wal_pulse,wal_begin,wal_end,wal_append,watched_columns,head,recent,read_log,common_position,prune,verify_cluster,broadcast,publish_result,live_results,live_state}"

// rights: what this role may do.
func (e *examination) rights() error {
	var role string
	var lacks []string
	var all int
	var mayWatch bool
	if err := e.tx.QueryRow(e.ctx, `
		with needed as (
		  select p.proname::text as name, has_function_privilege(p.oid, 'execute') as has
		    from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'trumpet' and p.proname = any ($1::text[])
		  union all
		  select 'table ' || c.relname, has_table_privilege(c.oid, 'select')
		    from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'trumpet' and c.relname in ('migration', 'cluster', 'live', 'live_result')
		  union all
		  select 'schema trumpet', has_schema_privilege('trumpet', 'usage'))
		select quote_ident(current_user), coalesce(array_agg(name order by name) filter (where not has), '{}'), count(*)::int,
		       exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
		                where n.nspname = 'trumpet' and p.proname = 'watch' and has_function_privilege(p.oid, 'execute'))
		  from needed`, workerFunctions).Scan(&role, &lacks, &all, &mayWatch); err != nil {
		return err
	}
	grant := "select trumpet.grant_worker(" + literal(unquoted(role)) + "); -- as the schema's owner"
	may := "it may not watch tables"
	if mayWatch {
		may = "it may watch tables that it owns or has TRIGGER on"
	}
	switch {
	case len(lacks) == 0:
		e.add(OK, "role "+identifier(role)+" may run workers; "+may)
	case len(lacks) < all:
		e.add(Error, fmt.Sprintf("role %s lacks a part of what a worker needs: %s; %s", identifier(role), names(lacks), may), grant)
	default:
		e.add(Warning, fmt.Sprintf("role %s may not run workers; that is right if they have another one; %s", identifier(role), may), grant)
	}
	return nil
}

// unquoted takes back what quote_ident did.
func unquoted(name string) string {
	if !strings.HasPrefix(name, `"`) {
		return name
	}
	return strings.ReplaceAll(name[1:len(name)-1], `""`, `"`)
}

// durability: what a crash may lose, and who sees it.
func (e *examination) durability() error {
	var fsync, commit, pages string
	if err := e.scan("select current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes')", &fsync, &commit, &pages); err != nil {
		return err
	}
	if fsync == "off" {
		e.add(Warning, "fsync is off: a crash of the machine may lose or spoil what clients have seen already; they get a reset then",
			"alter system set fsync = on; select pg_reload_conf();")
	} else if pages == "off" {
		e.add(Warning, "full_page_writes is off: a crash of the machine may spoil the log, unless the disk writes whole pages",
			"alter system set full_page_writes = on; select pg_reload_conf();")
	}
	if commit == "off" {
		e.add(Warning, "synchronous_commit is off: a crash may lose your application's newest commits. Clients have seen none of those: the sequencer waits for the disk",
			"alter system set synchronous_commit = on; select pg_reload_conf(); -- and look at alter role … set and alter database … set")
	}
	return nil
}

// connections: room for all that the workers may still open.
func (e *examination) connections() error {
	const perWorker = 12
	type worker struct {
		Name string
		Has  int
	}
	var free, freeHere int64
	if err := e.scan(`
		select current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
		       - coalesce(current_setting('reserved_connections', true)::bigint, 0)
		       - (select count(*) from pg_stat_activity where datid is not null and (backend_type is null or backend_type = 'client backend')),
		       (select case when d.datconnlimit < 0 then 1000000 else d.datconnlimit - (select count(*) from pg_stat_activity a where a.datid = d.oid) end
		          from pg_database d where d.datname = current_database())`, &free, &freeHere); err != nil {
		return err
	}
	workers, err := rows[worker](e, `
		select l.worker, (select count(*)::int from pg_stat_activity a where a.datname = current_database()
		                     and a.application_name in ('trumpet listen ' || l.worker, 'trumpet pool ' || l.worker, 'trumpet snapshot ' || l.worker, 'trumpet sequencer ' || l.worker, 'trumpet live ' || l.worker))
		  from (select distinct substr(application_name, 16) as worker from pg_stat_activity
		         where datname = current_database() and application_name like 'trumpet listen %' limit 1000) l`)
	if err != nil {
		return err
	}
	need := int64(0)
	for _, w := range workers {
		need += int64(max(0, perWorker-w.Has))
	}
	need = max(need, perWorker) // one that is restarted
	switch {
	case free < need:
		e.add(severityOf(free <= 0), fmt.Sprintf("%s left of max_connections, and workers may open %d more", plural(max(free, 0), "connection is", "connections are"), need),
			"alter system set max_connections = …; -- and restart Postgres; 12 for each worker")
	case freeHere < need:
		e.add(severityOf(freeHere <= 0), fmt.Sprintf("%s left of this database's own limit, and workers may open %d more", plural(max(freeHere, 0), "connection is", "connections are"), need),
			"alter database … connection limit -1;")
	}
	return nil
}

func severityOf(grave bool) Severity {
	if grave {
		return Error
	}
	return Warning
}

// access: any role that may connect may LISTEN to rows.
func (e *examination) access() error {
	var public bool
	var database string
	var roles []string
	if err := e.scan(`
		select has_database_privilege('public', current_database(), 'connect'), quote_ident(current_database()),
		       array(select distinct quote_ident(r.rolname) from pg_stat_activity a join pg_roles r on r.oid = a.usesysid
		              where a.datname = current_database() and not r.rolsuper order by 1 limit 50)`, &public, &database, &roles); err != nil {
		return err
	}
	if !public {
		return nil
	}
	for i := range roles {
		roles[i] = identifier(roles[i])
	}
	e.add(Warning, "every role of the server may connect to this database, and so LISTEN to the rows of watched tables",
		"revoke connect on database "+identifier(database)+" from public;",
		"grant connect on database "+identifier(database)+" to "+strings.Join(slices.Concat(roles, []string{"…"}), ", ")+"; -- all that need it; those named are connected now")
	return nil
}

// prepared transactions keep locks and rows, and their events away, until somebody ends them.
func (e *examination) prepared() error {
	found, err := rows[struct {
		GID   string
		At    time.Time
		Owner string
	}](e, `select gid, prepared, owner::text from pg_prepared_xacts
		where database = current_database() and prepared < clock_timestamp() - $1::text::interval order by prepared limit 100`,
		fmt.Sprintf("%d milliseconds", e.options.Prepared.Milliseconds()))
	if err != nil || len(found) == 0 {
		return err
	}
	var mend []string
	for _, p := range found[:min(len(found), maxNamed)] {
		mend = append(mend, fmt.Sprintf("rollback prepared %s; -- or commit prepared; of %s, %s old", literal(p.GID), p.Owner, age(time.Since(p.At))))
	}
	e.addSince(Warning, &found[0].At, fmt.Sprintf("%s for more than %s: what they wrote is no event until they are committed, and what they lock waits",
		plural(int64(len(found)), "transaction is prepared", "transactions are prepared"), age(e.options.Prepared)), mend...)
	return nil
}
