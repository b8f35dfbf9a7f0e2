package server

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/hub"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// catalogTimeout bounds the wait for what Postgres knows of a table. A client's request, and what
// it sends meanwhile, waits for it.
const catalogTimeout = 3 * time.Second

// Catalog knows the tables that can be filtered.
type Catalog interface {
	// Table returns the watched table whose events a topic has, if there is one. An error
	// that is a *trumpet.Refusal is the client's; any other one will pass.
	Table(ctx context.Context, topic string) (trumpet.Table, bool, error)
}

// endingBlind is for a client whose filters cannot be checked now.
var endingBlind = trumpet.Ending{
	Code: trumpet.EndingUnavailable.Code, Name: trumpet.EndingUnavailable.Name,
	Message: "Postgres could not be asked for the columns of a filter; connect again and go on from your last id",
}

// client reads from a request what the client wants to follow, and from where on. If that
// is not possible it has answered the request; if it is not possible just now, the ending says so.
func (s *Server) client(w http.ResponseWriter, r *http.Request, format wire.Format, topics []string) (_ hub.Client, _ *trumpet.Ending, ok bool) {
	c := hub.Client{Format: format}
	q, err := parseQuery(r.URL.RawQuery)
	if !q.named {
		q.subscriptions = plain(topics)
	}
	var ending *trumpet.Ending
	if err == nil {
		ctx, cancel := context.WithTimeout(r.Context(), catalogTimeout)
		defer cancel()
		c.Interests, err = s.interests(ctx, q.subscriptions)
	}
	if refusal, ok := errors.AsType[*trumpet.Refusal](err); ok {
		writeProblem(w, http.StatusBadRequest, refusal.Message)
		return c, nil, false
	}
	if err != nil {
		ending = &endingBlind
	}
	c.Snapshot = q.snapshot
	since := q.since
	if last := r.Header.Get("Last-Event-ID"); format == wire.SSE && last != "" {
		// An EventSource comes back to the URL it was made with, which may hold an older id.
		since = last
	}
	if since == "" {
		return c, ending, true
	}
	id, err := trumpet.ParseEventID(since)
	if err != nil {
		// Not an error: the client must be told to fetch its state anew, in a way that page
		// code can see.
		c.Refused = wire.ReasonInvalid
		return c, ending, true
	}
	c.Resume, c.Since = true, id
	return c, ending, true
}

// interests fits subscriptions to the tables that they filter. The error is a *trumpet.Refusal if one
// does not fit.
func (s *Server) interests(ctx context.Context, subscriptions []trumpet.Subscription) ([]hub.Interest, error) {
	interests := make([]hub.Interest, 0, len(subscriptions))
	for _, subscription := range subscriptions {
		interest, err := s.interest(ctx, subscription)
		if err != nil {
			return nil, err
		}
		interests = append(interests, interest)
	}
	return interests, nil
}

func (s *Server) interest(ctx context.Context, subscription trumpet.Subscription) (hub.Interest, error) {
	if len(subscription.Conditions) == 0 {
		return hub.Interest{Subscription: subscription}, nil
	}
	var table trumpet.Table
	known := false
	if s.config.Catalog != nil {
		var err error
		if table, known, err = s.config.Catalog.Table(ctx, subscription.Topic); err != nil {
			s.noteBlind(err)
			return hub.Interest{}, err
		}
		s.blind.Store(false)
	}
	if !known {
		return hub.Interest{}, trumpet.Refuse(trumpet.ErrFilter,
			"topic %s is not that of a watched table, so there are no columns to filter by; follow it without a filter", subscription.Topic)
	}
	matcher, err := subscription.Compile(table)
	if err != nil {
		return hub.Interest{}, err
	}
	return hub.Interest{Subscription: matcher.Subscription(), Matcher: matcher}, nil
}

// noteBlind logs that Postgres cannot be asked, once: all clients come back until it can.
func (s *Server) noteBlind(err error) {
	if _, ok := errors.AsType[*trumpet.Refusal](err); ok || errors.Is(err, context.Canceled) {
		return // the client's, or it has gone
	}
	if !s.blind.Swap(true) {
		s.config.Logger.Warn("cannot ask Postgres for the columns of a filter; its clients are sent away to come back", "error", err)
	}
}

// change fits a client's command to the tables. Like interests, it may return a *trumpet.Refusal.
func (s *Server) change(ctx context.Context, command wire.Command) (hub.Change, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogTimeout)
	defer cancel()
	change := hub.Change{Ref: command.Ref, Unsubscribe: command.Unsubscribe, Snapshot: command.Snapshot}
	if !command.Unsubscribe {
		var err error
		change.Interests, err = s.interests(ctx, command.Subscriptions)
		return change, err
	}
	for _, subscription := range command.Subscriptions {
		interest, err := s.interest(ctx, subscription)
		if _, ok := errors.AsType[*trumpet.Refusal](err); ok {
			// What does not fit any more can be given up all the same.
			interest, err = hub.Interest{Subscription: subscription}, nil
		}
		if err != nil {
			return change, err
		}
		change.Interests = append(change.Interests, interest)
	}
	return change, nil
}
