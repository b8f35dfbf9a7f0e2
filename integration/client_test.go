package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// message is what a client gets: an event, or, with a type, a control message.
type message struct {
	ID        string          `json:"id"`
	Topic     string          `json:"topic"`
	Op        string          `json:"op"`
	At        time.Time       `json:"at"`
	Key       json.RawMessage `json:"key"`
	New       json.RawMessage `json:"new"`
	Old       json.RawMessage `json:"old"`
	Data      json.RawMessage `json:"data"`
	Statement string          `json:"statement"`
	Rows      int64           `json:"rows"`
	More      bool            `json:"more"`

	Type    string   `json:"type"`
	Resumed bool     `json:"resumed"`
	Reason  string   `json:"reason"`
	Worker  string   `json:"worker"`
	Code    string   `json:"code"`
	Message string   `json:"message"`
	Retry   *bool    `json:"retry"`
	Topics  []string `json:"topics"`

	text string // as it came
	name string // SSE: the event's name
	last string // SSE: its id field
}

func (m message) isEvent() bool { return m.Type == "" }

type transport string

const (
	webSocket transport = "websocket"
	sse       transport = "sse"
)

var transports = []transport{webSocket, sse}

// dialling says how a client comes.
type dialling struct {
	transport   transport
	topics      string
	since       string
	lastEventID string
	path        string // default /ws or /api/stream
}

// client is one connection and all that came over it. One goroutine reads.
type client struct {
	name  string
	end   context.CancelFunc
	ended chan struct{} // closed when nothing more can come

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
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	c.end = cancel
	query := url.Values{}
	if d.topics != "" {
		query.Set("topics", d.topics)
	}
	if d.since != "" {
		query.Set("since", d.since)
	}
	path := map[transport]string{webSocket: "/ws", sse: "/api/stream"}[d.transport]
	if d.path != "" {
		path = d.path
	}
	target := w.url(path + "?" + query.Encode())
	opening, opened := context.WithTimeout(ctx, patience)
	defer opened()
	var read func(context.Context)
	switch d.transport {
	case webSocket:
		conn, _, err := websocket.Dial(opening, target, nil)
		if err != nil {
			cancel()
			t.Fatalf("%s: %v", c.name, err)
		}
		conn.SetReadLimit(-1)
		read = func(ctx context.Context) { c.readWebSocket(ctx, conn) }
	case sse:
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", "text/event-stream")
		if d.lastEventID != "" {
			request.Header.Set("Last-Event-ID", d.lastEventID)
		}
		response, err := streams.Do(request)
		if err != nil {
			cancel()
			t.Fatalf("%s: %v", c.name, err)
		}
		if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%s: status %d, %s", c.name, response.StatusCode, response.Header.Get("Content-Type"))
		}
		for header, want := range map[string]string{"X-Accel-Buffering": "no", "Cache-Control": "no-store, no-transform"} {
			if got := response.Header.Get(header); got != want {
				t.Errorf("%s: header %s is %q, want %q", c.name, header, got, want)
			}
		}
		read = func(context.Context) { c.readSSE(response.Body) }
	}
	go func() {
		defer close(c.ended)
		read(ctx)
	}()
	t.Cleanup(c.drop)
	return c
}

// streams has no connection that outlives its request.
var streams = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}

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

func (c *client) take(text, name, last string) {
	m := message{text: text, name: name, last: last}
	err := json.Unmarshal([]byte(text), &m)
	c.change(func() {
		if err != nil {
			c.broken = append(c.broken, fmt.Sprintf("not JSON: %v: %.200s", err, text))
		}
		c.messages = append(c.messages, m)
	})
}

func (c *client) readWebSocket(ctx context.Context, conn *websocket.Conn) {
	defer conn.CloseNow()
	for {
		kind, data, err := conn.Read(ctx)
		if err != nil {
			c.change(func() {
				c.err = err
				errors.As(err, &c.close)
			})
			return
		}
		if kind != websocket.MessageText {
			c.change(func() { c.broken = append(c.broken, "a binary message") })
		}
		c.take(string(data), "", "")
	}
}

func (c *client) readSSE(body io.ReadCloser) {
	defer body.Close()
	reader := bufio.NewReaderSize(body, 32<<10)
	var data, name, last string
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			c.change(func() { c.err = err })
			return
		}
		line = strings.TrimSuffix(line, "\n")
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if data != "" {
				c.take(data, name, last)
			}
			data, name, last = "", "", ""
		case field == "data" && data == "":
			data = value
		case field == "event":
			name = value
		case field == "id":
			last = value
		case field == "retry":
			c.change(func() { c.retry = value })
		case field == "": // a comment
		default:
			c.change(func() { c.broken = append(c.broken, "an unexpected line: "+line) })
		}
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

// first is the first message of all.
func (c *client) first() message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.messages[0]
}
