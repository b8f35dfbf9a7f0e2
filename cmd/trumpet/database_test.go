package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

func execSQL(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestSchemaCommands(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	env := map[string]string{"DATABASE_URL": database}
	execSQL(t, database, `create table jobs (id int primary key); create table letters (x int); create table "Odd Jobs" (id int primary key)`)
	for _, step := range []struct {
		args       []string
		code       int
		out, error string
	}{
		{args: []string{"migrate", "status"}, out: "0001 log       no; run: trumpet migrate up"},
		{args: []string{"watch", "jobs"}, code: 1, error: "it has no schema trumpet; run: trumpet migrate up"},
		{args: []string{"broadcast", "dispatch", "{}"}, code: 1, error: "it has no schema trumpet; run: trumpet migrate up"},
		{args: []string{"tail"}, code: 1, error: "it has no schema trumpet; run: trumpet migrate up"},
		{args: []string{"migrate", "up"}, out: "applied 0001 log"},
		{args: []string{"migrate", "up"}, out: "nothing to do"},
		{args: []string{"migrate", "up", "--role", "no one"}, code: 1, error: `role "no one" does not exist`},
		{args: []string{"migrate", "status"}, out: "0001 log       20"},
		{args: []string{"watch", "jobs"}, out: "topic jobs\n"},
		{args: []string{"watch", `"Odd Jobs"`, "--topic", "odd"}, out: "topic odd\n"},
		{args: []string{"watch", "letters"}, code: 1, error: "public.letters has no primary key\n  Name the columns"},
		{args: []string{"watch", "letters", "--key", ""}, out: "topic letters\n"},
		{args: []string{"watch", "jobs", "--columns", "nope"}, code: 1, error: "has no column nope"},
		{args: []string{"watch", "nope"}, code: 1, error: `relation "nope" does not exist`},
		{args: []string{"live", "list"}, out: "there are no live queries"},
		{args: []string{"live", "add", "stats", "select count(*) as n from jobs", "--depends-on", "jobs", "--timeout", "2s"}, out: "its results are topic stats"},
		{args: []string{"live", "add", "jobs", "select 1", "--depends-on", "jobs"}, code: 1, error: "topic 'jobs' is that of table public.jobs\n  Give the live query"},
		{args: []string{"live", "add", "s", "selct 1", "--depends-on", "jobs"}, code: 1, error: "the query of 's' cannot run: syntax error"},
		{args: []string{"live", "aggregate", "sums", "jobs", "--aggregates", "count,max(id) as newest", "--filter", "id=gt.1"}, out: "its results are topic sums"},
		{args: []string{"live", "list"}, out: "stats  query      stale"},
		{args: []string{"live", "list"}, out: `sums: "not run yet"`},
		{args: []string{"live", "list", "--json"}, out: `"definition": "count as count, max(id) as newest where id=gt.1"`},
		{args: []string{"live", "drop", "sums"}, out: "sums is not live any more"},
		{args: []string{"live", "drop", "sums"}, code: 1, error: "there is no live query 'sums'"},
		{args: []string{"unwatch", "jobs"}, out: "jobs is not watched any more"},
		{args: []string{"unwatch", "jobs"}, code: 1, error: "is not watched"},
		{args: []string{"migrate", "down"}, out: "reverted 0004 live\nreverted 0003 snapshot\nreverted 0002 watch\nreverted 0001 log\n"},
		{args: []string{"migrate", "down"}, out: "nothing to do"},
	} {
		out, stderr, code := call(t, t.Context(), nil, env, step.args...)
		if code != step.code || !strings.Contains(out, step.out) || !strings.Contains(stderr, step.error) {
			t.Errorf("%q: exit code %d, want %d with %q and %q; it wrote\n%s%s", step.args, code, step.code, step.out, step.error, out, stderr)
		}
		if strings.Contains(stderr, "SQLSTATE") || strings.Contains(stderr, "Usage:") {
			t.Errorf("%q: not for people:\n%s", step.args, stderr)
		}
	}
}

func TestPrintedSQLIsRunnable(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	execSQL(t, database, `create table "O'Hara" (id int primary key, "it's" text)`)
	for _, args := range [][]string{
		{"migrate", "print"},
		{"watch", `"O'Hara"`, "--columns", "it's", "--key", "id", "--topic", "o'hara", "--max-rows", "7", "--print"},
		{"live", "add", "o'hara's", `select count(*) as "it's" from "O'Hara"`, "--depends-on", "o'hara", "--print"},
		{"live", "aggregate", "sum", `"O'Hara"`, "--aggregates", "count(it's) as n", "--group-by", "it's", "--filter", "it's=eq.\\", "--min-interval", "1s", "--timeout", "1m", "--print"},
		{"live", "drop", "sum", "--print"},
		{"unwatch", `"O'Hara"`, "--print"},
		{"migrate", "print", "--down"},
	} {
		out, stderr, code := call(t, t.Context(), nil, nil, args...)
		if code != 0 || stderr != "" {
			t.Fatalf("%q: exit code %d: %s", args, code, stderr)
		}
		execSQL(t, database, out)
	}
}

func TestConnectErrors(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, nil)
	with := func(change func(*url.URL)) string {
		u, err := url.Parse(server.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		change(u)
		return u.String()
	}
	wrongPassword := with(func(u *url.URL) { u.User = url.UserPassword("postgres", "geheim") })
	stopped := server.URL("postgres")
	check := func(database, want string) {
		t.Helper()
		_, stderr, code := call(t, t.Context(), nil, nil, "migrate", "status", "--database-url", database)
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d, want 1 with %q:\n%s", code, want, stderr)
		}
		for _, secret := range []string{"geheim", mustPassword(t, stopped)} {
			if strings.Contains(stderr, secret) {
				t.Errorf("stderr holds a password:\n%s", stderr)
			}
		}
		if strings.Count(stderr, "\n") != 1 {
			t.Errorf("more than one line:\n%s", stderr)
		}
	}
	check(wrongPassword, "check the password")
	check(with(func(u *url.URL) { u.Path = "/nowhere" }), `database "nowhere" does not exist; create it`)
	check(with(func(u *url.URL) { u.Host = "nobody.invalid" }), `cannot resolve "nobody.invalid"`)
	check("host=/nowhere user=u password=geheim", "nobody listens there")
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(stopped, "nobody listens there; is Postgres running?")
}

func mustPassword(t *testing.T, database string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	return password
}

// tailing runs tail until stop is called, which returns its exit code.
func tailing(t *testing.T, env map[string]string, args ...string) (lines *bufio.Scanner, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		err := run(ctx, append([]string{"tail"}, args...), strings.NewReader(""), writer, io.Discard, func(name string) string { return env[name] })
		writer.CloseWithError(io.EOF)
		ended <- exitCode(err)
	}()
	stop = func() int {
		cancel()
		_, _ = io.Copy(io.Discard, reader) // what is still being written, until it has ended
		code := <-ended
		ended <- code
		return code
	}
	t.Cleanup(func() { stop() })
	return bufio.NewScanner(reader), stop
}

type line struct {
	ID, Topic, Op string
	Data          json.RawMessage
	More          bool
	Stale         bool
	Error         string
}

func next(t *testing.T, lines *bufio.Scanner) (l line) {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("the output ended: %v", lines.Err())
	}
	if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
		t.Fatalf("%v: %s", err, lines.Text())
	}
	return l
}

func TestBroadcastAndTail(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	env := map[string]string{"DATABASE_URL": database}
	broadcast := func(in io.Reader, args ...string) string {
		t.Helper()
		out, stderr, code := call(t, t.Context(), in, env, append([]string{"broadcast"}, args...)...)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		return strings.TrimSpace(out)
	}
	first := broadcast(nil, "dispatch", `{"n": 1}`)
	second := broadcast(strings.NewReader("[\n2\n]"), "dispatch", "-")
	third := broadcast(nil, "other", "3")

	all, stopAll := tailing(t, env, "--since", first)
	for _, want := range []string{second, third} {
		if l := next(t, all); l.ID != want || l.Op != "broadcast" || l.More {
			t.Errorf("got %+v, want id %s", l, want)
		}
	}
	some, _ := tailing(t, env, "--since", first, "jobs", "other")
	if l := next(t, some); l.ID != third {
		t.Errorf("got %+v, want id %s", l, third)
	}
	// Without --since nothing old is printed; it is live once a raw NOTIFY comes out.
	fresh, _ := tailing(t, env, "--channels", "bell")
	rung, quiet := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(rung)
		conn, err := pgx.Connect(t.Context(), database)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(t.Context())
		for {
			if _, err := conn.Exec(t.Context(), "notify bell, 'ding'"); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-quiet:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	if l := next(t, fresh); l.ID != "" || string(l.Data) != `"ding"` {
		t.Errorf("got %+v, want the raw notification", l)
	}
	close(quiet)
	<-rung

	execSQL(t, database, `create table jobs (id int primary key); create table other (id int primary key);
		select trumpet.watch('jobs'), trumpet.watch('other', topic => 'elsewhere')`)
	execSQL(t, database, `insert into jobs values (1); insert into jobs values (2); insert into other values (1)`)
	for i, want := range []string{"jobs", "jobs", "elsewhere"} {
		if l := next(t, all); l.Topic != want || l.More != (i < 2) {
			t.Errorf("got %+v, want topic %s", l, want)
		}
	}
	for i := range 2 { // of what this one sees, the second is the last
		if l := next(t, some); l.Topic != "jobs" || l.More != (i == 0) {
			t.Errorf("got %+v", l)
		}
	}
	execSQL(t, database, "select trumpet.live_query('counted', 'select count(*) as n from jobs', '{jobs}')")
	if l := next(t, all); l.Topic != "counted" || l.Op != "result" || !l.Stale || l.Error != "not run yet" {
		t.Errorf("got %+v, want the definition of a live query", l)
	}
	if code := stopAll(); code != 0 {
		t.Errorf("interrupted: exit code %d", code)
	}

	_, stderr, code := call(t, t.Context(), nil, env, "tail", "--since", "99.0-00000000")
	if code != 1 || !strings.Contains(stderr, "cannot begin after 99.0-00000000: this log has no event with that id") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
