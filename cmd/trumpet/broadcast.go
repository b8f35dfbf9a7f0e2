package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/trumpet-realtime/trumpet"
)

// maxBroadcastBytes bounds what is read from standard input.
const maxBroadcastBytes = 16 << 20

func newBroadcast(io streams) *cobra.Command {
	var (
		database databaseFlags
		logs     logFlags
	)
	command := &cobra.Command{
		Use:   "broadcast TOPIC JSON|-",
		Short: "Send a JSON value to everybody who follows a topic",
		Long: `Send a JSON value to everybody who follows a topic, on every worker, and print its event id.
It is committed in Postgres, in order with the rows' changes. With - the value is read from standard input.

In SQL, inside your own transaction: select trumpet.broadcast('dispatch', '{"text": "…"}').`,
		Example: `  trumpet broadcast dispatch '{"text": "Depot closes at 16:00"}'
  trumpet broadcast dispatch '"just a text"'
  jq '.[0]' news.json | trumpet broadcast dispatch -`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			topic := args[0]
			if err := trumpet.ValidTopic(topic); err != nil {
				return usageError{err}
			}
			data, err := jsonArgument(topic, args[1], io.in)
			if err != nil {
				return err
			}
			id, err := publish(c.Context(), &database, logs.logger(io.err), topic, data)
			if err != nil {
				return err
			}
			if id.IsZero() {
				fmt.Fprintln(io.err, "committed, but its place in the log is not known yet")
				return nil
			}
			fmt.Fprintln(io.out, id)
			return nil
		},
	}
	database.add(command.Flags())
	logs.add(command.Flags(), "warn")
	return command
}

// jsonArgument is the JSON value that the user gave, or meant to give.
func jsonArgument(topic, text string, in io.Reader) (json.RawMessage, error) {
	data, source := []byte(text), "the value"
	if text == "-" {
		var err error
		if data, err = io.ReadAll(io.LimitReader(in, maxBroadcastBytes+1)); err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		if len(data) > maxBroadcastBytes {
			return nil, fmt.Errorf("standard input is larger than %d MiB", maxBroadcastBytes>>20)
		}
		source = "standard input"
	}
	data = bytes.TrimSpace(data)
	if json.Valid(data) {
		return data, nil
	}
	if text != "-" && !strings.ContainsAny(text, `{["`) {
		quoted, err := json.Marshal(text)
		if err == nil {
			return nil, usageError{fmt.Errorf("%s is not JSON; a text needs quotes of its own: trumpet broadcast %s %s",
				shellQuote(text), shellQuote(topic), shellQuote(string(quoted)))}
		}
	}
	var value any
	err := json.Unmarshal(data, &value)
	return nil, usageError{fmt.Errorf("%s is not JSON: %w", source, err)}
}

// shellQuote quotes a word for a POSIX shell.
func shellQuote(word string) string {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%"
	if word != "" && strings.Trim(word, safe) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// publish broadcasts through a bus of its own, which also tells the event's id.
func publish(ctx context.Context, database *databaseFlags, logger *slog.Logger, topic string, data json.RawMessage) (trumpet.EventID, error) {
	sink := &liveSink{live: make(chan struct{})}
	bus, err := newBus(ctx, database, logger, "broadcast", nil, sink)
	if err != nil {
		return trumpet.EventID{}, err
	}
	var id trumpet.EventID
	err = runBus(ctx, bus, func(ctx context.Context) error {
		select {
		case <-sink.live:
		case <-ctx.Done():
			return ctx.Err()
		}
		var err error
		id, err = bus.Publish(ctx, topic, data)
		return err
	})
	return id, err
}

// liveSink waits for the bus to be live, and takes nothing from it.
type liveSink struct {
	once sync.Once
	live chan struct{}
}

func (s *liveSink) Reset(trumpet.EventID)                   {}
func (s *liveSink) Rewind(trumpet.EventID)                  {}
func (s *liveSink) Append([]trumpet.Event, trumpet.EventID) {}
func (s *liveSink) Retain([]trumpet.Event)                  {}
func (s *liveSink) Live()                                   { s.once.Do(func() { close(s.live) }) }
func (s *liveSink) Stale()                                  {}
