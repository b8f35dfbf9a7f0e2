package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/pgbus"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

func newTail(io streams) *cobra.Command {
	var (
		database databaseFlags
		logs     logFlags
		channels channelFlag
		since    string
	)
	command := &cobra.Command{
		Use:   "tail [TOPIC…]",
		Short: "Print events as they come, one JSON object a line",
		Long: `Print events as they come, one JSON object a line, until interrupted: all, or those of the
topics. With --since it begins after that event, in the log.`,
		Example: `  trumpet tail
  trumpet tail jobs dispatch | jq -c '[.id, .op, .new.status]'
  trumpet tail --since 8431.0-5f3a09c1`,
		RunE: func(c *cobra.Command, args []string) error {
			tail := &tail{topics: args, out: io.out}
			for _, topic := range args {
				if err := trumpet.ValidTopic(topic); err != nil {
					return usageError{err}
				}
			}
			if since != "" {
				id, err := trumpet.ParseEventID(since)
				if err != nil {
					return usageError{fmt.Errorf("--since: %w", err)}
				}
				tail.last, tail.replaying = id, true
			}
			tail.log = logs.logger(io.err)
			err := tail.run(c.Context(), &database, channels.names)
			if errors.Is(err, context.Canceled) {
				return nil // interrupted: the usual end
			}
			return err
		},
	}
	flags := command.Flags()
	database.add(flags)
	flags.StringVar(&since, "since", "", "print what came after the event with this `id` first (default: begin now)")
	channels.add(flags)
	logs.add(flags, "warn")
	return command
}

// tail is the sink that prints. The bus calls it from one goroutine, and waits while the
// reader of our output is slow: nobody else depends on this bus.
type tail struct {
	topics []string // all if empty
	out    io.Writer
	log    *slog.Logger

	ctx       context.Context // of the run: a sink's calls bring none
	stop      context.CancelCauseFunc
	bus       *pgbus.Bus
	last      trumpet.EventID // printed, or passed over
	replaying bool            // what is older than Live is wanted too
	live      bool
	buffer    []byte
}

func (t *tail) run(ctx context.Context, database *databaseFlags, channels []string) error {
	t.ctx, t.stop = context.WithCancelCause(ctx)
	defer t.stop(nil)
	var err error
	if t.bus, err = newBus(ctx, database, t.log, "tail", channels, t); err != nil {
		return err
	}
	return runBus(t.ctx, t.bus, func(ctx context.Context) error {
		<-ctx.Done()
		return context.Cause(t.ctx)
	})
}

// Reset begins. What the log holds between --since and where the bus begins is read here.
func (t *tail) Reset(after trumpet.EventID) {
	if t.live {
		t.log.Error("the log lost events that were printed already; going on with what it has now")
		t.last = after
		return
	}
	if !t.replaying {
		t.last = after
		return
	}
	// The read also proves that the log knows the id.
	for {
		events, upTo, err := t.bus.ReadLog(t.ctx, t.last, after)
		if err != nil {
			t.stop(t.explain(err))
			return
		}
		t.print(events)
		if upTo == t.last || upTo.Compare(after) >= 0 {
			return
		}
		t.last = upTo
	}
}

func (t *tail) explain(err error) error {
	switch {
	case errors.Is(err, trumpet.ErrPruned), errors.Is(err, trumpet.ErrUnknownID):
		return fmt.Errorf("cannot begin after %s: %w; leave out --since to begin now", t.last, innermost(err))
	}
	return err
}

// Append prints the events that are wanted.
func (t *tail) Append(events []trumpet.Event, head trumpet.EventID) {
	if t.ctx.Err() != nil {
		return
	}
	if t.live || t.replaying {
		t.print(events)
	}
	if head.Compare(t.last) > 0 {
		t.last = head
	}
}

// Retain gives what is older than what comes: it is not printed.
func (t *tail) Retain([]trumpet.Event) {}

// Live says that what comes now is new.
func (t *tail) Live() {
	if t.live {
		t.log.Warn("postgres is back")
	}
	t.live = true
}

// Rewind says so, and goes on after what stands.
func (t *tail) Rewind(to trumpet.EventID) {
	t.log.Warn("the log lost events that were printed; what follows comes after what it has", "after", to)
	t.last = to
}

// Stale says that nothing comes for now.
func (t *tail) Stale() { t.log.Warn("postgres lost, connecting again") }

// print writes one line for each event of the topics that was not printed yet.
func (t *tail) print(events []trumpet.Event) {
	t.buffer = t.buffer[:0]
	for i := range events {
		event := &events[i]
		if !t.wanted(event) {
			continue
		}
		t.buffer = wire.AppendEvent(t.buffer, event, t.more(events[i:]))
		t.buffer = append(t.buffer, '\n')
	}
	if len(t.buffer) == 0 {
		return
	}
	if _, err := t.out.Write(t.buffer); err != nil {
		t.stop(fmt.Errorf("write output: %w", err))
	}
}

func (t *tail) wanted(event *trumpet.Event) bool {
	if !event.ID.IsZero() && event.ID.Compare(t.last) <= 0 {
		return false
	}
	return len(t.topics) == 0 || slices.Contains(t.topics, event.Topic)
}

// more reports whether the first event's transaction has another one that is wanted.
func (t *tail) more(events []trumpet.Event) bool {
	for i := 0; events[i].More; i++ {
		if t.wanted(&events[i+1]) {
			return true
		}
	}
	return false
}
