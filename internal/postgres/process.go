package postgres

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// supervisor runs the server as a child of a shell. Its descriptor 3 is a pipe that
// nobody writes to: it ends when the process that started us has ended, however that
// happened. Then the server is stopped, and a temporary directory removed.
//
// A parent-death signal would not do: it fires when the thread that started the child
// ends, is known to Linux only, and leaves the directory behind.
const supervisor = `
remove=$1; how=$2; shift 2
orphaned=
"$@" </dev/null >&2 3<&- &
pid=$!
echo "$pid"
exec >/dev/null
trap 'orphaned=1; kill -s "$how" "$pid" 2>/dev/null' USR1
trap '' HUP INT TERM
{ read -r _ <&3; kill -s USR1 $$; } 2>/dev/null &
watcher=$!
exec 3<&-
while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
kill -s KILL "$watcher" 2>/dev/null
if [ -n "$orphaned" ] && [ -n "$remove" ]; then cd /; rm -rf "$remove"; fi
exit 0
`

// Why a start may succeed a little later.
var (
	errPortTaken = errors.New("the port is taken")
	errEnding    = errors.New("sessions of the former server are still ending")
)

// process is one run of the server.
type process struct {
	pid      int // of the server, not of the shell
	lifeline *os.File
	done     chan struct{} // closed when the server has ended
}

// initdb fills the data directory.
func (s *Server) initdb(ctx context.Context, passwordFile string) error {
	run := func(locale string) ([]byte, error) {
		arguments := []string{
			"--pgdata", s.data(), "--username", superuser, "--pwfile", passwordFile, "--auth", "scram-sha-256",
			"--encoding", "UTF8", "--locale", locale, "--no-sync", "--no-instructions",
		}
		if major, _, _ := strings.Cut(s.version, "."); major >= "18" {
			arguments = append(arguments, "--no-data-checksums") // on by default since 18; they cost tests time
		}
		cmd := exec.CommandContext(ctx, filepath.Join(s.options.Bindir, "initdb"), arguments...)
		cmd.Dir, cmd.SysProcAttr, cmd.Env = "/", s.owner.attributes(), cleanEnvironment()
		return cmd.CombinedOutput()
	}
	out, err := run("C.UTF-8")
	if err != nil && bytes.Contains(out, []byte("invalid locale")) {
		out, err = run("C")
	}
	switch {
	case err == nil:
		return nil
	case s.owner != nil && bytes.Contains(out, []byte("ermission denied")):
		return fmt.Errorf("make database in %s: Postgres does not run as root, and the user %s cannot reach that directory; name another one (%s)",
			s.dir, s.owner.name, lastLine(out))
	}
	return fmt.Errorf("make database in %s: %w: %s", s.dir, err, lastLine(out))
}

// startOnce runs the server and waits until it answers or has ended.
func (s *Server) startOnce(ctx context.Context) error {
	logStart := s.logSize()
	p, err := s.spawn()
	if err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	for {
		err := s.ping(ctx)
		if err == nil {
			s.process = p
			return nil
		}
		select {
		case <-p.done:
			return s.whyEnded(s.logFrom(logStart))
		case <-ctx.Done():
			killErr := p.kill()
			<-p.done
			return errors.Join(fmt.Errorf("wait for postgres: %w: %w", ctx.Err(), err), killErr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// whyEnded makes an error out of what a server that did not come up wrote to its log.
func (s *Server) whyEnded(log []byte) error {
	switch {
	case bytes.Contains(log, []byte("could not bind")):
		return fmt.Errorf("start postgres on port %d: %w", s.port, errPortTaken)
	case bytes.Contains(log, []byte("pre-existing shared memory")):
		return fmt.Errorf("start postgres: %w", errEnding)
	case bytes.Contains(log, []byte("lock file \"postmaster.pid\" already exists")):
		return fmt.Errorf("start postgres: another server is running in %s", s.dir)
	}
	return fmt.Errorf("start postgres: it ended at once; its log %s says: %s", s.Log(), reason(log))
}

// spawn starts the shell that starts the server.
func (s *Server) spawn() (*process, error) {
	log, err := os.OpenFile(s.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	end, lifeline, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer end.Close()

	remove, how := "", "INT"
	if s.temporary {
		remove, how = s.dir, "QUIT" // nobody will read what an orderly stop would save
	}
	arguments := []string{"-c", supervisor, "trumpet-postgres", remove, how,
		filepath.Join(s.options.Bindir, "postgres"), "-D", s.data(), "-p", strconv.Itoa(s.port), "-k", s.dir}
	settings := s.settings()
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		arguments = append(arguments, "-c", name+"="+settings[name])
	}
	cmd := exec.Command("/bin/sh", arguments...)
	cmd.Dir, cmd.SysProcAttr, cmd.Env = "/", s.owner.attributes(), cleanEnvironment()
	cmd.ExtraFiles = []*os.File{end} // descriptor 3
	cmd.Stderr = log
	if s.options.Wrap != nil {
		s.options.Wrap(cmd)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		lifeline.Close()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		lifeline.Close()
		return nil, err
	}
	p := &process{lifeline: lifeline, done: make(chan struct{})}
	line, readErr := bufio.NewReader(stdout).ReadString('\n')
	p.pid, err = strconv.Atoi(strings.TrimSpace(line))
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // the log says how the server ended
		lifeline.Close()
	}()
	if readErr != nil || err != nil {
		lifeline.Close()
		<-p.done
		return nil, errors.Join(readErr, err)
	}
	return p, nil
}

// settings are the parameters of a small server, and what the caller says.
func (s *Server) settings() map[string]string {
	settings := map[string]string{
		"listen_addresses":        strings.Join(append([]string{"127.0.0.1"}, s.options.ListenAddresses...), ","),
		"shared_buffers":          "32MB",
		"max_connections":         "100",
		"unix_socket_permissions": "0700",
		"logging_collector":       "off",
		"log_destination":         "stderr",
		"log_line_prefix":         "%m [%p] %a ",
	}
	maps.Copy(settings, s.options.Settings)
	return settings
}

// ping reports whether the server answers.
func (s *Server) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.SocketURL("postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// children lists the processes that pid started, where the system tells (Linux).
// Elsewhere they notice by themselves that the server has gone.
func children(pid int) []int {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var pids []int
	for field := range strings.FieldsSeq(string(list)) {
		if child, err := strconv.Atoi(field); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

// cleanEnvironment is ours without what would lead Postgres elsewhere.
func cleanEnvironment() []string {
	return append(slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "PG") || strings.HasPrefix(entry, "LC_") ||
			strings.HasPrefix(entry, "LANG") || strings.HasPrefix(entry, "TZ=")
	}), "LC_ALL=C", "TZ=UTC")
}

func (s *Server) logSize() int64 {
	info, err := os.Stat(s.Log())
	if err != nil {
		return 0
	}
	return info.Size()
}

// logFrom is what the server wrote to its log after the given place, bounded.
func (s *Server) logFrom(start int64) []byte {
	file, err := os.Open(s.Log())
	if err != nil {
		return nil
	}
	defer file.Close()
	log, _ := io.ReadAll(io.NewSectionReader(file, start, 64<<10)) // what could be read is still worth telling
	return log
}

// reason is the line of a log that says why the server ended.
func reason(log []byte) string {
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "FATAL:") {
			return strings.TrimSpace(line)
		}
	}
	return lastLine(log)
}

func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range lines {
		if strings.Contains(line, "error:") {
			return line
		}
	}
	return lines[len(lines)-1]
}
