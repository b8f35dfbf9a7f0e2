// Command soak runs the oracle for as long as asked, with all faults, and prints what came of it as
// Markdown. It ends with status 1 if an invariant was broken.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/trumpet-realtime/trumpet/integration/oracle"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	config := oracle.Config{Duration: 20 * time.Minute, Seed: uint64(time.Now().UnixNano())}
	flags := flag.NewFlagSet("scripts/soak", flag.ContinueOnError)
	flags.SetOutput(progress)
	flags.IntVar(&config.Workers, "workers", 2, "`how many` workers")
	flags.IntVar(&config.Clients, "clients", 30, "`how many` clients without filters")
	flags.IntVar(&config.Boards, "boards", 15, "`how many` clients with filters and snapshots")
	flags.IntVar(&config.Writers, "writers", 4, "`how many` writers")
	flags.DurationVar(&config.Pace, "pace", 0, "how long a writer waits between transactions, on average (default 40ms)")
	flags.DurationVar(&config.LiveWithin, "live-within", 5*time.Second, "how soon after a fault clients must be live again")
	flags.StringVar(&config.Capture, "capture", oracle.Captures()[0], "`how` tables are watched: "+strings.Join(oracle.Captures(), ", "))
	kinds := flags.String("faults", "all", "`kinds` of faults to choose from: "+strings.Join(oracle.Kinds("wal"), ",")+"; those of the reader need the WAL")
	flags.Usage = func() {
		fmt.Fprint(progress, "Runs random transactions, clients and faults for as long as asked, and compares every client with the database.\n\n"+
			"  scripts/soak [flags] [duration] [seed]\n\nThe duration is 20m by default; a run with the same seed makes the same choices.\n\n")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return errors.New("scripts/soak --help says what it takes")
	}
	var err error
	if text := flags.Arg(0); text != "" {
		if config.Duration, err = time.ParseDuration(text); err != nil || config.Duration <= 0 {
			return fmt.Errorf("%q is not a duration such as 20m", text)
		}
	}
	if text := flags.Arg(1); text != "" {
		if config.Seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			return fmt.Errorf("%q is not a seed, which is a number", text)
		}
	}
	if *kinds != "all" {
		config.Faults = strings.FieldsFunc(*kinds, func(r rune) bool { return r == ',' })
	}

	dir, err := os.MkdirTemp("", "trumpet-soak-")
	if err != nil {
		return fmt.Errorf("make folder for the binary: %w", err)
	}
	defer os.RemoveAll(dir)
	if config.Binary, err = trumpettest.Build(ctx, dir); err != nil {
		return err
	}
	fmt.Fprintf(progress, "seed %d\n", config.Seed)
	said := time.Now()
	config.Progress = func(r oracle.Report) {
		if time.Since(said) >= time.Minute || len(r.Violations) > 0 {
			said = time.Now()
			fmt.Fprintln(progress, r.Line())
		}
	}
	report, err := oracle.Run(ctx, config)
	fmt.Fprintln(out, report.Markdown())
	for _, v := range report.Violations {
		fmt.Fprintln(progress, v)
	}
	for i, log := range report.Logs {
		fmt.Fprintf(progress, "the log of worker %d ends with:\n%s\n", i+1, log)
	}
	if err != nil {
		return err
	}
	if n := len(report.Violations); n > 0 {
		return fmt.Errorf("%d violations; scripts/soak --capture %s %v %d repeats this run", n, config.Capture, config.Duration, config.Seed)
	}
	return nil
}
