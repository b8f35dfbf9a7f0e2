package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// The documentation is executed: CONTRIBUTING.md says how its blocks are marked. Each page has one
// shell session, and a Postgres server of its own, because pages create roles.
func TestDocs(t *testing.T) {
	t.Parallel()
	for _, page := range []string{"README.md", "docs/protocol.md", "docs/operations.md"} {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(filepath.Join("..", page))
			if err != nil {
				t.Fatal(err)
			}
			blocks, err := docsBlocks(string(text))
			if err != nil {
				t.Fatal(err)
			}
			session := docsStart(t)
			ran := 0
			for _, block := range blocks {
				if session.do(t, page, block) {
					ran++
				}
			}
			if ran == 0 {
				t.Errorf("%s has no block that is run", page)
			}
		})
	}
}

// docsBlock is one fenced block.
type docsBlock struct {
	line     int    // of its first line of text
	language string // what stands behind the fence
	mark     string // the HTML comment on the line before, or before an empty line
	text     string
}

var docsComment = regexp.MustCompile(`^<!-- (.*) -->$`)

// docsBlocks finds the fenced blocks of a page, those in lists too.
func docsBlocks(page string) ([]docsBlock, error) {
	var (
		blocks []docsBlock
		open   *docsBlock
		indent string
		mark   string
	)
	for i, line := range strings.Split(page, "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case open != nil && trimmed == "```":
			blocks = append(blocks, *open)
			open, mark = nil, ""
		case open != nil:
			open.text += strings.TrimPrefix(line, indent) + "\n"
		case strings.HasPrefix(trimmed, "```"):
			indent = line[:strings.Index(line, "`")]
			open = &docsBlock{line: i + 2, language: strings.TrimPrefix(trimmed, "```"), mark: mark}
		case docsComment.MatchString(trimmed):
			mark = docsComment.FindStringSubmatch(trimmed)[1]
		case trimmed != "":
			mark = ""
		}
	}
	if open != nil {
		return nil, fmt.Errorf("the block of line %d does not end", open.line)
	}
	return blocks, nil
}

// docsSession is a shell that runs a page's blocks.
type docsSession struct {
	dir     string
	env     []string
	ports   *strings.Replacer // the ports in the page by those of this session
	input   io.Writer
	results *bufio.Reader // one line for each block that succeeded
	errors  logBuffer
	newest  string     // the block that was run last
	output  string     // and what it printed
	stream  *logBuffer // of the newest curl -N in the background
	shown   int        // how much of it was compared
}

func docsStart(t *testing.T) *docsSession {
	t.Helper()
	for program, install := range map[string]string{
		"bash": "apt-get install bash", "curl": "apt-get install curl",
		"psql": "apt-get install postgresql-client", "createdb": "apt-get install postgresql-client",
		"pg_dump": "apt-get install postgresql-client",
	} {
		_, err := exec.LookPath(program)
		mustHave(t, err == nil, program, install)
	}
	server := pgtest.Start(t, nil)
	if err := server.CreateDatabase(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	database, err := url.Parse(server.URL("app"))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := database.User.Password()
	first, second := strconv.Itoa(freePort(t)), strconv.Itoa(freePort(t))
	s := &docsSession{dir: t.TempDir(), ports: strings.NewReplacer("8766", first, "8767", second), errors: logBuffer{changed: make(chan struct{})}}
	s.env = append(cleanEnvironment(),
		"PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"),
		"PGHOST="+database.Hostname(), "PGPORT="+database.Port(), "PGUSER="+database.User.Username(), "PGPASSWORD="+password, "PGDATABASE=app",
		"TRUMPET_LISTEN=127.0.0.1:"+first, "TRUMPET_DRAIN=100ms", "GORACE=exitcode=66 halt_on_error=1",
		"LC_ALL=C.UTF-8", "HOME="+s.dir)

	results, resultsIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer resultsIn.Close()
	s.results = bufio.NewReader(results)
	// Errors end the shell, and with it the results.
	shell := exec.Command("bash", "--noprofile", "--norc", "-e", "-o", "pipefail")
	shell.Dir, shell.Env, shell.ExtraFiles = s.dir, s.env, []*os.File{resultsIn}
	shell.Stdout, shell.Stderr = &s.errors, &s.errors
	input, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.input = input
	if err := startProcess(shell); err != nil {
		t.Fatalf("start shell: %v", err)
	}
	t.Cleanup(func() {
		_ = input.Close()
		_ = results.Close()
		_ = shell.Wait() // how it ended was judged block by block
	})
	return s
}

// do runs a block, or compares what it shows, and reports whether it ran something.
func (s *docsSession) do(t *testing.T, page string, block docsBlock) bool {
	t.Helper()
	where := fmt.Sprintf("%s, line %d", page, block.line)
	text := s.ports.Replace(block.text)
	switch {
	case block.language == "sh" && block.mark == "in the background":
		s.background(t, where, text)
	case block.language == "sh":
		s.run(t, where, text)
	case block.language == "sql":
		s.run(t, where, "psql --no-psqlrc --set ON_ERROR_STOP=1 <<'END OF BLOCK'\n"+text+"END OF BLOCK\n")
	case block.mark == "output":
		if pattern := docsPattern(text); !pattern.MatchString(docsTrim(docsWithoutPings(s.output))) {
			t.Errorf("%s shows\n%s\nbut it is\n%s", where, text, s.output)
		}
		return false
	case block.mark == "output, sooner or later":
		pattern, repeat := docsPattern(text), false
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		poll(ctx, t, "what "+where+" shows", func() bool {
			if repeat {
				s.run(t, where, s.newest)
			}
			repeat = true
			return pattern.MatchString(docsTrim(docsWithoutPings(s.output)))
		})
		return false
	case block.mark == "output of the stream":
		s.expectStream(t, where, text)
		return false
	case strings.HasPrefix(block.mark, "output"), block.mark == "in the background":
		t.Fatalf("%s: a block of %q cannot be marked %q", where, block.language, block.mark)
	default:
		return false
	}
	return true
}

// run runs a block in the session's shell, which ends if a command fails.
func (s *docsSession) run(t *testing.T, where, text string) {
	t.Helper()
	s.newest = text
	script, output := filepath.Join(s.dir, ".block"), filepath.Join(s.dir, ".output")
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(s.input, ". %s >%s 2>&1 </dev/null 3>&-; echo done >&3\n", script, output); err != nil {
		t.Fatalf("%s: the shell has ended: %v", where, err)
	}
	_, failed := s.results.ReadString('\n')
	printed, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	s.output = string(printed)
	if failed != nil {
		t.Fatalf("%s fails:\n%s\n%s%s", where, text, printed, s.errors.String())
	}
}

// background starts a worker or a stream that lasts as long as the test, and waits until it is ready.
func (s *docsSession) background(t *testing.T, where, text string) {
	t.Helper()
	out, log, ended := &logBuffer{changed: make(chan struct{})}, &logBuffer{}, make(chan struct{})
	cmd := exec.Command("bash", "-c", strings.TrimSpace(text)) // bash becomes the one command
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.env, out, log
	if err := startProcess(cmd); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			t.Errorf("%s does not end on SIGTERM: %s", where, text)
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s printed:\n%s\n%s", where, out.tail(5000), log.tail(5000))
		}
	})
	ready := func() bool { return strings.Contains(out.String(), "event: ready") }
	if strings.Contains(text, "trumpet serve") {
		ready = func() bool { return docsReady(t.Context(), log.String()) }
	} else {
		s.stream, s.shown = out, 0
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll(ctx, t, where+" to be ready", func() bool {
		select {
		case <-ended:
			t.Fatalf("%s ended at once:\n%s%s", where, out, log)
		default:
		}
		return ready()
	})
}

var docsAddress = regexp.MustCompile(`"msg":"serving".*"address":"([^"]+)"`)

// docsReady reports whether the worker with this log answers that it is ready.
func docsReady(ctx context.Context, log string) bool {
	match := docsAddress.FindStringSubmatch(log)
	if match == nil {
		return false
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+match[1]+"/readyz", nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// expectStream waits until the newest stream has printed what the page shows, and nothing else, since
// it was compared last.
func (s *docsSession) expectStream(t *testing.T, where, text string) {
	t.Helper()
	if s.stream == nil {
		t.Fatalf("%s: there is no stream yet", where)
	}
	pattern := docsPattern(text)
	deadline := time.After(patience)
	for {
		printed, changed := s.stream.snapshot()
		if pattern.MatchString(docsTrim(docsWithoutPings(printed[s.shown:]))) {
			s.shown = len(printed)
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Errorf("%s shows\n%s\nbut the stream is\n%s", where, text, printed)
			return
		}
	}
}

var docsPing = regexp.MustCompile(`id: [^\n]*\nevent: ping\ndata: [^\n]*\n\n`)

// docsWithoutPings leaves out what comes at any time.
func docsWithoutPings(stream string) string { return docsPing.ReplaceAllString(stream, "") }

// docsVaries is what another run prints differently.
var docsVaries = regexp.MustCompile(`-[0-9a-f]{8}\b|\d{4}-\d\d-\d\dT[0-9:.]+Z|…`)

// docsPattern matches what a page shows, but for tags and times, and … for anything.
func docsPattern(shown string) *regexp.Regexp {
	var pattern strings.Builder
	pattern.WriteString(`\A`)
	shown = docsTrim(shown)
	last := 0
	for _, at := range docsVaries.FindAllStringIndex(shown, -1) {
		pattern.WriteString(regexp.QuoteMeta(shown[last:at[0]]))
		switch found := shown[at[0]:at[1]]; {
		case found == "…":
			pattern.WriteString(`.*`)
		case found[0] == '-':
			pattern.WriteString(`-[0-9a-f]{8}`)
		default:
			pattern.WriteString(`\d{4}-\d\d-\d\dT[0-9:.]+Z`)
		}
		last = at[1]
	}
	pattern.WriteString(regexp.QuoteMeta(shown[last:]) + `\z`)
	return regexp.MustCompile(pattern.String())
}

var docsLineEnd = regexp.MustCompile(`[ \r]*\n`)

// docsTrim takes white space from the ends of lines and from the whole.
func docsTrim(text string) string {
	return strings.TrimSpace(docsLineEnd.ReplaceAllString(text+"\n", "\n"))
}

// Every relative link of a page leads to a file.
func TestDocsLinks(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)|(?:src|srcset)="([^":]+)"`)
	var pages []string
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../docs/decisions/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range link.FindAllStringSubmatch(string(text), -1) {
			target := filepath.Join(filepath.Dir(page), match[1]+match[2])
			if !exists(target) {
				t.Errorf("%s links to %s, which is not there", page, match[1]+match[2])
			}
		}
	}
}
