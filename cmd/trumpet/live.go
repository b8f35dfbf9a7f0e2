package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/sql"
)

func newLive(io streams) *cobra.Command {
	command := &cobra.Command{
		Use:   "live",
		Short: "Define queries whose results clients follow",
		Long: `Define queries whose results clients follow as topics. When a table changes that a query depends on,
one worker of all runs it, and its result goes to everybody who listens, only if it is another.
An aggregate over one table is kept up from the changes themselves, whatever the table's size.`,
		Example: `  trumpet live add stats 'select count(*) as jobs from jobs' --depends-on jobs
  trumpet live aggregate revenue invoices --aggregates 'sum(amount) as total' --group-by day
  trumpet live list`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("say what to do: live list, add, aggregate or drop")}
		},
	}
	command.AddCommand(newLiveList(io), newLiveAdd(io), newLiveAggregate(io), newLiveDrop(io))
	return command
}

// liveFlags are those of both ways to define.
type liveFlags struct {
	database databaseFlags
	settings sql.LiveSettings
	print    bool
}

func (l *liveFlags) add(flags *pflag.FlagSet, timeout string) {
	l.database.add(flags)
	flags.DurationVar(&l.settings.MinInterval, "min-interval", 0, "at most one result in this time, from 50ms (default 250ms)")
	flags.DurationVar(&l.settings.Timeout, "timeout", 0, timeout)
	flags.StringVar(&l.settings.RunAs, "run-as", "", "the `role` as which it reads; grant it to the workers' role (default the workers' role)")
	flags.BoolVar(&l.print, "print", false, "print the SQL instead of running it")
}

// definition is a sql.LiveQuery, or LiveAggregate, or what drops one.
type definition interface{ String() string }

// apply prints or runs a definition.
func (l *liveFlags) apply(c *cobra.Command, io streams, name string, d definition, run func(conn *pgx.Conn) error, done string) error {
	if err := trumpet.ValidTopic(name); err != nil {
		return usageError{err}
	}
	if l.print {
		_, err := fmt.Fprintln(io.out, d.String()+";")
		return err
	}
	return l.database.withConn(c.Context(), "live", func(conn *pgx.Conn) error {
		if err := run(conn); err != nil {
			return explainSchema(c, conn, err)
		}
		fmt.Fprintln(io.out, done)
		return nil
	})
}

func newLiveAdd(io streams) *cobra.Command {
	var (
		flags     liveFlags
		dependsOn []string
	)
	command := &cobra.Command{
		Use:   "add NAME QUERY",
		Short: "Define a live query, or replace one",
		Long: `Define a live query, or replace the one of this name. Its rows are the topic NAME, as an array of objects.

QUERY is one SELECT; "-" reads it from standard input. It runs in a read-only transaction, when a watched table
that it depends on changes: at once after a quiet time, then once in the minimal interval.`,
		Example: `  trumpet live add stats 'select count(*) as jobs from jobs' --depends-on jobs
  trumpet live add board - --depends-on jobs,customers --run-as reports --timeout 2s <board.sql
  trumpet live add stats 'select 1' --depends-on jobs --print >>migrations/0043_live.sql`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			query := args[1]
			if query == "-" {
				text, err := readAll(io.in)
				if err != nil {
					return err
				}
				query = text
			}
			if len(dependsOn) == 0 {
				return usageError{errors.New("--depends-on is missing: name the watched tables that the query reads")}
			}
			q := sql.LiveQuery{Name: args[0], Query: query, DependsOn: dependsOn, LiveSettings: flags.settings}
			return flags.apply(c, io, q.Name, q, func(conn *pgx.Conn) error { return q.Apply(c.Context(), conn) },
				"defined live query "+q.Name+": its results are topic "+q.Name)
		},
	}
	flags.add(command.Flags(), "how long it may take (default 5s)")
	command.Flags().StringSliceVar(&dependsOn, "depends-on", nil, "the watched `tables` that it reads, by topic or as SQL names them")
	return command
}

// readAll reads standard input.
func readAll(in io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(in, 1<<20))
	if err != nil {
		return "", fmt.Errorf("read standard input: %w", err)
	}
	return string(text), nil
}

func newLiveAggregate(io streams) *cobra.Command {
	var (
		flags     liveFlags
		aggregate sql.LiveAggregate
	)
	command := &cobra.Command{
		Use:   "aggregate NAME TABLE",
		Short: "Define a live aggregate, or replace one",
		Long: `Define an aggregate over one watched table, or replace the live query of this name. Its rows are the topic
NAME, as an array of objects, one for each group.

A worker reads the table once, and then follows its changes: a change costs the same whatever the table's
size. There are count, count(column), sum, avg, min and max. What it cannot follow, as a statement that touched too many
rows for an event each, has it read the table again.`,
		Example: `  trumpet live aggregate jobs_by_status jobs --group-by status
  trumpet live aggregate revenue invoices --aggregates 'sum(amount) as total,count' --group-by day --filter 'paid=is.true'`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			a := aggregate
			a.Name, a.Table, a.LiveSettings = args[0], args[1], flags.settings
			if a.Filter != "" {
				if _, err := trumpet.ParseSubscription("topic?" + strings.TrimPrefix(a.Filter, "?")); err != nil {
					return usageError{fmt.Errorf("--filter: %w", err)}
				}
			}
			return flags.apply(c, io, a.Name, a, func(conn *pgx.Conn) error { return a.Apply(c.Context(), conn) },
				"defined live aggregate "+a.Name+": its results are topic "+a.Name)
		},
	}
	flags.add(command.Flags(), "how long reading the table may take (default 5m)")
	command.Flags().StringSliceVar(&aggregate.Aggregates, "aggregates", nil, "`functions` of columns, each with \" as name\" if wanted (default count)")
	command.Flags().StringSliceVar(&aggregate.GroupBy, "group-by", nil, "`columns`")
	command.Flags().StringVar(&aggregate.Filter, "filter", "", "only these rows: `conditions` as in a subscription, status=eq.open&priority=gt.1")
	return command
}

func newLiveDrop(io streams) *cobra.Command {
	var flags liveFlags
	command := &cobra.Command{
		Use:   "drop NAME",
		Short: "End a live query or aggregate",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d := sql.DropLive{Name: args[0]}
			return flags.apply(c, io, d.Name, d, func(conn *pgx.Conn) error { return d.Apply(c.Context(), conn) }, d.Name+" is not live any more")
		},
	}
	flags.database.add(command.Flags())
	command.Flags().BoolVar(&flags.print, "print", false, "print the SQL instead of running it")
	return command
}

func newLiveList(io streams) *cobra.Command {
	var (
		database databaseFlags
		asJSON   bool
	)
	command := &cobra.Command{
		Use:   "list",
		Short: "Show live queries and aggregates, and how they are",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return database.withConn(c.Context(), "live", func(conn *pgx.Conn) error {
				list, err := sql.ListLive(c.Context(), conn)
				if err != nil {
					return explainSchema(c, conn, err)
				}
				if asJSON {
					return writeLiveJSON(io.out, list)
				}
				return writeLive(io.out, list)
			})
		},
	}
	database.add(command.Flags())
	command.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the definitions")
	return command
}

func writeLive(w io.Writer, list []sql.Live) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "there are no live queries; define one: trumpet live add --help")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tKIND\tSTATE\tSINCE\tAS OF\tINTERVAL\tTIMEOUT\tROLE\tDEPENDS ON")
	for _, l := range list {
		state, asOf, role := "live", "-", "-"
		if l.Stale {
			state = "stale"
		}
		if l.AsOf != nil {
			asOf = strconv.FormatInt(*l.AsOf, 10)
		}
		if l.RunAs != nil {
			role = *l.RunAs
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%v\t%v\t%s\t%s\n", l.Name, l.Kind, state, l.Since.UTC().Format(time.RFC3339), asOf,
			l.MinInterval, l.Timeout, role, strings.Join(l.DependsOn, ","))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, l := range list {
		if l.Error != nil {
			if _, err := fmt.Fprintf(w, "%s: %s\n", l.Name, strconv.Quote(*l.Error)); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeLiveJSON(w io.Writer, list []sql.Live) error {
	type live struct {
		sql.Live
		MinInterval string `json:"min_interval"`
		Timeout     string `json:"timeout"`
	}
	all := make([]live, len(list))
	for i, l := range list {
		all[i] = live{l, l.MinInterval.String(), l.Timeout.String()}
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(all)
}
