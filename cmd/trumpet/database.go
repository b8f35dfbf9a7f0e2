package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/pflag"
)

// connectTimeout bounds a connect whose URL does not.
const connectTimeout = 10 * time.Second

// databaseFlags say which database.
type databaseFlags struct{ url string }

func (d *databaseFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&d.url, "database-url", "d", "",
		"`URL` of the database, or keyword=value pairs; libpq's PGHOST, PGUSER, … fill in the rest")
	withTwin(flags, "database-url")
}

// parse reads the URL. Its errors hold no password.
func (d *databaseFlags) parse() (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(d.url)
	if err != nil {
		// What pgx says repeats the URL, and its idea of what is a password in a broken one
		// may differ from ours: the reason alone is enough.
		reason := errors.Unwrap(err)
		if reason == nil || strings.Contains(reason.Error(), d.url) {
			reason = errors.New("it is neither a URL nor keyword=value pairs")
		}
		return nil, usageError{fmt.Errorf("cannot read the database URL (--database-url or $DATABASE_URL): %s", oneLine(reason))}
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	return config, nil
}

// connect opens one connection under the name of a command.
func (d *databaseFlags) connect(ctx context.Context, command string) (*pgx.Conn, error) {
	config, err := d.parse()
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = "trumpet " + command
	// No prepared statements: through a pooler they would stay behind in sessions of others.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, explainConnect(config, err)
	}
	return conn, nil
}

// withConn runs f with a connection.
func (d *databaseFlags) withConn(ctx context.Context, command string, f func(*pgx.Conn) error) error {
	conn, err := d.connect(ctx, command)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	return f(conn)
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // what it was for is done, or it was said why not
}

// unreachableError: Postgres did not answer, and may later.
type unreachableError struct{ error }

// target is a database in words, without its password.
func target(config *pgx.ConnConfig) string {
	where := net.JoinHostPort(config.Host, fmt.Sprint(config.Port))
	if strings.HasPrefix(config.Host, "/") {
		where = fmt.Sprintf("%s/.s.PGSQL.%d", config.Host, config.Port)
	}
	return fmt.Sprintf("database %q at %s as %q", config.Database, where, config.User)
}

// explainConnect says what was tried, what went wrong, and what to do.
func explainConnect(config *pgx.ConnConfig, err error) error {
	var (
		hint     string
		answered bool
		pg       *pgconn.PgError
		resolve  *net.DNSError
	)
	switch {
	case errors.As(err, &pg):
		err = errors.New(pg.Message)
		answered = pg.Code[:2] != "57" && pg.Code[:2] != "53" // starting up or ending, or full
		switch pg.Code {
		case "28P01":
			hint = "check the password (in the URL, $PGPASSWORD or ~/.pgpass)"
		case "28000":
			hint = "check the user, and pg_hba.conf on the server"
		case "3D000":
			hint = "create it (createdb), or name another one"
		case "53300":
			hint = "Postgres has no connection left (max_connections)"
		}
	case errors.As(err, &resolve):
		err = fmt.Errorf("cannot resolve %q", resolve.Name)
		hint = "check the host in the URL, or $PGHOST"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		err = errors.New("nobody listens there")
		hint = "is Postgres running? Give its address with --database-url, $DATABASE_URL or $PGHOST"
	case errors.Is(err, context.DeadlineExceeded):
		err = errors.New("no answer in time")
		hint = "check the address, and firewalls on the way"
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted")
	default:
		err = innermost(err)
	}
	message := fmt.Sprintf("cannot connect to %s: %s", target(config), oneLine(err))
	if hint != "" {
		message += "; " + hint
	}
	if !answered {
		return unreachableError{errors.New(message)}
	}
	return errors.New(message)
}

// explainPostgres says what Postgres said, and its hint, without the forms of the protocol.
func explainPostgres(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	message := strings.Replace(err.Error(), pg.Error(), strings.TrimPrefix(pg.Message, "trumpet: "), 1)
	if pg.Hint != "" {
		message += "\n  " + pg.Hint
	}
	return errors.New(message)
}

func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// oneLine is an error's text on one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
