package doctor_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/sql/doctor"
)

func diagnose(t *testing.T, conn *pgx.Conn) []doctor.Finding {
	t.Helper()
	findings, err := doctor.Diagnose(t.Context(), conn, doctor.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range findings {
		for _, text := range append([]string{f.Check, f.Message}, f.Mend...) {
			if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x202e }) {
				t.Errorf("%s: a text would disturb a terminal: %q", f.Check, text)
			}
		}
		if i > 0 && f.Severity == doctor.Error && findings[i-1].Severity != doctor.Error {
			t.Errorf("%s: an error stands below a %s", f.Check, findings[i-1].Severity)
		}
	}
	return findings
}

// finding is the one of a check whose message has all these words; nil if there is none that is wrong.
func finding(findings []doctor.Finding, check string, words ...string) *doctor.Finding {
	for i, f := range findings {
		fits := f.Check == check && f.Severity != doctor.OK
		for _, word := range words {
			fits = fits && strings.Contains(f.Message, word)
		}
		if fits {
			return &findings[i]
		}
	}
	return nil
}

// wrong are the findings that are not ok, but for those that every database of a test has.
func wrong(findings []doctor.Finding) []doctor.Finding {
	var all []doctor.Finding
	for _, f := range findings {
		usual := f.Check == "durability" || f.Check == "access" || f.Check == "workers" && f.Severity == doctor.Error
		if f.Severity != doctor.OK && !usual {
			all = append(all, f)
		}
	}
	return all
}

// Each thing that can go wrong is found, by its own finding and no other; what the finding says mends it is run as it
// stands, and then it is gone.
func TestFindings(t *testing.T) {
	t.Parallel()
	const jobs = "create table jobs (id int primary key, status text); select trumpet.watch('jobs', columns => '{id,status}', topic => 'work', max_rows => 7); "
	const visits = `create table visits (id int, day date, primary key (id, day)) partition by range (day);
		create table visits_1 partition of visits for values from ('2026-01-01') to ('2027-01-01'); select trumpet.watch('visits'); `
	const live = "select trumpet.live_query('n', 'select count(*) from jobs', '{jobs}'); "
	sequenced := func(statements string) string {
		return "begin; " + statements + "; commit; begin; select trumpet.sequence(); commit"
	}
	drop := sequenced("select trumpet.drop_live_query('n')")
	const three = "begin; select trumpet.broadcast('a', '1'), trumpet.broadcast('a', '2'), trumpet.broadcast('a', '3'); commit; begin; select trumpet.sequence(); commit; "
	const strange = `"a` + "\x1b[31m\n\u202e" + `"".jobs"`
	for name, test := range map[string]struct {
		wrong    string // SQL that makes it so
		check    string
		severity doctor.Severity
		words    []string
		by       string // SQL that mends it, where the finding leaves something to decide
	}{
		"a disabled trigger":               {jobs + "alter table jobs disable trigger trumpet_update", "watches", doctor.Error, []string{"public.jobs", "UPDATE", "disabled"}, ""},
		"all triggers disabled":            {jobs + "alter table jobs disable trigger all", "watches", doctor.Error, []string{"INSERT, UPDATE, DELETE, TRUNCATE"}, ""},
		"a trigger for replicas only":      {jobs + "alter table jobs enable replica trigger trumpet_insert", "watches", doctor.Error, []string{"INSERT", "disabled"}, ""},
		"a dropped trigger":                {jobs + "drop trigger trumpet_delete on jobs", "watches", doctor.Error, []string{"public.jobs", "DELETE", "missing"}, ""},
		"a column that was renamed":        {jobs + "alter table jobs rename status to state", "watches", doctor.Warning, []string{"status", "no more"}, "select trumpet.watch('jobs', columns => '{id,state}')"},
		"a column that was dropped":        {jobs + "alter table jobs drop status", "watches", doctor.Warning, []string{"status", "dropped"}, "select trumpet.watch('jobs', columns => '{id}')"},
		"a key that was renamed":           {jobs + "alter table jobs rename id to number", "watches", doctor.Error, []string{"the key id", "do not say which row"}, ""},
		"a key that was dropped":           {jobs + "alter table jobs drop id; ", "watches", doctor.Error, []string{"the key id"}, "alter table jobs add nr int primary key; select trumpet.watch('jobs')"},
		"a key that may repeat":            {jobs + "alter table jobs drop constraint jobs_pkey", "watches", doctor.Warning, []string{"key id of public.jobs unique"}, ""},
		"a late partition":                 {visits + "create table visits_2 partition of visits for values from ('2027-01-01') to ('2028-01-01')", "watches", doctor.Warning, []string{"1 partition of public.visits", "public.visits_2"}, ""},
		"a partition that was detached":    {visits + "alter table visits detach partition visits_1", "watches", doctor.Warning, []string{"public.visits_1", "partition no more", "'visits'"}, ""},
		"a watched table was attached":     {visits + "create table other (like visits including all); select trumpet.watch('other'); alter table visits attach partition other for values from ('2027-01-01') to ('2028-01-01')", "watches", doctor.Warning, []string{"public.other", "watched on its own"}, "select trumpet.unwatch('other'); select trumpet.watch('visits')"},
		"an unlogged table":                {"create unlogged table u (id int primary key); select trumpet.watch('u')", "watches", doctor.Warning, []string{"public.u", "unlogged"}, ""},
		"a name that would disturb":        {"create table " + strange + " (id int primary key); select trumpet.watch('" + strange + "', topic => 'x'); drop trigger trumpet_insert on " + strange, "watches", doctor.Error, []string{"INSERT", `\001B`, `\202E`}, ""},
		"a disabled trigger, strange":      {"create table " + strange + " (id int primary key); select trumpet.watch('" + strange + "', topic => 'x'); alter table " + strange + " disable trigger trumpet_insert", "watches", doctor.Error, []string{"INSERT", "disabled"}, ""},
		"a strange column":                 {`create table odd (id int primary key, "it's` + "\x1b" + `\" int); select trumpet.watch('odd', columns => array[E'it''s\u001b\\']); alter table odd drop constraint odd_pkey`, "watches", doctor.Warning, []string{"unique"}, ""},
		"wake-ups off":                     {"alter table trumpet.record disable trigger wake", "wake", doctor.Warning, []string{"disabled", "50 ms"}, ""},
		"no wake-up trigger":               {"drop trigger wake on trumpet.record", "wake", doctor.Error, []string{"gone"}, ""},
		"wake-ups off by default":          {here("set trumpet.wake = 'off'"), "wake", doctor.Warning, []string{"in database"}, ""},
		"replica by default":               {here("set session_replication_role = 'replica'"), "replica", doctor.Error, []string{"in database", "fires no triggers"}, ""},
		"records that wait":                {"select trumpet.broadcast('a', '1')", "pending", doctor.Error, []string{"nobody sequences"}, "select trumpet.sequence()"},
		"an old record":                    {three + "update trumpet.record set at = now() - interval '3 days'", "log", doctor.Warning, []string{"3 days old", "24 hours"}, ""},
		"a missing position":               {three + "delete from trumpet.log where position = 2", "holes", doctor.Error, []string{"1 position is", "0 records"}, ""},
		"a missing record":                 {three + "delete from trumpet.record where data = '2'", "holes", doctor.Error, []string{"0 positions", "1 record is"}, ""},
		"another cluster's":                {"update trumpet.cluster set system_identifier = 1", "cluster", doctor.Warning, []string{"came from another cluster"}, "select trumpet.verify_cluster()"},
		"no vacuum of the log's records":   {"alter table trumpet.record set (autovacuum_enabled = false)", "autovacuum", doctor.Warning, []string{"trumpet.record"}, ""},
		"a live query that fails":          {sequenced(jobs + live + "select trumpet.publish_result('n', version, 0, null, 'failed', 'division by zero') from trumpet.live"), "live", doctor.Error, []string{"'n'", "division by zero"}, drop},
		"a live query of no table":         {sequenced(jobs + live + "select trumpet.unwatch('jobs')"), "live", doctor.Error, []string{"'n'", "depends on", "work"}, "select trumpet.watch('jobs', topic => 'work')"},
		"a live query's name is taken":     {sequenced(jobs + live + "create table n (id int primary key); select trumpet.watch('n')"), "live", doctor.Error, []string{"'n'", "both"}, drop},
		"a live query that never ran":      {sequenced(jobs + live + "update trumpet.live_result set since = now() - interval '1 hour'"), "live", doctor.Warning, []string{"'n'", "never run"}, drop},
		"a live query's role that is gone": {sequenced(jobs + live + "update trumpet.live set run_as = 'never there'"), "live", doctor.Error, []string{"'n'", `"never there"`, "gone"}, drop},
		"a limit of the database":          {here("connection limit 3"), "connections", doctor.Warning, []string{"2 connections are left of this database's", "12 more"}, here("connection limit -1")},
		"no schema":                        {"drop schema trumpet cascade", "schema", doctor.Error, []string{"no schema trumpet"}, "-"},
		"an older schema":                  {"delete from trumpet.migration where version = 2", "schema", doctor.Error, []string{"missing: 0002 watch"}, "insert into trumpet.migration (version, name) values (2, 'watch')"},
		"a newer schema":                   {"insert into trumpet.migration (version, name) values (99, 'future')", "schema", doctor.Error, []string{"migration 99", "older than the schema"}, "delete from trumpet.migration where version = 99"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := pgtest.Connect(t, pgtest.Migrated(t))
			pgtest.Exec(t, conn, test.wrong)
			findings := diagnose(t, conn)
			found := finding(findings, test.check, test.words...)
			if found == nil || found.Severity != test.severity {
				t.Fatalf("no %s of %s with %q in\n%s", test.severity, test.check, test.words, show(findings))
			}
			if all := wrong(findings); len(all) != 1 {
				t.Errorf("more than that is wrong:\n%s", show(all))
			}
			if len(found.Mend) == 0 {
				t.Fatalf("it does not say what mends it: %+v", found)
			}
			mend := found.Mend
			if test.by != "" {
				mend = []string{test.by}
			}
			if test.by == "-" {
				return
			}
			for _, statement := range mend {
				if _, err := conn.Exec(t.Context(), statement); err != nil {
					t.Fatalf("%s: %v", statement, err)
				}
			}
			if all := wrong(diagnose(t, conn)); len(all) != 0 {
				t.Errorf("after %q there is still\n%s", mend, show(all))
			}
		})
	}
}

// here alters the database that it is run in.
func here(what string) string {
	return "do $here$ begin execute format('alter database %I " + strings.ReplaceAll(what, "'", "''") + "', current_database()); end $here$"
}

func show(findings []doctor.Finding) string {
	var b strings.Builder
	for _, f := range findings {
		b.WriteString(string(f.Severity) + " " + f.Check + ": " + f.Message + "\n    " + strings.Join(f.Mend, "\n    ") + "\n")
	}
	return b.String()
}

// A database in which all is well has no finding, and each check says so.
func TestNothingFound(t *testing.T) {
	t.Parallel()
	_, url := pgtest.StartMigrated(t, map[string]string{"fsync": "on", "full_page_writes": "on"})
	conn := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, "create table jobs (id int primary key); select trumpet.watch('jobs'); insert into jobs values (1); revoke connect on database app from public")
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	worker := pgtest.Connect(t, url)
	pgtest.Exec(t, worker, "set application_name = 'trumpet listen w1'")
	checks := map[string]bool{}
	for _, f := range diagnose(t, conn) {
		checks[f.Check] = true
		if f.Severity != doctor.OK || f.Skipped {
			t.Errorf("%+v", f)
		}
	}
	if len(checks) != 22 {
		t.Errorf("%d checks: %v", len(checks), checks)
	}
}

// What sessions do.
func TestSessions(t *testing.T) {
	t.Parallel()
	server, url := pgtest.StartMigrated(t, map[string]string{
		"max_connections": "12", "synchronous_commit": "off", "autovacuum": "off", "superuser_reserved_connections": "3",
	})
	conn := pgtest.Connect(t, url)
	if f := finding(diagnose(t, conn), "workers", "no worker is connected"); f == nil || f.Severity != doctor.Error {
		t.Errorf("no worker: %+v", f)
	}
	one, two := pgtest.Connect(t, url), pgtest.Connect(t, server.SocketURL("app"))
	pgtest.Exec(t, one, "set application_name = 'trumpet listen w1'")
	pgtest.Exec(t, two, "set application_name = 'trumpet listen w1'")
	stranger := pgtest.Connect(t, url)
	pgtest.Exec(t, stranger, "set application_name = 'a stranger'; select pg_advisory_lock(1953656176, 3)")
	pgtest.Exec(t, conn, "select trumpet.broadcast('a', '1')")
	findings := diagnose(t, conn)
	for _, test := range []struct {
		check    string
		severity doctor.Severity
		words    []string
	}{
		{"workers", doctor.Warning, []string{"2 workers are called 'w1'"}},
		{"sockets", doctor.Warning, []string{"1 session of Trumpet came by a Unix socket", "trumpet listen w1"}},
		{"locks", doctor.Warning, []string{"the sequencer's duty", "'a stranger'"}},
		{"pending", doctor.Error, []string{"the worker that has the duty gives none"}},
		{"connections", doctor.Warning, []string{"5 connections are left of max_connections", "may open 12 more"}},
		{"durability", doctor.Warning, []string{"synchronous_commit is off", "Clients have seen none"}},
		{"durability", doctor.Warning, []string{"fsync is off"}},
		{"autovacuum", doctor.Warning, []string{"autovacuum is off on this server"}},
		{"access", doctor.Warning, []string{"every role"}},
	} {
		if f := finding(findings, test.check, test.words...); f == nil || f.Severity != test.severity || len(f.Mend) == 0 {
			t.Errorf("no %s of %s with %q in\n%s", test.severity, test.check, test.words, show(findings))
		}
	}
	pending := finding(findings, "pending")
	if pending == nil || pending.Since == nil || time.Since(*pending.Since) > time.Minute || time.Since(*pending.Since) < time.Second {
		t.Errorf("since when records wait: %+v", pending)
	}
	// What the finding says ends the stranger's session.
	pgtest.Exec(t, conn, finding(findings, "locks").Mend[0])
	if err := stranger.Ping(t.Context()); err == nil {
		t.Error("the stranger is still there")
	}
}

// A role sees what it may see, and is told what it may not.
func TestRoles(t *testing.T) {
	t.Parallel()
	_, url := pgtest.StartMigrated(t, nil) // roles are a server's
	conn := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, `create table jobs (id int primary key); select trumpet.watch('jobs'); alter table jobs disable trigger trumpet_insert;
		create role "the worker"; create role nobody_in_particular; create role half; select trumpet.grant_worker('the worker'), trumpet.grant_worker('half'); revoke execute on function trumpet.prune from half`)
	pgtest.Exec(t, conn, `create role reports; grant select on jobs to reports; select trumpet.live_query('n', 'select count(*) from jobs', '{jobs}', run_as => 'reports'); grant reports to half`)
	if f := finding(diagnose(t, conn), "live", "reports", "no member", `"the worker"`); f == nil || f.Severity != doctor.Error || len(f.Mend) != 1 {
		t.Errorf("a role that was not granted: %+v", f)
	} else {
		pgtest.Exec(t, conn, f.Mend[0])
	}
	pgtest.Exec(t, conn, "select trumpet.drop_live_query('n')")
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	var half *doctor.Finding
	for role, test := range map[string]struct {
		severity doctor.Severity
		word     string
		skipped  int
	}{
		`"the worker"`:         {doctor.OK, "may run workers", 2}, // log, holes
		"half":                 {doctor.Error, "lacks a part of what a worker needs: prune", 2},
		"nobody_in_particular": {doctor.Warning, "may not run workers", 7},
	} {
		pgtest.Exec(t, conn, "set role "+role)
		findings := diagnose(t, conn)
		skipped := 0
		for _, f := range findings {
			if f.Skipped {
				skipped++
			}
			if f.Check == "rights" && (f.Severity != test.severity || !strings.Contains(f.Message, test.word)) {
				t.Errorf("%s: %+v", role, f)
			}
		}
		if skipped != test.skipped {
			t.Errorf("%s: %d checks were skipped, want %d:\n%s", role, skipped, test.skipped, show(findings))
		}
		if role == "half" {
			half = finding(findings, "rights")
		}
		if finding(findings, "watches", "public.jobs") == nil {
			t.Errorf("%s does not see the disabled trigger", role)
		}
	}
	pgtest.Exec(t, conn, "reset role")
	pgtest.Exec(t, conn, half.Mend[0])
	pgtest.Exec(t, conn, "set role half")
	if f := finding(diagnose(t, conn), "rights"); f != nil {
		t.Errorf("after its mending: %+v", f)
	}
}

// What can go wrong with tables that are watched by the WAL, on a server whose WAL nobody else reads.
func TestFindingsOfTheWAL(t *testing.T) {
	t.Parallel()
	const jobs = "create table jobs (id int primary key, status text, note text); select trumpet.watch('jobs', columns => '{id,status}', topic => 'work', max_rows => 7, capture => 'wal'); "
	for name, test := range map[string]struct {
		wrong string
		words []string
		by    string // "": what the finding says
		alone bool   // a slot waits for all who write to a server
	}{
		"not published":         {jobs + "alter publication trumpet drop table jobs", []string{"public.jobs", "not published"}, "", false},
		"nothing identifies":    {"create table jobs (id int primary key); select trumpet.watch('jobs', capture => 'wal'); alter table jobs replica identity nothing", []string{"nothing identifies", "UPDATE and DELETE of it fails"}, "", false},
		"full with a list":      {jobs + "alter table jobs replica identity full", []string{"list of columns", "REPLICA IDENTITY FULL"}, "", false},
		"another identity":      {jobs + "alter table jobs alter note set not null; create unique index note on jobs (note); alter table jobs replica identity using index note", []string{"note, is not among its published columns"}, "alter table jobs replica identity default", false},
		"a key that is none":    {"create table jobs (id int primary key, nr int unique not null); select trumpet.watch('jobs', capture => 'wal'); alter table jobs replica identity using index jobs_nr_key", []string{"the key id", "which row it was"}, "", false},
		"a key that is gone":    {"create table jobs (id int primary key); select trumpet.watch('jobs', capture => 'wal'); alter table jobs rename id to nr", []string{"the key id", "do not say which row"}, "select trumpet.watch('jobs', capture => 'wal')", false},
		"a column that is gone": {jobs + "alter table jobs rename status to state", []string{"status", "leave it out"}, "select trumpet.watch('jobs', columns => '{id,state}', capture => 'wal')", false},
		"no slot":               {jobs, []string{"there is no replication slot"}, "select trumpet.unwatch('jobs')", false},
		"a slot that is gone":   {jobs + "select trumpet.wal_begin('gone', '0/1')", []string{"gone is gone"}, "select trumpet.unwatch('jobs'), trumpet.wal_end(false)", false},
		"a slot left behind":    {"select pg_create_logical_replication_slot('trumpet_' || oid, 'pgoutput') from pg_database where datname = current_database()", []string{"not needed any more"}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := ""
			if test.alone {
				_, url = pgtest.StartMigrated(t, nil)
			} else {
				url = pgtest.Migrated(t)
			}
			conn := pgtest.Connect(t, url)
			pgtest.Exec(t, conn, test.wrong)
			found := finding(diagnose(t, conn), "wal", test.words...)
			if found == nil {
				t.Fatalf("not found: %v", diagnose(t, conn))
			}
			if test.by == "" {
				test.by = strings.Join(found.Mend, "\n")
			}
			pgtest.Exec(t, conn, test.by)
			if again := finding(diagnose(t, conn), "wal", test.words...); again != nil {
				t.Errorf("after %s: still %q", test.by, again.Message)
			}
		})
	}
}
