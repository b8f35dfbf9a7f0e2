package main

import (
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/sql"
)

func newWatch(io streams) *cobra.Command {
	var (
		database databaseFlags
		watch    sql.Watch
		print    bool
	)
	command := &cobra.Command{
		Use:   "watch TABLE",
		Short: "Make a table's changes events",
		Long: `Make a table's changes events, from now on: by statement triggers on it, or, with --capture wal,
read from the write-ahead log, which costs its writers nothing of their own and needs wal_level = logical.

TABLE is spelled as in SQL: jobs, app.jobs, '"Odd Name"'. For a partitioned table name the
whole table. Watching again replaces the settings. Writers wait while the triggers are put on.`,
		Example: `  trumpet watch jobs
  trumpet watch jobs --columns id,status,technician --max-rows 500
  trumpet watch measurements --capture wal
  trumpet watch app.visits --topic visits --print >> migrations/0042_watch_visits.sql`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			watch.Table = args[0]
			if c.Flags().Changed("max-rows") && watch.MaxRows < 1 {
				return usageError{fmt.Errorf("--max-rows %d: at least 1", watch.MaxRows)}
			}
			if c.Flags().Changed("capture") && watch.Capture != "triggers" && watch.Capture != "wal" {
				return usageError{fmt.Errorf("--capture %q: triggers or wal", watch.Capture)}
			}
			if c.Flags().Changed("topic") {
				if err := trumpet.ValidTopic(watch.Topic); err != nil {
					return usageError{fmt.Errorf("--topic: %w", err)}
				}
			}
			if print {
				_, err := fmt.Fprintln(io.out, watch.String()+";")
				return err
			}
			return database.withConn(c.Context(), "watch", func(conn *pgx.Conn) error {
				topic, err := watch.Apply(c.Context(), conn)
				if err != nil {
					return explainSchema(c, conn, err)
				}
				fmt.Fprintf(io.out, "watching %s: its changes are events of topic %s\n", watch.Table, topic)
				return nil
			})
		},
	}
	flags := command.Flags()
	database.add(flags)
	flags.StringSliceVar(&watch.Columns, "columns", nil, "only these `columns`, and the key (default all)")
	flags.StringSliceVar(&watch.Key, "key", nil, "the `columns` that identify a row; \"\" for none (default the primary key)")
	flags.StringVar(&watch.Topic, "topic", "", "the `topic` of the events (default the table's name, with its schema if that is not public)")
	flags.IntVar(&watch.MaxRows, "max-rows", 0, "a statement that touches more than `n` rows is one bulk event (default 1000)")
	flags.StringVar(&watch.Capture, "capture", "", "`how`: triggers, or wal (default triggers)")
	flags.BoolVar(&print, "print", false, "print the SQL instead of running it")
	return command
}

func newUnwatch(io streams) *cobra.Command {
	var (
		database databaseFlags
		print    bool
	)
	command := &cobra.Command{
		Use:   "unwatch TABLE",
		Short: "Stop making a table's changes events",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			unwatch := sql.Unwatch{Table: args[0]}
			if print {
				_, err := fmt.Fprintln(io.out, unwatch.String()+";")
				return err
			}
			return database.withConn(c.Context(), "unwatch", func(conn *pgx.Conn) error {
				if err := unwatch.Apply(c.Context(), conn); err != nil {
					return explainSchema(c, conn, err)
				}
				fmt.Fprintf(io.out, "%s is not watched any more\n", unwatch.Table)
				return nil
			})
		},
	}
	database.add(command.Flags())
	command.Flags().BoolVar(&print, "print", false, "print the SQL instead of running it")
	return command
}

// explainSchema says that the schema is missing, if that is why a call failed.
func explainSchema(c *cobra.Command, conn *pgx.Conn, err error) error {
	if missing := sql.Check(c.Context(), conn); missing != nil {
		return missing
	}
	return explainPostgres(err)
}
