package doctor_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/sql/doctor"
)

// On a standby every check is made, and the first finding says what it is.
func TestStandby(t *testing.T) {
	t.Parallel()
	server, url := pgtest.StartMigrated(t, nil)
	// The server itself writes the file that makes it one at its next start.
	pgtest.Exec(t, pgtest.Connect(t, url), "copy (select 1) to '"+filepath.Join(server.Dir(), "data", "standby.signal")+"'")
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	findings := diagnose(t, pgtest.Connect(t, url))
	if f := findings[0]; f.Check != "server" || f.Severity != doctor.Error || !strings.Contains(f.Message, "is a standby") {
		t.Errorf("first comes %+v", f)
	}
	for _, f := range findings {
		if f.Skipped || strings.Contains(f.Message, "failed") {
			t.Errorf("%+v", f)
		}
	}
}

// A transaction that was prepared and forgotten: with a name that has to be quoted, and what ends it.
func TestPreparedTransactions(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	pgtest.Exec(t, conn, "create table jobs (id int primary key); select trumpet.watch('jobs')")
	pgtest.Exec(t, conn, "begin; set local trumpet.wake = 'off'; insert into jobs values (1); prepare transaction E'it''s "+t.Name()+`\\ \u001b'`)
	if f := finding(diagnose(t, conn), "prepared"); f != nil {
		t.Errorf("a young one: %+v", f)
	}
	findings, err := doctor.Diagnose(t.Context(), conn, doctor.Options{Prepared: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	f := finding(findings, "prepared", "1 transaction is prepared")
	if f == nil || f.Since == nil || time.Since(*f.Since) > time.Minute || strings.Contains(f.Mend[0], "\x1b") {
		t.Fatalf("%+v", f)
	}
	pgtest.Exec(t, conn, f.Mend[0])
	var left int
	if err := conn.QueryRow(t.Context(), "select count(*) from pg_prepared_xacts where database = current_database()").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d prepared transactions are left, %v", left, err)
	}
}

// What writes to watched tables without firing triggers: a subscription, and roles that may turn triggers off.
func TestWritesThatFireNoTriggers(t *testing.T) {
	t.Parallel()
	_, url := pgtest.StartMigrated(t, nil)
	conn := pgtest.Connect(t, url)
	pgtest.Exec(t, conn, "set client_min_messages = error; create table jobs (id int primary key); select trumpet.watch('jobs')")
	pgtest.Exec(t, conn, "create subscription s connection 'host=127.0.0.1 port=1' publication p with (connect = false, slot_name = none)")
	pgtest.Exec(t, conn, "insert into pg_subscription_rel select oid, 'jobs'::regclass, 'r', null from pg_subscription")
	if f := finding(diagnose(t, conn), "watches", "a subscription", "public.jobs"); f == nil || f.Severity != doctor.Warning {
		t.Errorf("a subscription: %+v", f)
	}
	pgtest.Exec(t, conn, `create role "loader 1"; alter role "loader 1" set session_replication_role = replica`)
	f := finding(diagnose(t, conn), "replica", `role "loader 1"`)
	if f == nil || f.Severity != doctor.Error {
		t.Fatalf("a role that writes so by default: %+v", f)
	}
	pgtest.Exec(t, conn, f.Mend[0])
	if f := finding(diagnose(t, conn), "replica"); f != nil {
		t.Errorf("after its mending: %+v", f)
	}
	if version(t, conn) < 150000 {
		return // only superusers may set it
	}
	pgtest.Exec(t, conn, `grant set on parameter session_replication_role to "loader 1"`)
	if f = finding(diagnose(t, conn), "replica", `role "loader 1" may set`); f == nil || f.Severity != doctor.Warning {
		t.Fatalf("a role that may write so: %+v", f)
	}
	pgtest.Exec(t, conn, f.Mend[0])
	if f := finding(diagnose(t, conn), "replica"); f != nil {
		t.Errorf("after its mending: %+v", f)
	}
}

func version(t *testing.T, conn *pgx.Conn) (number int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "select current_setting('server_version_num')::int").Scan(&number); err != nil {
		t.Fatal(err)
	}
	return number
}

// The queue fills up while a session listens and sits in a transaction: who that is, and what ends it. Before
// Postgres 17 the queue holds 8 GB, and nothing short of that is to be found.
func TestNotificationQueue(t *testing.T) {
	t.Parallel()
	conn := pgtest.Connect(t, pgtest.Migrated(t))
	if version(t, conn) < 170000 {
		for _, f := range diagnose(t, conn) {
			if f.Check == "queue" && (f.Severity != doctor.OK || !strings.Contains(f.Message, "0.0 %")) {
				t.Errorf("%+v", f)
			}
		}
		return
	}
	_, url := pgtest.StartMigrated(t, map[string]string{"max_notify_queue_pages": "64"})
	conn = pgtest.Connect(t, url)
	holder := pgtest.Connect(t, url)
	pgtest.Exec(t, holder, "set application_name = 'the holder'; listen anything")
	pgtest.Exec(t, holder, "begin; select 1")
	var usage float64
	for filled := 0; usage < 0.6 && filled < 200; filled++ {
		pgtest.Exec(t, conn, "select pg_notify('anything', repeat('x', 4000) || $1::int)", filled)
		if err := conn.QueryRow(t.Context(), "select pg_notification_queue_usage()").Scan(&usage); err != nil {
			t.Fatal(err)
		}
		f := finding(diagnose(t, conn), "queue")
		want := doctor.OK
		if usage > 0.5 {
			want = doctor.Error
		} else if usage > 0.1 {
			want = doctor.Warning
		}
		if got := f; want == doctor.OK && got != nil || want != doctor.OK && (got == nil || got.Severity != want) {
			t.Fatalf("at %v: %+v", usage, f)
		}
	}
	const holders = " from pg_stat_activity where application_name = 'the holder'"
	waitFor(t, conn, "select now() - xact_start > interval '2 seconds'"+holders) // or it is none to be suspected
	f := finding(diagnose(t, conn), "queue", "'the holder'", "idle in transaction")
	if f == nil || f.Since == nil || len(f.Mend) == 0 {
		t.Fatalf("%+v", f)
	}
	pgtest.Exec(t, conn, f.Mend[0])
	waitFor(t, conn, "select count(*) = 0"+holders)
	if f := finding(diagnose(t, conn), "queue"); f != nil {
		t.Errorf("after its mending: %+v", f)
	}
}

func waitFor(t *testing.T, conn *pgx.Conn, condition string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var ok bool
		if err := conn.QueryRow(t.Context(), condition).Scan(&ok); err != nil {
			t.Fatalf("%s: %v", condition, err)
		}
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for: %s", condition)
		}
	}
}
