package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// message is what a client gets: an event, or, with a type, a control message.
type message struct {
	trumpettest.Message
	text string // as it came
	name string // SSE: the event's name
	last string // SSE: its id field
}

func (m message) isEvent() bool { return m.IsEvent() }

type transport = trumpettest.Transport

const (
	webSocket = trumpettest.WebSocket
	sse       = trumpettest.SSE
)

var transports = []transport{webSocket, sse}

// dialling says how a client comes.
type dialling struct {
	transport   transport
	topics      string
	since       string
	query       string // as it stands in the URL, before topics and since
	lastEventID string
	path        string // default /ws or /api/stream

	forwardedFor string
}

// client is one connection and all that came over it. One goroutine reads.
type client struct {
	name       string
	subscriber *trumpettest.Subscriber
	end        context.CancelFunc
	ended      chan struct{} // closed when nothing more can come

	mu       sync.Mutex
	changed  chan struct{}
	messages []message
	retry    string // SSE: the last retry field
	close    websocket.CloseError
	err      error // what ended the reading
	broken   []string
}

// dial connects to a worker. The connection ends with the test.
func dial(t *testing.T, w *worker, d dialling) *client {
	t.Helper()
	c := &client{name: fmt.Sprintf("%s on %s", d.transport, w.name), changed: make(chan struct{}), ended: make(chan struct{})}
	opening, opened := context.WithTimeout(t.Context(), patience)
	defer opened()
	subscriber, err := trumpettest.Dial(opening, w.addr, trumpettest.Dialling{
		Transport: d.transport, Topics: d.topics, Since: d.since, Query: d.query, LastEventID: d.lastEventID, Path: d.path, ForwardedFor: d.forwardedFor,
	})
	if err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	if d.transport == sse {
		for header, want := range map[string]string{"X-Accel-Buffering": "no", "Cache-Control": "no-store, no-transform"} {
			if got := subscriber.Header.Get(header); got != want {
				t.Errorf("%s: header %s is %q, want %q", c.name, header, got, want)
			}
		}
	}
	c.subscriber = subscriber
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	c.end = cancel
	go func() {
		defer close(c.ended)
		c.read(ctx, subscriber)
	}()
	t.Cleanup(c.drop)
	return c
}

// send sends a text message on a WebSocket.
func (c *client) send(t *testing.T, text string) {
	t.Helper()
	if err := c.subscriber.Send(t.Context(), text); err != nil {
		t.Fatalf("%s: send %.200s: %v", c.name, text, err)
	}
}

// drop cuts the connection without a farewell.
func (c *client) drop() {
	c.end()
	<-c.ended
}

func (c *client) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *client) read(ctx context.Context, s *trumpettest.Subscriber) {
	defer s.Cut()
	for {
		frame, err := s.Next(ctx)
		if err != nil {
			c.change(func() {
				c.err, c.retry, c.broken = err, s.Retry, append(c.broken, s.Broken...)
				errors.As(err, &c.close)
			})
			return
		}
		m, err := frame.Decode()
		c.change(func() {
			if err != nil {
				c.broken = append(c.broken, err.Error())
			}
			c.retry, c.broken, s.Broken = s.Retry, append(c.broken, s.Broken...), nil
			c.messages = append(c.messages, message{m, frame.Text, frame.Name, frame.ID})
		})
	}
}

// wait waits until what it is told of the client is true. ok runs under the client's lock.
func (c *client) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		c.mu.Lock()
		done, changed, n, err := ok(), c.changed, len(c.messages), c.err
		c.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-c.ended:
			c.mu.Lock()
			done := ok()
			c.mu.Unlock()
			if !done {
				t.Fatalf("%s: ended (%v) after %d messages, before %s", c.name, err, n, what)
			}
			return
		case <-deadline.C:
			t.Fatalf("%s: waited in vain for %s, after %d messages", c.name, what, n)
		}
	}
}

// find waits for the first message that fits.
func (c *client) find(t *testing.T, what string, fits func(m message) bool) message {
	t.Helper()
	var found message
	seen := 0
	c.wait(t, what, func() bool {
		for ; seen < len(c.messages); seen++ {
			if fits(c.messages[seen]) {
				found = c.messages[seen]
				return true
			}
		}
		return false
	})
	return found
}

func (c *client) control(t *testing.T, kind string) message {
	t.Helper()
	return c.find(t, kind, func(m message) bool { return m.Type == kind })
}

func (c *client) ready(t *testing.T) message {
	t.Helper()
	return c.control(t, "ready")
}

// waitData waits for a broadcast of this JSON value.
func (c *client) waitData(t *testing.T, data string) message {
	t.Helper()
	return c.find(t, "broadcast "+data, func(m message) bool { return string(m.Data) == data })
}

// waitEvents waits until n events have come.
func (c *client) waitEvents(t *testing.T, n int) {
	t.Helper()
	count, seen := 0, 0
	c.wait(t, fmt.Sprintf("%d events", n), func() bool {
		for ; seen < len(c.messages); seen++ {
			if c.messages[seen].isEvent() {
				count++
			}
		}
		return count >= n
	})
}

// events are the events so far.
func (c *client) events() []message {
	c.mu.Lock()
	defer c.mu.Unlock()
	var events []message
	for _, m := range c.messages {
		if m.isEvent() {
			events = append(events, m)
		}
	}
	return events
}

// lastID is what the client would resume with.
func (c *client) lastID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.messages) - 1; i >= 0; i-- {
		if m := c.messages[i]; m.ID != "" {
			return m.ID
		}
	}
	return ""
}

// check reports what no client may ever see.
func (c *client) check(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.broken {
		t.Errorf("%s got %s", c.name, b)
	}
	for _, m := range c.messages {
		if !strings.HasPrefix(c.name, string(sse)) {
			break
		}
		if m.name != m.Type {
			t.Errorf("%s: the SSE event is called %q: %.200s", c.name, m.name, m.text)
		}
		if m.isEvent() && m.last != m.ID {
			t.Errorf("%s: the SSE id is %q: %.200s", c.name, m.last, m.text)
		}
	}
}

// waitEnd waits for what finish sent.
func (c *client) waitEnd(t *testing.T) { t.Helper(); c.waitData(t, endOfTest) }

// first waits for the first message of all; there is none if the connection ended without one.
func (c *client) first(t *testing.T) (first message) {
	t.Helper()
	c.wait(t, "a first message, or the end", func() bool {
		if len(c.messages) > 0 {
			first = c.messages[0]
		}
		return len(c.messages) > 0 || c.err != nil
	})
	return first
}
