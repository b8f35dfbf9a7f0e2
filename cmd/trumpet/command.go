package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// streams are where a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// usageError is a mistake in how the command was called: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitCode is 0 for success, 2 for a wrong call, 1 for everything else.
func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	}
	return 1
}

// run carries out the command line and says on stderr why it could not. The first SIGINT or
// SIGTERM ends ctx; after it the signals are the system's again, so that a second one ends
// the process at once.
func run(ctx context.Context, args []string, in io.Reader, out, err io.Writer, env func(string) string) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	unhook := context.AfterFunc(ctx, stop)
	defer unhook()

	root := newRoot(streams{in, out, err}, env)
	root.SetArgs(args)
	command, failure := root.ExecuteContextC(ctx)
	if failure == nil {
		return nil
	}
	fmt.Fprintf(err, "trumpet: %v\n", failure)
	if exitCode(failure) == 2 {
		fmt.Fprintf(err, "Run '%s --help' for how to call it.\n", command.CommandPath())
	}
	return failure
}

func newRoot(io streams, env func(string) string) *cobra.Command {
	root := &cobra.Command{
		Use:   "trumpet",
		Short: "Postgres-native realtime server",
		Long: `Trumpet tells every browser what changes in Postgres, within milliseconds, in one order,
exactly once, on whichever worker it is connected to.

A first look, on a private Postgres that it starts itself:   trumpet demo
With your own database:   trumpet migrate up, trumpet watch jobs, trumpet serve

Where a flag names a $VARIABLE, that sets it too; the flag wins.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args:              cobra.NoArgs,
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(io.in)
	root.SetOut(io.out)
	root.SetErr(io.err)
	root.AddCommand(
		newServe(io), newDemo(io), newMigrate(io), newWatch(io), newUnwatch(io),
		newBroadcast(io), newLive(io), newTail(io), newDoctor(io), newVersion(io),
	)
	prepare(root, env)
	return root
}

// prepare makes what cobra finds wrong with a call a usageError, and gives every command's
// flags their environment twins.
func prepare(command *cobra.Command, env func(string) string) {
	command.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	if check := command.Args; check != nil {
		command.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	command.Flags().SortFlags = false
	command.Flags().VisitAll(describe)
	command.PreRunE = func(c *cobra.Command, _ []string) error { return fromEnvironment(c.Flags(), env) }
	for _, sub := range command.Commands() {
		prepare(sub, env)
	}
}

// twin is the annotation that names a flag's environment variable.
const twin = "environment"

// twinOf names the variable that sets a flag, or is empty.
func twinOf(flag *pflag.Flag) string { return strings.Join(flag.Annotations[twin], "") }

// withTwin gives flags their environment variables.
func withTwin(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		variable := "TRUMPET_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if name == "database-url" {
			variable = "DATABASE_URL"
		}
		if err := flags.SetAnnotation(name, twin, []string{variable}); err != nil {
			panic(err) // a flag that was never defined
		}
	}
}

// describe adds the environment variable to a flag's help.
func describe(flag *pflag.Flag) {
	if variable := twinOf(flag); variable != "" && !strings.Contains(flag.Usage, "$"+variable) {
		flag.Usage += " [$" + variable + "]"
	}
}

// fromEnvironment sets the flags that were not given from their variables.
func fromEnvironment(flags *pflag.FlagSet, env func(string) string) error {
	var failures []error
	flags.VisitAll(func(flag *pflag.Flag) {
		variable := twinOf(flag)
		if flag.Changed || variable == "" {
			return
		}
		value := env(variable)
		if value == "" {
			return
		}
		if err := flags.Set(flag.Name, value); err != nil {
			failures = append(failures, usageError{fmt.Errorf("$%s is %q: %w", variable, value, innermost(err))})
		}
	})
	return errors.Join(failures...)
}

// oneOf is a flag whose values are listed.
type oneOf struct {
	value   string
	allowed []string
}

func (o *oneOf) String() string { return o.value }
func (o *oneOf) Type() string   { return strings.Join(o.allowed, "|") }
func (o *oneOf) Set(value string) error {
	if !slices.Contains(o.allowed, value) {
		return fmt.Errorf("%q is none of %s", value, strings.Join(o.allowed, ", "))
	}
	o.value = value
	return nil
}
