// Package pgtest gives each test a Postgres database of its own.
//
// A test binary starts one server when its first test asks for one; the server ends
// with the binary, however that ends (see package postgres). When TRUMPET_TEST_POSTGRES
// holds the URL of a server whose superuser may create databases, that one is used
// instead, so that a whole `go test ./...` can share it: go run
// ./internal/pgtest/withpostgres go test ./... does that. The package starts no
// goroutine that a test would have to wait for.
package pgtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/postgres"
	"github.com/trumpet-realtime/trumpet/sql"
)

// Variable names the environment variable with the URL of a shared server.
const Variable = "TRUMPET_TEST_POSTGRES"

// timeout bounds what happens once for many tests, and cleaning up, where no test's
// context applies.
const timeout = time.Minute

// Settings are those of test servers: quick, because nobody needs the data after a
// crash of the machine.
func Settings() map[string]string {
	return map[string]string{
		"fsync":                     "off",
		"full_page_writes":          "off",
		"max_connections":           "300",
		"wal_level":                 "logical",
		"autovacuum_naptime":        "1h", // its transactions would disturb tests of snapshots
		"max_prepared_transactions": "10",
	}
}

// New makes an empty database and returns its URL. It is dropped when the test ends.
func New(t testing.TB) string {
	t.Helper()
	admin := mustAdmin(t)
	return create(t, admin, "")
}

// Migrated makes a database that has the schema trumpet, as sql.Up makes it, and
// returns its URL. It is a copy of a template, which takes some 30 ms.
func Migrated(t testing.TB) string {
	t.Helper()
	admin := mustAdmin(t)
	template, err := migratedTemplate()
	if err != nil {
		t.Fatal(err)
	}
	return create(t, admin, template)
}

// MigratedForWAL makes a database that has the schema trumpet, on a server which only tests that read its WAL share: a
// replication slot waits until all who write to its server have ended their transactions, and other tests hold some open.
func MigratedForWAL(t testing.TB) string {
	t.Helper()
	admin, err := walAdminURL()
	if err != nil {
		t.Fatal(err)
	}
	url := create(t, admin, "")
	t.Cleanup(func() { // before it is dropped: that takes its slots with it, but none that is read
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), timeout)
		defer cancel()
		if err := waitForReaders(ctx, url); err != nil {
			t.Error(err)
		}
	})
	if err := migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	return url
}

func waitForReaders(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to postgres for tests: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for read := true; read; {
		err := conn.QueryRow(ctx, "select exists (select from pg_replication_slots where database = current_database() and active)").Scan(&read)
		if err != nil {
			return fmt.Errorf("wait for readers of the WAL: %w", err)
		}
	}
	return nil
}

// Start starts a server for this test alone: for faults, and for what is counted over
// a whole server. Settings are added to those of Settings.
func Start(t testing.TB, settings map[string]string) *postgres.Server {
	t.Helper()
	all := Settings()
	maps.Copy(all, settings)
	server, err := postgres.Start(t.Context(), postgres.Options{Settings: all})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), timeout)
		defer cancel()
		if err := server.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return server
}

// StartMigrated starts a server for this test alone, and returns the URL of a database in it that has
// the schema trumpet.
func StartMigrated(t testing.TB, settings map[string]string) (server *postgres.Server, url string) {
	t.Helper()
	server = Start(t, settings)
	const name = "app"
	if err := server.CreateDatabase(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	url = server.URL(name)
	if err := migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	return server, url
}

// adminURL is that of the shared server, or of this binary's own.
var adminURL = sync.OnceValues(func() (string, error) {
	if shared := os.Getenv(Variable); shared != "" {
		return shared, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	// Nobody closes it: it ends with this process.
	server, err := postgres.Start(ctx, postgres.Options{Settings: Settings()})
	if err != nil {
		return "", fmt.Errorf("start postgres for tests: %w", err)
	}
	return server.URL("postgres"), nil
})

// walAdminURL is that of this binary's server for tests that read its WAL.
var walAdminURL = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	// Nobody closes it: it ends with this process.
	server, err := postgres.Start(ctx, postgres.Options{Settings: Settings()})
	if err != nil {
		return "", fmt.Errorf("start postgres for tests: %w", err)
	}
	return server.URL("postgres"), nil
})

func mustAdmin(t testing.TB) string {
	t.Helper()
	admin, err := adminURL()
	if err != nil {
		t.Fatal(err) // a missing database fails a test, it does not skip it
	}
	return admin
}

// create makes a database, from a template unless that is empty.
func create(t testing.TB, admin, template string) string {
	t.Helper()
	name := "t_" + strings.ToLower(rand.Text()[:12])
	statement := "create database " + name
	if template != "" {
		statement += " template " + template
	}
	if err := exec(t.Context(), admin, statement); err != nil {
		t.Fatalf("create database for test: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), timeout)
		defer cancel()
		if err := exec(ctx, admin, "drop database "+name+" with (force)"); err != nil {
			t.Errorf("drop database of test: %v", err)
		}
	})
	return withDatabase(admin, name)
}

// migratedTemplate makes the template once for a server: its name holds what the
// migrations are, so that test binaries share it and an old one is never taken.
var migratedTemplate = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	admin, err := adminURL()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	if err := sql.Print(sum, false); err != nil {
		return "", err
	}
	name := "template_" + hex.EncodeToString(sum.Sum(nil)[:8])

	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return "", fmt.Errorf("connect to postgres for tests: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "select pg_advisory_lock(hashtext('trumpet pgtest'))"); err != nil {
		return "", fmt.Errorf("lock template: %w", err)
	}
	var exists bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", name).Scan(&exists); err != nil {
		return "", fmt.Errorf("look for template: %w", err)
	}
	if exists {
		return name, nil
	}
	draft := name + "_draft" // a template that is not finished must not be found
	for _, statement := range []string{"drop database if exists " + draft, "create database " + draft} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return "", fmt.Errorf("create template: %w", err)
		}
	}
	if err := migrate(ctx, withDatabase(admin, draft)); err != nil {
		return "", fmt.Errorf("migrate template: %w", err)
	}
	if _, err := conn.Exec(ctx, "alter database "+draft+" rename to "+name); err != nil {
		return "", fmt.Errorf("rename template: %w", err)
	}
	return name, nil
})

func migrate(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = sql.Up(ctx, conn)
	return err
}

func exec(ctx context.Context, url, statement string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, statement)
	return err
}

func withDatabase(admin, name string) string {
	u, err := url.Parse(admin)
	if err != nil || u.Scheme == "" {
		panic(Variable + " must be a URL, postgres://…") // its text may hold a password
	}
	u.Path = "/" + name
	return u.String()
}

// Connect opens a connection that ends with the test.
func Connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Exec runs statements, and fails the test if one of them fails.
func Exec(t testing.TB, conn *pgx.Conn, statements string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), statements, args...); err != nil {
		t.Fatalf("%s: %v", statements, err)
	}
}
