// Package postgres starts private Postgres servers for the demo and for tests.
//
// A server listens on loopback and on a Unix socket in its own directory, asks for a
// random password on both, may have streaming standbys, and ends with the process that started it, even when that is
// killed: a shell stands between the two and waits at a pipe that only the death of the
// starter can close. As root the server runs as the user postgres or nobody, because
// Postgres refuses to run as root.
//
// Each running server has one goroutine, which waits for the shell; Stop, Kill and
// Close wait for it.
package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// superuser owns everything in a private server.
//
// It must not be called trumpet: with Postgres's default search_path, "$user", public, all that
// such a role creates without naming a schema lands in schema trumpet.
const superuser = "postgres"

// startTimeout bounds a start when the caller's context does not.
const startTimeout = time.Minute

// Options say how to start a server. The zero value starts a temporary one.
type Options struct {
	// Dir holds everything of the server, and is kept by Close. It must be new,
	// empty, or one that Start filled before. Empty means a temporary directory.
	Dir string
	// Settings are configuration parameters, such as {"fsync": "off"}.
	Settings map[string]string
	// Port is the TCP port on 127.0.0.1; 0 lets the kernel choose.
	Port int
	// ListenAddresses are addresses to listen on beside 127.0.0.1. Hosts of the same network get
	// in, with the password.
	ListenAddresses []string
	// Wrap changes the command that runs the server before it is started, as by putting it into a
	// network namespace; nil leaves it as it is.
	Wrap func(*exec.Cmd)
	// Bindir holds initdb and postgres; empty means what FindBindir finds.
	Bindir string
	// Logger hears of starts and stops; nil means nobody.
	Logger *slog.Logger
}

// Server is a private Postgres server. Its methods may not be called concurrently,
// except URL, SocketURL, Exec and CreateDatabase.
type Server struct {
	options   Options
	dir       string
	temporary bool
	version   string
	port      int
	password  string
	owner     *owner
	logger    *slog.Logger
	started   bool     // once; from then on the port is known to others
	process   *process // nil while the server is stopped
}

// Start makes a server, or starts again the one that Options.Dir holds, and returns
// when it answers. The caller calls Close.
func Start(ctx context.Context, options Options) (*Server, error) {
	return start(ctx, options, nil)
}

// start makes a server, or a standby of primary.
func start(ctx context.Context, options Options, primary *Server) (*Server, error) {
	logger := options.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	owner, err := findOwner()
	if err != nil {
		return nil, err
	}
	if options.Bindir == "" {
		bindir, err := FindBindir()
		if err != nil {
			return nil, err
		}
		options.Bindir = bindir
	}
	version, err := binaryVersion(ctx, options.Bindir)
	if err != nil {
		return nil, err
	}
	s := &Server{options: options, version: version, port: options.Port, owner: owner, logger: logger}
	if err := s.prepare(ctx, primary); err != nil {
		return nil, errors.Join(err, s.removeTemporary())
	}
	if err := s.run(ctx); err != nil {
		return nil, errors.Join(err, s.removeTemporary())
	}
	return s, nil
}

// prepare makes the directory and what is in it, unless all that is there.
func (s *Server) prepare(ctx context.Context, primary *Server) error {
	if err := s.makeDir(); err != nil {
		return err
	}
	passwordFile := filepath.Join(s.dir, "password")
	have, err := os.ReadFile(filepath.Join(s.data(), "PG_VERSION"))
	switch {
	case err == nil:
		if major, _, _ := strings.Cut(s.version, "."); strings.TrimSpace(string(have)) != major {
			return fmt.Errorf("open %s: it was made by Postgres %s, and the one found in %s is %s; use another directory or set %s",
				s.dir, strings.TrimSpace(string(have)), s.options.Bindir, s.version, bindirVariable)
		}
		password, err := os.ReadFile(passwordFile)
		if err != nil {
			return fmt.Errorf("read password: %w", err)
		}
		s.password = strings.TrimSpace(string(password))
		return s.admitNeighbours()
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("open %s: %w", s.dir, err)
	}
	s.password = rand.Text()[:16]
	if primary != nil {
		s.password = primary.password // it is in what is copied
	}
	if err := os.WriteFile(passwordFile, []byte(s.password+"\n"), 0o600); err != nil {
		return fmt.Errorf("write password: %w", err)
	}
	if err := s.owner.give(passwordFile); err != nil {
		return err
	}
	if primary != nil {
		err = s.copyFrom(ctx, primary)
	} else {
		err = s.initdb(ctx, passwordFile)
	}
	if err != nil {
		// The directory is as it was, so that it can be tried again.
		return errors.Join(err, os.Remove(passwordFile))
	}
	return s.admitNeighbours()
}

// neighbours is the line of pg_hba.conf that lets hosts of the same network in.
const neighbours = "host all all samenet scram-sha-256\n"

// admitNeighbours lets in who comes to the addresses beside 127.0.0.1.
func (s *Server) admitNeighbours() error {
	if len(s.options.ListenAddresses) == 0 {
		return nil
	}
	path := filepath.Join(s.data(), "pg_hba.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read pg_hba.conf: %w", err)
	}
	if strings.Contains(string(text), neighbours) {
		return nil
	}
	if err := os.WriteFile(path, append(text, neighbours...), 0o600); err != nil { // its owner stays
		return fmt.Errorf("write pg_hba.conf: %w", err)
	}
	return nil
}

// makeDir makes the directory, or checks that it is one that may be used.
func (s *Server) makeDir() error {
	if s.options.Dir == "" {
		dir, err := os.MkdirTemp("", "trumpet-postgres-")
		if err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		s.dir, s.temporary = dir, true
		return s.owner.give(dir)
	}
	dir, err := filepath.Abs(s.options.Dir)
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	s.dir = dir
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if len(entries) == 0 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("make directory private: %w", err)
		}
		return s.owner.give(dir)
	}
	if _, err := os.Stat(filepath.Join(s.data(), "PG_VERSION")); err != nil {
		return fmt.Errorf("use %s: it is not empty, and it holds no private Postgres; name a new directory", dir)
	}
	return nil
}

// run runs the server and waits until it answers.
func (s *Server) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	chosen := s.port != 0 // by the caller, or by an earlier start: clients know it
	first := !s.started
	for {
		if !chosen {
			port, err := freePort(ctx)
			if err != nil {
				return err
			}
			s.port = port
		}
		err := s.startOnce(ctx)
		if err == nil {
			s.started = true
			s.logger.Info("private postgres started", "version", s.version, "port", s.port, "dir", s.dir)
			return nil
		}
		// Between the kernel's naming a free port and now somebody else may have
		// taken it; while a server is down, so may an outgoing connection.
		again := errors.Is(err, errEnding) || errors.Is(err, errPortTaken) && !(first && chosen)
		if !again || pause(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

// URL is how to connect over TCP, as the superuser, to a database.
func (s *Server) URL(database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, s.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// SocketURL is how to connect over the Unix socket. Only the server's user and root
// can reach it.
func (s *Server) SocketURL(database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, s.password),
		Path:     "/" + database,
		RawQuery: url.Values{"host": {s.dir}, "port": {strconv.Itoa(s.port)}}.Encode(),
	}
	return u.String()
}

// Exec runs SQL, also several statements, in a database.
func (s *Server) Exec(ctx context.Context, database, sql string) error {
	conn, err := pgx.Connect(ctx, s.SocketURL(database))
	if err != nil {
		return fmt.Errorf("connect to private postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("execute sql: %w", err)
	}
	return nil
}

// CreateDatabase makes an empty database.
func (s *Server) CreateDatabase(ctx context.Context, name string) error {
	return s.Exec(ctx, "postgres", "create database "+pgx.Identifier{name}.Sanitize())
}

// Version is the server's version, such as "15.4".
func (s *Server) Version() string { return s.version }

// Port is the TCP port on 127.0.0.1. It stays the same over Stop and Restart.
func (s *Server) Port() int { return s.port }

// Bindir is where the server's programs are.
func (s *Server) Bindir() string { return s.options.Bindir }

// Dir holds everything of the server.
func (s *Server) Dir() string { return s.dir }

// Log is the path of the server's log.
func (s *Server) Log() string { return filepath.Join(s.dir, "log") }

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// Stop shuts the server down in good order: sessions end, what is committed is on disk.
// When ctx ends first, the server is stopped as Kill does. A stopped server keeps its
// files; Restart starts it again.
func (s *Server) Stop(ctx context.Context) error {
	if s.process == nil {
		return nil
	}
	if err := s.process.interrupt(); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	select {
	case <-s.process.done:
		s.process = nil
		s.logger.Info("private postgres stopped")
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop postgres: %w", ctx.Err()), s.Kill())
	}
}

// Kill ends the server and its sessions as a power cut would, with SIGKILL, and
// returns when they are gone. Restart starts it again.
func (s *Server) Kill() error {
	if s.process == nil {
		return nil
	}
	if err := s.process.kill(); err != nil {
		return fmt.Errorf("kill postgres: %w", err)
	}
	<-s.process.done
	s.process = nil
	s.logger.Info("private postgres killed")
	return nil
}

// Restart starts the server on the same port and files, after Stop if it runs.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	return s.run(ctx)
}

// Done is closed when the server that runs now has ended, by itself too. It is nil while
// none runs.
func (s *Server) Done() <-chan struct{} {
	if s.process == nil {
		return nil
	}
	return s.process.done
}

// PID is the process id of the running server, for faults such as SIGSTOP; 0 if it
// does not run.
func (s *Server) PID() int {
	if s.process == nil {
		return 0
	}
	return s.process.pid
}

// Close stops the server and removes its directory if that is a temporary one.
func (s *Server) Close(ctx context.Context) error {
	return errors.Join(s.Stop(ctx), s.removeTemporary())
}

func (s *Server) removeTemporary() error {
	if !s.temporary {
		return nil
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove directory: %w", err)
	}
	return nil
}

// freePort asks the kernel for a port that nobody uses now.
func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find free port: %w", err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
