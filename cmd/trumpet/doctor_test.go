package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

func TestDoctor(t *testing.T) {
	t.Parallel()
	_, url := pgtest.StartMigrated(t, map[string]string{"fsync": "on", "full_page_writes": "on"})
	conn := pgtest.Connect(t, url)
	env := map[string]string{"DATABASE_URL": url}
	expect := func(wantCode int, wantOut, wantErr string, args ...string) string {
		t.Helper()
		out, stderr, code := call(t, t.Context(), nil, env, append([]string{"doctor"}, args...)...)
		if code != wantCode || !strings.Contains(out, wantOut) || !strings.Contains(stderr, wantErr) {
			t.Errorf("exit code %d, want %d; stdout, which should say %q:\n%s\nstderr, which should say %q:\n%s", code, wantCode, wantOut, out, wantErr, stderr)
		}
		return out
	}

	worker := pgtest.Connect(t, url)
	pgtest.Exec(t, worker, "set application_name = 'trumpet listen w1'")
	expect(0, "WARNING  access: ", "")
	pgtest.Exec(t, conn, "revoke connect on database app from public")
	if out := expect(0, "ok: 22 checks found nothing wrong\n", ""); strings.Count(out, "\n") != 1 {
		t.Errorf("when all is well there are more lines:\n%s", out)
	}

	pgtest.Exec(t, conn, "create table \"a\x1b[2J\" (id int primary key); select trumpet.watch('\"a\x1b[2J\"', topic => 'a'); alter table \"a\x1b[2J\" disable trigger all")
	pgtest.Exec(t, conn, "alter table trumpet.record disable trigger wake")
	out := expect(1, "1 error and 1 warning by 22 checks\n", "trumpet: 1 error found\n")
	if !strings.HasPrefix(out, "ERROR  watches: ") || !strings.Contains(out, "\n  > alter table public.U&\"a\\001B[2J\" enable trigger") || strings.Contains(out, "\x1b") {
		t.Errorf("stdout:\n%s", out)
	}
	var report struct {
		Severity string
		Findings []struct {
			Check, Severity, Message string
			Mend                     []string
		}
	}
	if err := json.Unmarshal([]byte(expect(1, `"check": "watches"`, "", "--json")), &report); err != nil {
		t.Fatal(err)
	}
	if report.Severity != "error" || len(report.Findings) < 20 || report.Findings[0].Check != "watches" || report.Findings[1].Severity != "warning" {
		t.Errorf("%+v", report)
	}

	expect(2, "", "at least 1m", "--retention", "1s")
	expect(2, "", "unknown command", "now")
	env["DATABASE_URL"] = "host=127.0.0.1 port=1"
	expect(1, "", "nobody listens there")
}
