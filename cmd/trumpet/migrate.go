package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/trumpet-realtime/trumpet/sql"
)

func newMigrate(io streams) *cobra.Command {
	command := &cobra.Command{
		Use:   "migrate",
		Short: "Install, remove, show or print the schema trumpet",
		Long: `Install, remove, show or print the schema trumpet.

It needs no superuser and no extension: a role with CREATE on the database is enough.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return usageError{fmt.Errorf("say what to do: migrate up, down, status or print")}
		},
	}
	command.AddCommand(newMigrateUp(io), newMigrateDown(io), newMigrateStatus(io), newMigratePrint(io))
	return command
}

func newMigrateUp(io streams) *cobra.Command {
	var (
		database databaseFlags
		roles    []string
	)
	command := &cobra.Command{
		Use:   "up",
		Short: "Apply the migrations that are missing, in one transaction",
		Example: `  trumpet migrate up
  trumpet migrate up --role trumpet_worker    # and let that role run workers`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return database.withConn(c.Context(), "migrate", func(conn *pgx.Conn) error {
				applied, err := sql.Up(c.Context(), conn)
				if err != nil {
					return explainPostgres(err)
				}
				report(io.out, "applied", applied, "the schema trumpet is up to date")
				for _, role := range roles {
					if err := sql.GrantWorker(c.Context(), conn, role); err != nil {
						return explainPostgres(err)
					}
					fmt.Fprintf(io.out, "granted to %s: what a worker needs\n", role)
				}
				return nil
			})
		},
	}
	database.add(command.Flags())
	command.Flags().StringArrayVar(&roles, "role", nil, "let this `role`, which exists, run workers; may be repeated")
	return command
}

func newMigrateDown(io streams) *cobra.Command {
	var database databaseFlags
	command := &cobra.Command{
		Use:   "down",
		Short: "Remove the schema trumpet and its triggers, in one transaction",
		Long: `Remove the schema trumpet, its triggers on watched tables and the log, in one transaction.
The database is then as it was before migrate up. Stop the workers first.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return database.withConn(c.Context(), "migrate", func(conn *pgx.Conn) error {
				reverted, err := sql.Down(c.Context(), conn)
				if err != nil {
					return explainPostgres(err)
				}
				report(io.out, "reverted", reverted, "there is no schema trumpet")
				return nil
			})
		},
	}
	database.add(command.Flags())
	return command
}

func report(w io.Writer, verb string, done []sql.Migration, nothing string) {
	if len(done) == 0 {
		fmt.Fprintln(w, "nothing to do:", nothing)
	}
	for _, m := range done {
		fmt.Fprintf(w, "%s %04d %s\n", verb, m.Version, m.Name)
	}
}

func newMigrateStatus(io streams) *cobra.Command {
	var database databaseFlags
	command := &cobra.Command{
		Use:   "status",
		Short: "Show which migrations are applied",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return database.withConn(c.Context(), "migrate", func(conn *pgx.Conn) error {
				list, err := sql.List(c.Context(), conn)
				if err != nil {
					return explainPostgres(err)
				}
				table := tabwriter.NewWriter(io.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "MIGRATION\tAPPLIED")
				for _, m := range list {
					applied := "no; run: trumpet migrate up"
					if !m.AppliedAt.IsZero() {
						applied = m.AppliedAt.UTC().Format(time.RFC3339)
					}
					fmt.Fprintf(table, "%04d %s\t%s\n", m.Version, m.Name, applied)
				}
				return table.Flush()
			})
		},
	}
	database.add(command.Flags())
	return command
}

func newMigratePrint(io streams) *cobra.Command {
	var down bool
	command := &cobra.Command{
		Use:   "print",
		Short: "Print the schema as plain SQL, for review, psql or your own migration tool",
		Example: `  trumpet migrate print | psql --single-transaction --set ON_ERROR_STOP=1
  trumpet migrate print --down`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return sql.Print(io.out, down) },
	}
	command.Flags().BoolVar(&down, "down", false, "print what removes the schema")
	return command
}
