// Package doctor looks at a database and says what is wrong with it for Trumpet, since when, and what
// mends it.
//
// Every check only reads, in a read-only transaction of its own that is bounded in time. What the role may not see is
// reported as not checked; it never fails the rest. The package starts no goroutine.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/sql"
)

// Severity says who has to act: nobody, somebody soon, somebody now.
type Severity string

// The severities.
const (
	OK      Severity = "ok"
	Warning Severity = "warning"
	Error   Severity = "error"
)

func (s Severity) rank() int { return slices.Index([]Severity{Error, Warning, OK}, s) }

// Finding is what one check found. Its texts hold no control characters, whatever tables are called.
type Finding struct {
	Check    string     `json:"check"`
	Severity Severity   `json:"severity"`
	Message  string     `json:"message"`
	Since    *time.Time `json:"since,omitempty"`
	// Mend are commands and SQL statements, in order, which may be run as they stand; what
	// needs a decision says so in a comment.
	Mend []string `json:"mend,omitempty"`
	// Skipped: the check could not be made; Message says why.
	Skipped bool `json:"skipped,omitempty"`
}

// Options are what workers were told and the database does not know, and what is long. Zero values mean the
// defaults.
type Options struct {
	Retention      time.Duration // default 24 h
	RetentionBytes int64         // default 1 GiB
	Prepared       time.Duration // how long a prepared transaction may stay; default 5 min
}

func (o Options) withDefaults() Options {
	return Options{cmp.Or(o.Retention, 24*time.Hour), cmp.Or(o.RetentionBytes, 1<<30), cmp.Or(o.Prepared, 5*time.Minute)}
}

const (
	// checkTimeout bounds every statement of a check.
	checkTimeout = "5s"
	// maxNamed is how many things of a kind one finding names.
	maxNamed = 5
)

// examination is one run. A check adds what it finds to findings.
type examination struct {
	ctx      context.Context // of Diagnose: the checks are its parts
	conn     *pgx.Conn
	tx       pgx.Tx // of the check that is made
	options  Options
	check    string
	schema   bool // schema trumpet is there, in this binary's version
	findings []Finding
}

// checks in the order in which they are made. Those without the schema need it.
var checks = []struct {
	name          string
	withoutSchema bool
	make          func(*examination) error
}{
	{"server", true, (*examination).server},
	{"schema", true, (*examination).migrations},
	{"rights", false, (*examination).rights},
	{"watches", false, (*examination).watches},
	{"wal", false, (*examination).wal},
	{"replica", false, (*examination).replica},
	{"wake", false, (*examination).wake},
	{"pending", false, (*examination).pending},
	{"live", false, (*examination).live},
	{"locks", false, (*examination).locks},
	{"workers", false, (*examination).workers},
	{"sockets", true, (*examination).sockets},
	{"queue", true, (*examination).queue},
	{"log", false, (*examination).log},
	{"holes", false, (*examination).holes},
	{"cluster", false, (*examination).cluster},
	{"autovacuum", false, (*examination).autovacuum},
	{"prepared", true, (*examination).prepared},
	{"durability", true, (*examination).durability},
	{"connections", true, (*examination).connections},
	{"access", true, (*examination).access},
}

// Diagnose makes all checks and returns what they found, the gravest first. A check that found nothing wrong gives
// one finding that is ok. The error is for a connection that broke.
func Diagnose(ctx context.Context, conn *pgx.Conn, options Options) ([]Finding, error) {
	e := &examination{ctx: ctx, conn: conn, options: options.withDefaults()}
	if err := e.pooler(); err != nil {
		return nil, err
	}
	for _, c := range checks {
		if conn.IsClosed() {
			break // a pooler in statement mode lets no transaction begin
		}
		e.check = c.name
		if !c.withoutSchema && !e.schema {
			e.skip("it needs schema trumpet as this binary knows it")
			continue
		}
		before := len(e.findings)
		if err := e.make(c.make); err != nil {
			return nil, fmt.Errorf("check %s: %w", c.name, err)
		}
		if len(e.findings) == before {
			e.add(OK, "nothing found")
		}
	}
	slices.SortStableFunc(e.findings, func(a, b Finding) int { return cmp.Compare(a.Severity.rank(), b.Severity.rank()) })
	for i := range e.findings {
		f := &e.findings[i]
		f.Message = printable(f.Message)
		for j := range f.Mend {
			f.Mend[j] = printable(f.Mend[j])
		}
	}
	return e.findings, nil
}

// make makes one check in its own transaction. What Postgres refuses is a finding.
func (e *examination) make(check func(*examination) error) error {
	err := pgx.BeginTxFunc(e.ctx, e.conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// All for this transaction alone: the session may be a pooler's.
		if _, err := tx.Exec(e.ctx, "select set_config('statement_timeout', '"+checkTimeout+"', true), set_config('lock_timeout', '1s', true), set_config('search_path', 'pg_catalog', true), set_config('jit', 'off', true)"); err != nil {
			return err
		}
		e.tx = tx
		return check(e)
	})
	var refused *pgconn.PgError
	switch {
	case !errors.As(err, &refused):
		return err
	case refused.Code == "42501":
		e.skip(refused.Message + "; run it as the schema's owner or as a superuser")
	case refused.Code == "57014":
		e.skip("it took more than " + checkTimeout)
	default:
		e.add(Warning, "this check failed: "+refused.Message)
	}
	return nil
}

func (e *examination) add(severity Severity, message string, mend ...string) {
	e.findings = append(e.findings, Finding{Check: e.check, Severity: severity, Message: message, Mend: mend})
}

// addSince adds what is known to be so since a time, if it is known.
func (e *examination) addSince(severity Severity, since *time.Time, message string, mend ...string) {
	e.findings = append(e.findings, Finding{Check: e.check, Severity: severity, Message: message, Since: since, Mend: mend})
}

func (e *examination) skip(why string) {
	e.findings = append(e.findings, Finding{Check: e.check, Severity: OK, Message: "not checked: " + why, Skipped: true})
}

// scan reads the one row of a query.
func (e *examination) scan(query string, targets ...any) error {
	return e.tx.QueryRow(e.ctx, query).Scan(targets...)
}

// rows reads all rows of a query into a struct each, by the order of its fields.
func rows[T any](e *examination, query string, args ...any) ([]T, error) {
	found, err := e.tx.Query(e.ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(found, pgx.RowToStructByPos[T])
}

// pooler is first: through one that shares sessions nothing else is as it seems.
func (e *examination) pooler() error {
	e.check = "pooler"
	ctx, cancel := context.WithTimeout(e.ctx, 5*time.Second)
	defer cancel()
	err := sql.CheckSession(ctx, e.conn.PgConn(), func(ctx context.Context) (*pgconn.PgConn, error) {
		config := e.conn.Config()
		return pgconn.ConnectConfig(ctx, &config.Config)
	})
	switch {
	case err == nil:
		e.add(OK, "this session is its own")
	case errors.Is(err, sql.ErrSharedSession):
		e.add(Error, err.Error(),
			"-- in pgbouncer.ini: pool_mode = session for this database, or in the workers' DATABASE_URL Postgres's own address")
	case e.ctx.Err() != nil || e.conn.IsClosed():
		return fmt.Errorf("check pooler: %w", err)
	default:
		e.skip(err.Error())
	}
	return nil
}
