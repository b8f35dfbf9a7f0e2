package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/trumpet-realtime/trumpet/sql/doctor"
)

func newDoctor(io streams) *cobra.Command {
	var (
		database  databaseFlags
		retention time.Duration
		asJSON    bool
	)
	command := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong with a database for Trumpet, and what mends it",
		Long: `Say what is wrong with a database for Trumpet, since when, and what mends it: triggers that are
gone or disabled, records that nobody gives a position, a notification queue that fills up and who
holds it, a pooler in between, rights, settings, and more. The gravest comes first.

It only reads, within seconds. Run it as the schema's owner to see all, or as the workers' role to see
what that may do. The exit code is 1 if something is an error, 0 otherwise, warnings included.`,
		Example: `  trumpet doctor
  trumpet doctor --json | jq -r '.findings[] | select(.severity == "error") | .mend[]?'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if retention < time.Minute {
				return usageError{fmt.Errorf("--retention %v: at least 1m, as for trumpet serve", retention)}
			}
			return database.withConn(c.Context(), "doctor", func(conn *pgx.Conn) error {
				findings, err := doctor.Diagnose(c.Context(), conn, doctor.Options{Retention: retention})
				if err != nil {
					return explainPostgres(err)
				}
				if asJSON {
					err = writeFindingsJSON(io.out, findings)
				} else {
					err = writeFindings(io.out, findings)
				}
				if err != nil {
					return fmt.Errorf("write output: %w", err)
				}
				if n := countFindings(findings, doctor.Error); n > 0 {
					return errors.New(counted(n, "error") + " found")
				}
				return nil
			})
		},
	}
	flags := command.Flags()
	database.add(flags)
	flags.BoolVar(&asJSON, "json", false, "print JSON, with the checks that found nothing")
	flags.DurationVar(&retention, "retention", 24*time.Hour, "what the workers were told to keep")
	withTwin(flags, "retention")
	return command
}

// writeFindings prints what is wrong, what could not be checked, and one line about all.
func writeFindings(w io.Writer, findings []doctor.Finding) error {
	var b strings.Builder
	for _, f := range findings {
		if f.Severity == doctor.OK {
			continue
		}
		fmt.Fprintf(&b, "%s  %s: %s\n", strings.ToUpper(string(f.Severity)), f.Check, f.Message)
		if f.Since != nil {
			fmt.Fprintf(&b, "  since %s\n", f.Since.UTC().Format(time.RFC3339))
		}
		for _, mend := range f.Mend {
			fmt.Fprintf(&b, "  > %s\n", mend)
		}
		b.WriteString("\n")
	}
	made := map[string]bool{}
	var skipped []string
	for _, f := range findings {
		made[f.Check] = true
		if f.Skipped {
			skipped = append(skipped, fmt.Sprintf("%s: %s\n", f.Check, f.Message))
		}
	}
	b.WriteString(strings.Join(skipped, ""))
	failures, warnings := countFindings(findings, doctor.Error), countFindings(findings, doctor.Warning)
	checks := counted(len(made)-len(skipped), "check")
	if failures+warnings == 0 {
		fmt.Fprintf(&b, "ok: %s found nothing wrong\n", checks)
	} else {
		fmt.Fprintf(&b, "%s and %s by %s\n", counted(failures, "error"), counted(warnings, "warning"), checks)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeFindingsJSON prints one object.
func writeFindingsJSON(w io.Writer, findings []doctor.Finding) error {
	worst := doctor.OK
	if len(findings) > 0 {
		worst = findings[0].Severity
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(struct {
		Severity doctor.Severity  `json:"severity"`
		Findings []doctor.Finding `json:"findings"`
	}{worst, findings})
}

func countFindings(findings []doctor.Finding, severity doctor.Severity) int {
	n := 0
	for _, f := range findings {
		if f.Severity == severity {
			n++
		}
	}
	return n
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
