package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// call runs the command line and returns what it wrote and its exit code.
func call(t *testing.T, ctx context.Context, in io.Reader, env map[string]string, args ...string) (stdout, stderr string, code int) { //nolint:revive // t first
	t.Helper()
	var out, errOut bytes.Buffer
	if in == nil {
		in = strings.NewReader("")
	}
	err := run(ctx, args, in, &out, &errOut, func(name string) string { return env[name] })
	return out.String(), errOut.String(), exitCode(err)
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"trumpet", "trumpet serve", "trumpet demo", "trumpet migrate", "trumpet migrate up", "trumpet migrate down", "trumpet migrate status",
		"trumpet migrate print", "trumpet watch", "trumpet unwatch", "trumpet broadcast", "trumpet tail", "trumpet doctor", "trumpet version",
		"trumpet live", "trumpet live list", "trumpet live add", "trumpet live aggregate", "trumpet live drop",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, stderr, code := call(t, t.Context(), nil, nil, append(strings.Fields(name)[1:], "--help")...)
			if code != 0 || stderr != "" {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			golden := filepath.Join("testdata", "help", strings.ReplaceAll(name, " ", "-")+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the help changed; if that is meant: go test ./cmd/trumpet -run Help -update\n%s", got)
			}
		})
	}
}

// What is wrong with a call is said before anything is connected to.
func TestWrongCalls(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args string
		env  map[string]string
		want string
	}{
		"unknown command":   {"blow", nil, `unknown command "blow"`},
		"unknown flag":      {"serve --loud", nil, "unknown flag: --loud"},
		"argument":          {"migrate up now", nil, `"now"`},
		"nothing to do":     {"migrate", nil, "migrate up, down, status or print"},
		"no live":           {"live", nil, "live list, add, aggregate or drop"},
		"no dependency":     {"live add stats select", nil, "--depends-on is missing"},
		"live name":         {"live add a?b select --depends-on jobs", nil, "are not allowed"},
		"live filter":       {"live aggregate sums jobs --filter status=like.x", nil, "--filter: "},
		"no table":          {"watch", nil, "accepts 1 arg(s)"},
		"everybody":         {"serve --listen 0.0.0.0:8766", nil, "add --insecure"},
		"everybody, v6":     {"serve --listen [::]:8766", nil, "add --insecure"},
		"everybody, empty":  {"serve --listen :8766", nil, "add --insecure"},
		"everybody, name":   {"serve --listen example.com:8766", nil, "add --insecure"},
		"everybody, env":    {"serve", map[string]string{"TRUMPET_LISTEN": "10.0.0.7:80"}, "add --insecure"},
		"no port":           {"serve --listen 127.0.0.1", nil, "it is host:port"},
		"jwt":               {"serve --auth jwt", nil, "not in this version yet"},
		"auth":              {"serve --auth basic", nil, `"basic" is none of none, jwt`},
		"auth, env":         {"serve", map[string]string{"TRUMPET_AUTH": "basic"}, `$TRUMPET_AUTH is "basic"`},
		"drain, env":        {"serve", map[string]string{"TRUMPET_DRAIN": "5"}, `$TRUMPET_DRAIN is "5": time: missing unit`},
		"drain":             {"serve --drain -1s", nil, "cannot be negative"},
		"retention":         {"serve --retention 1s", nil, "at least 1m"},
		"connections":       {"serve --max-connections 0", nil, "at least 1"},
		"max delay":         {"serve --max-delay 11s", nil, "from 0 to 10s"},
		"per address":       {"serve --max-connections-per-address -1", nil, "or 0 for no bound"},
		"no network":        {"serve --trusted-proxies 10.0.0", nil, `"10.0.0" is no network`},
		"network's bits":    {"serve --trusted-proxies 10.0.0.5/8", nil, "is 10.0.0.0/8 meant?"},
		"proxies, env":      {"serve", map[string]string{"TRUMPET_TRUSTED_PROXIES": "nginx"}, `"nginx" is no network`},
		"level":             {"serve --log-level loud", nil, `"loud" is none of`},
		"channels":          {"tail --channels a,b+c", nil, "not allowed"},
		"port":              {"demo --port 65535", nil, "from 0 to 65534"},
		"since":             {"tail --since 12", nil, "not an event id"},
		"topic":             {"broadcast a,b {}", nil, "not allowed"},
		"topic of tail":     {"tail a&b", nil, "not allowed"},
		"a word":            {"broadcast dispatch hello", nil, `trumpet broadcast dispatch '"hello"'`},
		"broken JSON":       {`broadcast dispatch {"a":`, nil, "the value is not JSON: unexpected end"},
		"rows":              {"watch jobs --max-rows 0 --print", nil, "at least 1"},
		"topic of watch":    {"watch jobs --topic a,b --print", nil, "not allowed"},
		"database URL":      {"migrate up -d postgres://u:geheim@[::1/x", nil, "cannot read the database URL"},
		"database URL, env": {"migrate up", map[string]string{"DATABASE_URL": "postgres://u:ge%heim@h/x"}, "cannot read the database URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, stderr, code := call(t, t.Context(), nil, test.env, strings.Fields(test.args)...)
			if code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			if !strings.Contains(stderr, test.want) || !strings.Contains(stderr, "--help' for how to call it") {
				t.Errorf("stderr does not say %q:\n%s", test.want, stderr)
			}
			if strings.Contains(stderr, "heim") {
				t.Errorf("stderr holds the password:\n%s", stderr)
			}
		})
	}
}

func TestLoopback(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.8.9.10": true, "::1": true, "localhost": true, "LocalHost": true, "::ffff:127.0.0.1": true,
		"": false, "0.0.0.0": false, "::": false, "192.168.0.1": false, "localhost.example.com": false, "127.0.0.1.example.com": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("isLoopback(%q) = %v", host, got)
		}
	}
}

func TestFlagsWinOverEnvironment(t *testing.T) {
	t.Parallel()
	env := map[string]string{"TRUMPET_LISTEN": "0.0.0.0:1", "TRUMPET_AUTH": "jwt"}
	_, stderr, _ := call(t, t.Context(), nil, env, "serve", "--listen", "127.0.0.1:0")
	if !strings.Contains(stderr, "--auth jwt") {
		t.Errorf("the environment's auth is not taken: %s", stderr)
	}
	_, stderr, _ = call(t, t.Context(), nil, env, "serve", "--auth", "none")
	if !strings.Contains(stderr, "0.0.0.0:1") {
		t.Errorf("the environment's address is not taken: %s", stderr)
	}
}

func TestShellQuote(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]string{"jobs": "jobs", "": "''", `"hello"`: `'"hello"'`, "it's": `'it'\''s'`, "a b": "'a b'"} {
		if got := shellQuote(word); got != want {
			t.Errorf("shellQuote(%q) = %s, want %s", word, got, want)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	out, _, code := call(t, t.Context(), nil, nil, "version")
	if code != 0 || !strings.HasPrefix(out, "trumpet ") || !strings.Contains(out, "go1.") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
