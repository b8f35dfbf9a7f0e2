package doctor

import (
	"fmt"
	"strings"
	"time"
)

// session is what pg_stat_activity tells of one; ages are nil where this role may not see them.
type session struct {
	PID         int32
	User        string
	Application string
	Database    string
	State       string
	Since       *time.Time // of its transaction, or its state
}

func (s *session) describe() string {
	text := fmt.Sprintf("pid %d, user %s, application %s, database %s", s.PID, literal(s.User), literal(s.Application), literal(s.Database))
	if s.State != "" {
		text += ", " + s.State
	}
	if s.Since != nil {
		text += " for " + age(time.Since(*s.Since))
	}
	return text
}

// advisoryLocks are Trumpet's of this database that somebody has.
const advisoryLocks = `(select * from pg_locks where locktype = 'advisory' and classid = 1953656176 and objsubid = 2 and granted
	and database = (select oid from pg_database where datname = current_database())) l`

// lockNames are what the locks are for.
var lockNames = map[int64]string{1: "wake-ups", 2: "the sequencer's steps", 3: "the sequencer's duty", 4: "pruning", 5: "changes of the schema", 6: "the live duty"}

// locks: only Trumpet's own sessions have Trumpet's locks for long.
func (e *examination) locks() error {
	found, err := rows[struct {
		Lock int64
		session
	}](e, `
		select l.objid::bigint, coalesce(l.pid, 0), coalesce(a.usename::text, ''), coalesce(a.application_name, ''), coalesce(a.datname::text, ''), coalesce(a.state, ''), a.xact_start
		  from `+advisoryLocks+` left join pg_stat_activity a on a.pid = l.pid
		 where l.objid in (1, 2, 3, 4, 5, 6)
		   and (l.pid is null or (coalesce(a.application_name, '') not like 'trumpet %' and (l.objid in (3, 6) or coalesce(a.xact_start, a.state_change) < now() - interval '10 seconds')))
		 order by 1, 2 limit 20`)
	if err != nil {
		return err
	}
	for _, l := range found {
		what := lockNames[l.Lock]
		if l.PID == 0 {
			e.add(Warning, "a prepared transaction has Trumpet's lock for "+what+" until it is ended", "select gid, prepared, owner from pg_prepared_xacts; -- then commit prepared or rollback prepared")
			continue
		}
		effect := map[int64]string{1: "no commit wakes the sequencer, and events come some 2 s late", 2: "nothing gets a position", 3: "no worker has the duty",
			4: "nothing is pruned", 5: "nobody can watch a table or migrate", 6: "no worker runs live queries"}[l.Lock]
		severity := Warning
		if l.Lock == 2 {
			severity = Error
		}
		e.addSince(severity, l.Since, fmt.Sprintf("a session that is no worker's has Trumpet's lock for %s: %s. %s", what, effect, l.describe()),
			fmt.Sprintf("select pg_terminate_backend(%d);", l.PID))
	}
	return nil
}

// workers: somebody hears, and each is called something else.
func (e *examination) workers() error {
	found, err := rows[struct {
		Name  string
		Count int
	}](e, `select substr(application_name, 16), count(*)::int from pg_stat_activity
		where datname = current_database() and application_name like 'trumpet listen %' group by 1 order by 1 limit 1000`)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		e.add(Error, "no worker is connected: no client hears of anything", "trumpet serve")
		return nil
	}
	var all []string
	for _, w := range found {
		all = append(all, w.Name)
		if w.Count > 1 {
			e.add(Warning, fmt.Sprintf("%d workers are called %s: status and metrics cannot tell them apart", w.Count, literal(w.Name)), "-- give each a name of its own: trumpet serve --worker NAME")
		}
	}
	e.add(OK, plural(int64(len(found)), "worker is", "workers are")+" connected: "+names(all))
	return nil
}

// sockets: a session over a Unix socket has no time-out that would end it when its process is frozen.
func (e *examination) sockets() error {
	var all []string
	if err := e.scan(`select array(select application_name from pg_stat_activity where client_port = -1 and datname = current_database()
		and application_name ~ '^trumpet (listen|sequencer|live|follow) ' order by 1 limit 100)`, &all); err != nil {
		return err
	}
	if len(all) > 0 {
		e.add(Warning, fmt.Sprintf("%s by a Unix socket, where tcp_user_timeout has no effect: if its process is frozen, the notification queue fills: %s",
			plural(int64(len(all)), "session of Trumpet came", "sessions of Trumpet came"), names(all)),
			"-- in the worker's DATABASE_URL: host=127.0.0.1")
	}
	return nil
}

// queue: notifications are taken as they come.
func (e *examination) queue() error {
	var usage float64
	if err := e.scan("select pg_notification_queue_usage()", &usage); err != nil {
		return err
	}
	if usage <= 0.1 {
		e.add(OK, fmt.Sprintf("%.1f %% of the notification queue is taken", usage*100))
		return nil
	}
	// Who listens is not to be seen. It is one that does not take what comes: because it is in a transaction, or because its
	// process does not read. All databases share the queue.
	suspects, err := rows[session](e, `
		select pid, coalesce(usename::text, ''), coalesce(application_name, ''), coalesce(datname::text, ''),
		       case when wait_event = 'ClientWrite' then 'its client does not read' else coalesce(state, '') end,
		       case when wait_event = 'ClientWrite' then state_change else xact_start end
		  from pg_stat_activity
		 where datid is not null and pid <> pg_backend_pid() and (wait_event = 'ClientWrite' or xact_start < now() - interval '2 seconds')
		 order by coalesce(xact_start, state_change) limit 20`)
	if err != nil {
		return err
	}
	var sees bool
	if err := e.scan("select pg_has_role('pg_read_all_stats', 'usage')", &sees); err != nil {
		return err
	}
	message := fmt.Sprintf("%.0f %% of the notification queue is taken: some session listens and does not take what comes", usage*100)
	var mend []string
	var since *time.Time
	var who []string
	for i := range suspects {
		if i == maxNamed {
			break
		}
		mend = append(mend, fmt.Sprintf("select pg_terminate_backend(%d); -- %s", suspects[i].PID, suspects[i].describe()))
		who = append(who, suspects[i].describe())
		if i == 0 {
			since = suspects[i].Since
		}
	}
	switch {
	case len(who) > 0:
		message += "; probably " + strings.Join(who, "; or ")
	case !sees:
		message += "; this role does not see which (grant pg_read_all_stats to it)"
	}
	if usage > 0.5 {
		message += ". Trumpet notifies nobody until there is room, and events come some 2 s late; when it is full, commits of others that NOTIFY fail"
	}
	e.addSince(severityOf(usage > 0.5), since, message, mend...)
	return nil
}
