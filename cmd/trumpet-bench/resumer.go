package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// resumer is one client that comes back. It only counts: it looks at each event's position, which
// must be the next one.
type resumer struct {
	follower
	since string
	last  int64 // the newest event's position

	position int64
	count    int64
	ready    time.Duration
	err      error
}

var errDone = errors.New("ready")

// run connects and reads until ready, which must come right after the last event.
func (r *resumer) run(ctx context.Context) error {
	r.position = position([]byte(r.since))
	r.query = "topics=watched&since=" + url.QueryEscape(r.since)
	if err := r.follow(ctx, r.take); !errors.Is(err, errDone) {
		return err
	}
	return nil
}

// take takes one message; it returns errDone at the ready that is due.
func (r *resumer) take(message []byte) error {
	id, ok := bytes.CutPrefix(message, []byte(`{"id":"`))
	if !ok {
		switch {
		case bytes.HasPrefix(message, []byte(`{"type":"ping"`)):
			return nil
		case !bytes.HasPrefix(message, []byte(`{"type":"ready"`)) || !bytes.Contains(message, []byte(`"resumed":true`)):
			return fmt.Errorf("the worker said %s", message)
		case r.position != r.last:
			return fmt.Errorf("ready at position %d of %d", r.position, r.last)
		}
		return errDone
	}
	at := position(id)
	r.count++
	if at != r.position+1 {
		return fmt.Errorf("position %d after %d", at, r.position)
	}
	r.position = at
	return nil
}
