package main

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/pgbus"
	"github.com/trumpet-realtime/trumpet/sql"
)

// newBus makes the bus of a command that is no worker. It may have sequencer duty while it
// runs, but leaves pruning to what the workers are told.
func newBus(ctx context.Context, database *databaseFlags, logger *slog.Logger, command string, channels []string, sink pgbus.Sink) (*pgbus.Bus, error) {
	// A plain connection first says at once what is wrong with an address; a bus would go on trying.
	err := database.withConn(ctx, command, func(conn *pgx.Conn) error { return sql.Check(ctx, conn) })
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return pgbus.New(pgbus.Config{
		ConnString:     database.url,
		Channels:       channels,
		Worker:         fmt.Sprintf("%s %s:%d", command, host, os.Getpid()),
		Logger:         logger,
		Retention:      math.MaxInt64 * time.Nanosecond,
		RetentionBytes: math.MaxInt64,
	}, sink)
}

// runBus runs the bus while f runs, and returns when both have ended. If the bus ends first,
// f's context ends, and the bus's error is returned.
func runBus(ctx context.Context, bus *pgbus.Bus, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- bus.Run(ctx)
	}()
	err := f(ctx)
	cancel()
	if busErr := <-ended; busErr != nil {
		return busErr
	}
	return err
}
