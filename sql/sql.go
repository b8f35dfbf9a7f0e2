// Package sql is the schema trumpet: as files, for whoever applies them, and as a
// migrator that does it.
//
// The files under migrations are the source: plain SQL without psql's commands and
// without BEGIN and COMMIT, so that psql and any migration tool can run them. Each
// notes its own version in trumpet.migration; so it does not matter who ran it. The
// package starts no goroutine.
package sql

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed migrations/*.sql
var files embed.FS

// Migration is one step of the schema. Up and Down are SQL scripts.
type Migration struct {
	Version  int
	Name     string
	Up, Down string
}

// Status is a migration and when it was applied; a zero time means that it was not.
type Status struct {
	Migration
	AppliedAt time.Time
}

var fileName = regexp.MustCompile(`^(\d{4})_(\w+)\.up\.sql$`)

// Migrations returns all migrations in the order of their versions: 1, 2, ….
func Migrations() []Migration {
	entries, err := fs.ReadDir(files, "migrations")
	if err != nil {
		panic(err) // embedded at build time
	}
	var all []Migration
	for _, entry := range entries {
		match := fileName.FindStringSubmatch(entry.Name())
		if match == nil {
			continue
		}
		version, err := strconv.Atoi(match[1])
		if err != nil {
			panic(err)
		}
		all = append(all, Migration{
			Version: version,
			Name:    match[2],
			Up:      mustRead(entry.Name()),
			Down:    mustRead(match[1] + "_" + match[2] + ".down.sql"),
		})
	}
	return all
}

func mustRead(name string) string {
	b, err := files.ReadFile("migrations/" + name)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Print writes the whole schema as plain SQL, or with down what takes it back.
func Print(w io.Writer, down bool) error {
	all := Migrations()
	for i := range all {
		script := all[i].Up
		if down {
			script = all[len(all)-1-i].Down
		}
		if i > 0 {
			script = "\n" + script
		}
		if _, err := io.WriteString(w, script); err != nil {
			return fmt.Errorf("print schema: %w", err)
		}
	}
	return nil
}

// Up applies what is not applied yet, all in one transaction, and returns it.
func Up(ctx context.Context, conn *pgx.Conn) ([]Migration, error) {
	return migrate(ctx, conn, func(list []Status) (todo []Migration, scripts []string) {
		for _, s := range list {
			if s.AppliedAt.IsZero() {
				todo = append(todo, s.Migration)
				scripts = append(scripts, s.Up)
			}
		}
		return todo, scripts
	})
}

// Down takes everything back, newest first, in one transaction: the database is then
// as it was found. What is in the log is lost, and the triggers on watched tables go.
func Down(ctx context.Context, conn *pgx.Conn) ([]Migration, error) {
	return migrate(ctx, conn, func(list []Status) (todo []Migration, scripts []string) {
		for i := len(list) - 1; i >= 0; i-- {
			if !list[i].AppliedAt.IsZero() {
				todo = append(todo, list[i].Migration)
				scripts = append(scripts, list[i].Down)
			}
		}
		return todo, scripts
	})
}

func migrate(ctx context.Context, conn *pgx.Conn, plan func([]Status) ([]Migration, []string)) ([]Migration, error) {
	var done []Migration
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// The lock that trumpet.watch takes too: the class is 'trmp', 5 is the schema.
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(1953656176, 5)"); err != nil {
			return fmt.Errorf("lock schema: %w", err)
		}
		list, err := List(ctx, tx)
		if err != nil {
			return err
		}
		todo, scripts := plan(list)
		for i, m := range todo {
			// Without arguments pgx sends the whole script as one simple query.
			if _, err := tx.Exec(ctx, scripts[i]); err != nil {
				return fmt.Errorf("migration %d (%s): %w", m.Version, m.Name, explain(err))
			}
		}
		done = todo
		return nil
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// explain adds what to do to an error that a role without rights gets.
func explain(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return fmt.Errorf("%w: the role needs CREATE on the database (grant create on database … to …)", err)
	}
	return err
}

// Querier is what List and Check need: a connection, a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// List returns all migrations and which of them are applied.
func List(ctx context.Context, db Querier) ([]Status, error) {
	applied, err := appliedAt(ctx, db)
	if err != nil {
		return nil, err
	}
	var list []Status
	for _, m := range Migrations() {
		list = append(list, Status{Migration: m, AppliedAt: applied[m.Version]})
		delete(applied, m.Version)
	}
	for version := range applied {
		return nil, fmt.Errorf("the database has Trumpet's migration %d, which this binary does not know: it is older than the schema", version)
	}
	return list, nil
}

func appliedAt(ctx context.Context, db Querier) (map[int]time.Time, error) {
	// to_regclass would look the schema up with rights that a worker may not have.
	rows, err := db.Query(ctx, `select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = 'trumpet' and c.relname = 'migration')`)
	if err != nil {
		return nil, fmt.Errorf("look for schema trumpet: %w", err)
	}
	exists, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool])
	if err != nil {
		return nil, fmt.Errorf("look for schema trumpet: %w", err)
	}
	applied := make(map[int]time.Time)
	if !exists {
		return applied, nil
	}
	rows, err = db.Query(ctx, "select version, applied_at from trumpet.migration")
	if err != nil {
		return nil, fmt.Errorf("read trumpet.migration: %w", err)
	}
	var (
		version int
		at      time.Time
	)
	if _, err := pgx.ForEachRow(rows, []any{&version, &at}, func() error {
		applied[version] = at
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read trumpet.migration: %w", err)
	}
	return applied, nil
}

// ErrSchema is wrapped by the errors of Check that say that the database does not have
// the schema this binary needs.
var ErrSchema = errors.New("the database is not ready for Trumpet")

// Check returns an error that says what to do unless the database has the schema that
// this binary needs.
func Check(ctx context.Context, db Querier) error {
	list, err := List(ctx, db)
	if err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "42501" {
			return fmt.Errorf("%w: this role may not use schema trumpet; as its owner run: select trumpet.grant_worker('role'): %w", ErrSchema, err)
		}
		return err
	}
	missing := 0
	for _, s := range list {
		if s.AppliedAt.IsZero() {
			missing++
		}
	}
	switch {
	case missing == len(list):
		return fmt.Errorf("%w: it has no schema trumpet; run: trumpet migrate up", ErrSchema)
	case missing > 0:
		return fmt.Errorf("%w: %d of %d migrations are missing; run: trumpet migrate up", ErrSchema, missing, len(list))
	}
	return nil
}
