//go:build unix

package postgres_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/postgres"
)

const childVariable = "TRUMPET_POSTGRES_TEST_CHILD"

// TestMain lets the test binary play the process that starts a server and is killed.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		server, err := postgres.Start(context.Background(), postgres.Options{Settings: fast})
		if err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Stdout.WriteString(strconv.Itoa(server.PID()) + " " + server.Dir() + "\n")
		select {}
	}
	os.Exit(m.Run())
}

var fast = map[string]string{"fsync": "off"}

func start(t *testing.T, options postgres.Options) *postgres.Server {
	t.Helper()
	options.Settings = fast
	server, err := postgres.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return server
}

func count(t *testing.T, url, sql string) int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var n int
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestServerKeepsItsPortAndDataOverStopAndKill(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{})
	url := server.URL("bells")
	if err := server.CreateDatabase(t.Context(), "bells"); err != nil {
		t.Fatal(err)
	}
	if err := server.Exec(t.Context(), "bells", "create table bell (id int); insert into bell values (1), (2)"); err != nil {
		t.Fatal(err)
	}
	for name, stop := range map[string]func() error{
		"restart":  func() error { return nil },
		"stopped":  func() error { return server.Stop(t.Context()) },
		"killed":   func() error { return server.Kill() },
		"shot":     func() error { return syscall.Kill(server.PID(), syscall.SIGKILL) },
		"seen":     func() error { err := syscall.Kill(server.PID(), syscall.SIGKILL); <-server.Done(); return err },
		"no twice": func() error { _ = server.Stop(t.Context()); return server.Kill() },
	} {
		if err := stop(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatalf("%s: restart: %v", name, err)
		}
		if got := count(t, url, "select count(*) from bell"); got != 2 {
			t.Errorf("%s: %d rows after the restart, want 2", name, got)
		}
	}
	if got := count(t, server.SocketURL("bells"), "select count(*) from bell"); got != 2 {
		t.Errorf("over the socket: %d rows, want 2", got)
	}
}

func TestCloseRemovesATemporaryDirectoryOnly(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{})
	if err := server.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(server.Dir()); !os.IsNotExist(err) {
		t.Errorf("the temporary directory is still there: %v", err)
	}

	parent, err := os.MkdirTemp("", "trumpet-keep-") // t.TempDir is private to us, not to the server's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, "kept")
	first := start(t, postgres.Options{Dir: dir})
	if err := first.Exec(t.Context(), "postgres", "create table kept ()"); err != nil {
		t.Fatal(err)
	}
	if _, err := postgres.Start(t.Context(), postgres.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another server is running") {
		t.Errorf("a second server in the same directory: %v", err)
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := start(t, postgres.Options{Dir: dir})
	if got := count(t, second.URL("postgres"), "select count(*) from kept"); got != 0 {
		t.Errorf("%d rows", got)
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "letter"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	running := start(t, postgres.Options{})
	for name, test := range map[string]struct {
		options postgres.Options
		want    string
	}{
		"a directory with other things": {postgres.Options{Dir: full}, "not empty"},
		"a port in use":                 {postgres.Options{Port: running.Port()}, "the port is taken"},
		"no binaries":                   {postgres.Options{Bindir: full}, "ask postgres for its version"},
	} {
		server, err := postgres.Start(t.Context(), test.options)
		if err == nil {
			_ = server.Close(t.Context())
			t.Errorf("%s: started", name)
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q in it", name, err, test.want)
		}
	}
}

func TestListenAddressesAskForThePassword(t *testing.T) {
	t.Parallel()
	server := start(t, postgres.Options{ListenAddresses: []string{"127.0.0.2"}})
	there := strings.Replace(server.URL("postgres"), "127.0.0.1", "127.0.0.2", 1)
	if got := count(t, there, "select 1"); got != 1 {
		t.Errorf("got %d", got)
	}
	password := regexp.MustCompile(`:[^:@]+@`)
	if conn, err := pgx.Connect(t.Context(), password.ReplaceAllString(there, ":guessed@")); err == nil {
		_ = conn.Close(t.Context())
		t.Error("it lets in with any password")
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	count(t, there, "select 1")
}

func TestStandby(t *testing.T) {
	t.Parallel()
	primary := start(t, postgres.Options{})
	if err := primary.Exec(t.Context(), "postgres", "create table bell (id int); insert into bell values (1)"); err != nil {
		t.Fatal(err)
	}
	standby, err := primary.Standby(t.Context(), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// What comes by streaming, and after the standby was away.
	for n := 2; n < 4; n++ {
		if err := primary.Exec(t.Context(), "postgres", "insert into bell values (2)"); err != nil {
			t.Fatal(err)
		}
		for count(t, standby.URL("postgres"), "select count(*) from bell") < n {
			if ctx.Err() != nil {
				t.Fatal("the standby does not follow")
			}
		}
		if err := standby.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := standby.Exec(t.Context(), "postgres", "insert into bell values (3)"); err == nil {
		t.Error("the standby takes writes before it is promoted")
	}
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := standby.Exec(t.Context(), "postgres", "insert into bell values (4)"); err != nil {
		t.Error(err)
	}
	// The old primary comes back as if nothing had happened.
	if err := primary.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := count(t, primary.URL("postgres"), "select count(*) from bell"); got != 3 {
		t.Errorf("the old primary has %d rows, want 3", got)
	}
	if got := count(t, standby.URL("postgres"), "select count(*) from bell"); got != 4 {
		t.Errorf("the new primary has %d rows, want 4", got)
	}
}

// The last promise of the package: nothing lingers when the starter is killed.
func TestServerEndsWithAKilledStarter(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), childVariable+"=1")
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	number, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
	pid, errPID := strconv.Atoi(number)
	killErr := child.Process.Kill()
	_ = child.Wait() // it was killed
	if err != nil || !ok || errPID != nil || killErr != nil {
		t.Fatalf("child said %q: %v %v", line, err, killErr)
	}
	deadline := time.After(20 * time.Second)
	for {
		_, statErr := os.Stat(dir)
		if syscall.Kill(pid, 0) == syscall.ESRCH && os.IsNotExist(statErr) {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("20 s after its starter was killed: process: %v, directory: %v", syscall.Kill(pid, 0), statErr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
