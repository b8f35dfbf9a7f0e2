package postgres

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// Standby makes a streaming standby of the running server, and returns when it answers; it only
// reads until it is promoted. It has the server's settings and password; options may add settings. It
// follows the server also after either was started again. The caller calls Close.
func (s *Server) Standby(ctx context.Context, options Options) (*Server, error) {
	settings := maps.Clone(s.options.Settings)
	if settings == nil {
		settings = make(map[string]string)
	}
	maps.Copy(settings, options.Settings)
	options.Settings = settings
	if options.Bindir == "" {
		options.Bindir = s.options.Bindir
	}
	return start(ctx, options, s)
}

// copyFrom fills the data directory with what another server has, as a standby of that.
func (s *Server) copyFrom(ctx context.Context, primary *Server) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.options.Bindir, "pg_basebackup"),
		"--pgdata", s.data(), "--host", "127.0.0.1", "--port", strconv.Itoa(primary.port), "--username", superuser,
		"--write-recovery-conf", "--wal-method", "stream", "--checkpoint", "fast", "--no-sync")
	cmd.Dir, cmd.SysProcAttr = "/", s.owner.attributes()
	cmd.Env = append(cleanEnvironment(), "PGPASSWORD="+primary.password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy the primary: %w: %s", err, lastLine(out))
	}
	return nil
}

// Promote makes a standby a primary, on a timeline of its own, and returns when it takes writes. It
// does not care whether its old primary still runs.
func (s *Server) Promote(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.SocketURL("postgres"))
	if err != nil {
		return fmt.Errorf("promote standby: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var promoted bool
	if err := conn.QueryRow(ctx, "select pg_promote()").Scan(&promoted); err != nil {
		return fmt.Errorf("promote standby: %w", err)
	}
	if !promoted {
		return fmt.Errorf("promote standby: it did not take over in time; its log is %s", s.Log())
	}
	s.logger.Info("private postgres promoted", "port", s.port)
	return nil
}
