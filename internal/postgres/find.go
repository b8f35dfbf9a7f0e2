package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

const (
	bindirVariable = "TRUMPET_PG_BINDIR"
	minimumMajor   = 14
)

// ErrNotFound is wrapped by the error of FindBindir when there is no Postgres server.
var ErrNotFound = errors.New("no Postgres server is installed here")

// FindBindir returns the folder with initdb and postgres. TRUMPET_PG_BINDIR names it;
// otherwise it is looked for in PATH, where pg_config says, and in the usual places,
// newest version first.
func FindBindir() (string, error) {
	if dir := os.Getenv(bindirVariable); dir != "" {
		if !isBindir(dir) {
			return "", fmt.Errorf("%s is %s, which does not hold initdb and postgres", bindirVariable, dir)
		}
		return dir, nil
	}
	for _, dir := range candidates() {
		if isBindir(dir) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%w; %s, or set %s to the folder with initdb and postgres", ErrNotFound, installHint(), bindirVariable)
}

func candidates() []string {
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		// A link in /usr/local/bin says where the rest of the installation is.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
		"/usr/pgsql-*/bin",                   // PostgreSQL's own packages for Fedora and Red Hat
		"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on Apple silicon
		"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
		"/Applications/Postgres.app/Contents/Versions/*/bin",
	} {
		found, _ := filepath.Glob(pattern) // the patterns are well-formed
		slices.SortFunc(found, func(a, b string) int { return cmp.Compare(numberIn(b), numberIn(a)) })
		dirs = append(dirs, found...)
	}
	return append(dirs, "/usr/local/pgsql/bin", "/usr/bin", "/opt/homebrew/bin")
}

var digits = regexp.MustCompile(`\d+`)

// numberIn is the last whole number in a path: its major version, if it has one.
func numberIn(path string) int {
	all := digits.FindAllString(path, -1)
	if len(all) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(all[len(all)-1]) // digits; a number too large counts as 0
	return n
}

func isBindir(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

func installHint() string {
	for _, system := range []struct{ mark, command string }{
		{"/etc/debian_version", "apt-get install postgresql"},
		{"/etc/fedora-release", "dnf install postgresql-server"},
		{"/etc/redhat-release", "dnf install postgresql-server"},
		{"/etc/alpine-release", "apk add postgresql"},
		{"/etc/arch-release", "pacman -S postgresql"},
	} {
		if _, err := os.Stat(system.mark); err == nil {
			if os.Geteuid() != 0 {
				return "install one: sudo " + system.command
			}
			return "install one: " + system.command
		}
	}
	if runtime.GOOS == "darwin" {
		return "install one: brew install postgresql@17"
	}
	return "install one, version 14 or newer"
}

var versionOutput = regexp.MustCompile(`\(PostgreSQL\) ((\d+)[.\w]*)`)

func binaryVersion(ctx context.Context, bindir string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(bindir, "postgres"), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask postgres for its version: %w", err)
	}
	match := versionOutput.FindStringSubmatch(string(out))
	if match == nil {
		return "", fmt.Errorf("read version of postgres: %q", out)
	}
	if major, _ := strconv.Atoi(match[2]); major < minimumMajor {
		return "", fmt.Errorf("the Postgres in %s is %s; Trumpet needs %d or newer", bindir, match[1], minimumMajor)
	}
	return match[1], nil
}
