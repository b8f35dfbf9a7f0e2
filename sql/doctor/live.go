package doctor

import (
	"fmt"
	"time"
)

// liveQuery is one as trumpet.live_queries has it.
type liveQuery struct {
	Name      string
	Stale     bool
	Error     string
	Since     *time.Time
	NeverRan  bool
	RunAs     string // as quote_ident gives it
	RoleGone  bool
	Ungranted []string // roles that run workers and are no members of it, as quote_ident gives them
	Unwatched []string // topics it depends on that no table has
	Taken     string   // the table whose topic its name is
}

const liveQueries = `
	with workers as (
	  select r.oid, r.rolname from pg_proc p join pg_namespace n on n.oid = p.pronamespace, aclexplode(p.proacl) a, pg_roles r
	   where n.nspname = 'trumpet' and p.proname = 'sequence' and a.privilege_type = 'EXECUTE' and r.oid = a.grantee and a.grantee <> p.proowner)
	select l.name, l.stale, coalesce(l.error, ''), l.since, l.as_of is null and l.error = 'not run yet',
	       coalesce(quote_ident(l.run_as), ''), l.run_as is not null and r.oid is null,
	       array(select quote_ident(w.rolname) from workers w where r.oid is not null and not pg_has_role(w.oid, r.oid, 'member') order by 1),
	       array(select d.topic from unnest(l.depends_on) d(topic) where not exists (select from trumpet.watched_columns(d.topic))),
	       coalesce((select quote_ident(w.schema_name) || '.' || quote_ident(w.table_name) from trumpet.watched_columns(l.name) w limit 1), '')
	  from trumpet.live_queries l left join pg_roles r on r.rolname = l.run_as
	 order by l.name limit 1000`

// startPatience is how long a live query may take to be run for the first time.
const startPatience = 10 * time.Second

// live: live queries are run, and succeed.
func (e *examination) live() error {
	all, err := rows[liveQuery](e, liveQueries)
	if err != nil || len(all) == 0 {
		return err
	}
	if err := e.liveDuty(len(all)); err != nil {
		return err
	}
	for i := range all {
		l := &all[i]
		name := "live query " + literal(l.Name)
		drop := "select trumpet.drop_live_query(" + literal(l.Name) + ");"
		switch {
		case l.RoleGone:
			e.addSince(Error, l.Since, fmt.Sprintf("%s runs as role %s, which is gone", name, identifier(l.RunAs)),
				"-- create the role again, or define it anew: trumpet live add --help", drop)
		case len(l.Ungranted) > 0:
			var grants []string
			for _, worker := range l.Ungranted {
				grants = append(grants, "grant "+identifier(l.RunAs)+" to "+identifier(worker)+";")
			}
			e.addSince(Error, l.Since, fmt.Sprintf("%s runs as role %s, of which the workers' role is no member: %s", name, identifier(l.RunAs), names(l.Ungranted)), grants...)
		case l.Stale && l.NeverRan && (l.Since == nil || time.Since(*l.Since) < startPatience):
		case l.Stale && l.NeverRan:
			e.addSince(Warning, l.Since, name+" was never run", "trumpet serve -- or see the workers' logs")
		case l.Stale:
			e.addSince(Error, l.Since, fmt.Sprintf("%s fails, and its value is stale: %s", name, literal(l.Error)), "-- mend what it says, or define it otherwise, or end it: "+drop)
		}
		if len(l.Unwatched) > 0 {
			e.add(Error, fmt.Sprintf("%s depends on what no watched table has as its topic any more: %s; changes there do not make it run", name, names(l.Unwatched)),
				"-- watch the table again: select trumpet.watch('…', topic => "+literal(l.Unwatched[0])+"), or define the live query otherwise, or end it: "+drop)
		}
		if l.Taken != "" {
			e.add(Error, fmt.Sprintf("topic %s is both that of table %s and a live query's: listeners get both", literal(l.Name), identifier(l.Taken)), drop)
		}
	}
	e.add(OK, plural(int64(len(all)), "live query is", "live queries are")+" defined")
	return nil
}

// liveDuty: some worker runs them. Between two that have the duty there are some seconds.
func (e *examination) liveDuty(count int) error {
	begin := time.Now()
	for {
		var workers, held bool
		if err := e.scan(`select exists (select from pg_stat_activity where datname = current_database() and application_name like 'trumpet listen %'),
			exists (select from `+advisoryLocks+` where l.objid = 6 and l.mode = 'ExclusiveLock')`, &workers, &held); err != nil {
			return err
		}
		switch {
		case held || !workers: // that no worker is there at all is another check's finding
			return nil
		case time.Since(begin) > pendingPatience:
			e.add(Error, fmt.Sprintf("no worker runs the %s", plural(int64(count), "live query", "live queries")),
				"-- see the workers' logs: they say why, if they try; workers of an older version do not")
			return nil
		}
		select {
		case <-e.ctx.Done():
			return e.ctx.Err()
		case <-time.After(pendingPatience / 10):
		}
	}
}
