package integration

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// captureVariable names the environment variable that says how tests watch their tables: triggers, which is
// the default; wal; or mixed: by the WAL if the table's name has an even number of letters.
//
// Some tests have triggers whatever it says:
//
//	TestTablesChangeUnderAWatch  is about triggers that are disabled, dropped, or do not fire
//	TestDocs                     does what the documents say, to the letter
//	TestPooler…                  PgBouncer before 1.23 passes no replication connections on
const captureVariable = "TRUMPET_TEST_CAPTURE"

// capture is how tests' tables are watched.
var capture = os.Getenv(captureVariable)

func checkCapture() error {
	switch capture {
	case "", "triggers", "wal", "mixed":
		return nil
	}
	return fmt.Errorf("%s is triggers, wal or mixed, not %q", captureVariable, capture)
}

// readsWAL reports whether some tables are watched by the WAL.
func readsWAL(capture string) bool { return capture == "wal" || capture == "mixed" }

// byWAL reports whether a table is.
func byWAL(capture, table string) bool {
	return capture == "wal" || capture == "mixed" && len(table)%2 == 0
}

var (
	watchStatement = regexp.MustCompile(`select trumpet\.watch\([^;]*`)
	watchCall      = regexp.MustCompile(`trumpet\.watch\('([^']+)'[^()]*\)`)
)

// watching changes a script so that its tables are watched as the variable says, with the whole row as their
// replica identity: events have old values then, as they have by triggers.
func watching(script string) string { return watchingBy(capture, script) }

func watchingBy(capture, script string) string {
	return watchStatement.ReplaceAllStringFunc(script, func(statement string) string {
		var identities strings.Builder
		statement = watchCall.ReplaceAllStringFunc(statement, func(call string) string {
			table := watchCall.FindStringSubmatch(call)[1]
			if !byWAL(capture, table) {
				return call
			}
			fmt.Fprintf(&identities, `do $do$ declare part regclass; begin
				for part in select '%[1]s'::regclass union select relid from pg_partition_tree('%[1]s') loop
					execute format('alter table %%s replica identity full', part);
				end loop; end $do$; `, table)
			return strings.TrimSuffix(call, ")") + ", capture => 'wal')"
		})
		return identities.String() + statement
	})
}

// emptyDatabase makes a database, on a server of its own if its WAL is to be read: a slot that is made waits for all
// who write on its server.
func emptyDatabase(t *testing.T, capture string) (url string, conn *pgx.Conn) {
	t.Helper()
	if readsWAL(capture) {
		_, url = pgtest.StartMigrated(t, nil)
	} else {
		url = pgtest.Migrated(t)
	}
	return url, pgtest.Connect(t, url)
}

// prepare makes the watched jobs and customers, and a replication slot if there is to be one.
func prepare(t *testing.T, capture, url string, conn *pgx.Conn) {
	t.Helper()
	pgtest.Exec(t, conn, watchingBy(capture, schema))
	awaitSlot(t, url, conn)
}

// awaitSlot has a worker make the replication slot, if a table is watched by the WAL, and tell of it in the
// log. From there on everything comes by itself, whenever a worker reads it.
func awaitSlot(t *testing.T, url string, conn *pgx.Conn) {
	t.Helper()
	if !queryOne[bool](t, conn, "select wanted from trumpet.wal_state()") {
		return
	}
	w := startWorker(t, url, "w0")
	poll(t.Context(), t, "a replication slot", func() bool {
		return queryOne[bool](t, conn, "select s.slot is not null and not h.pending from trumpet.wal_state() s, trumpet.head() h")
	})
	w.stop(t)
}
