package trumpettest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// Message is what a client gets: an event, or, with a type, a control message.
type Message struct {
	ID        string          `json:"id"`
	Topic     string          `json:"topic"`
	Op        string          `json:"op"`
	At        time.Time       `json:"at"`
	Key       json.RawMessage `json:"key"`
	New       json.RawMessage `json:"new"`
	Old       json.RawMessage `json:"old"`
	Data      json.RawMessage `json:"data"`
	Statement string          `json:"statement"`
	Rows      int64           `json:"-"` // bulk: how many
	More      bool            `json:"more"`
	AsOf      int64           `json:"as_of"`
	Stale     bool            `json:"stale"`

	Type    string   `json:"type"`
	Resumed bool     `json:"resumed"`
	Reason  string   `json:"reason"`
	Worker  string   `json:"worker"`
	Code    string   `json:"code"`
	Message string   `json:"message"`
	Retry   *bool    `json:"retry"`
	Topics  []string `json:"topics"`

	Ref      json.RawMessage   `json:"ref"`
	Page     int               `json:"page"`
	Snapshot []json.RawMessage `json:"-"` // the rows of the page
}

// IsEvent tells events from control messages.
func (m *Message) IsEvent() bool { return m.Type == "" }

// Frame is a message as it came.
type Frame struct {
	Text string // the JSON
	Name string // SSE: the event's name
	ID   string // SSE: its id field
}

// Decode reads the frame's message.
func (f Frame) Decode() (Message, error) {
	var m struct {
		Message
		Rows json.RawMessage `json:"rows"` // a number or, in a snapshot, the rows
	}
	err := json.Unmarshal([]byte(f.Text), &m)
	switch {
	case err != nil || m.Rows == nil:
	case m.Type == "snapshot":
		err = json.Unmarshal(m.Rows, &m.Snapshot)
	default:
		err = json.Unmarshal(m.Rows, &m.Message.Rows)
	}
	if err != nil {
		return m.Message, fmt.Errorf("not JSON: %w: %.200s", err, f.Text)
	}
	return m.Message, nil
}

// Transport is how a client comes.
type Transport string

// The transports.
const (
	WebSocket Transport = "websocket"
	SSE       Transport = "sse"
)

// Dialling says how a client comes.
type Dialling struct {
	Transport   Transport
	Topics      string
	Since       string
	Query       string // as it stands in the URL, before Topics and Since
	LastEventID string // SSE only
	Path        string // default /ws or /api/stream
	// ForwardedFor is what a proxy would say in X-Forwarded-For.
	ForwardedFor string
	// ReadBuffer is what the kernel keeps of what was not read; 0 is its own default.
	ReadBuffer int
}

// Subscriber is one connection. Next is called from one goroutine, Cut from any.
type Subscriber struct {
	Header http.Header // of the answer
	Retry  string      // SSE: the last retry field
	Broken []string    // what was not as it should be and did not end the connection

	conn   net.Conn // below everything
	socket *websocket.Conn
	stream *bufio.Reader
	body   io.Closer
	end    context.CancelFunc
	life   context.Context
}

// oneOff has no connection that outlives its request.
var oneOff = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}

// Dial connects to a worker at host:port. ctx bounds the opening only.
func Dial(ctx context.Context, address string, d Dialling) (*Subscriber, error) {
	query := url.Values{}
	if d.Topics != "" {
		query.Set("topics", d.Topics)
	}
	if d.Since != "" {
		query.Set("since", d.Since)
	}
	path := map[Transport]string{WebSocket: "/ws", SSE: "/api/stream"}[d.Transport]
	if d.Path != "" {
		path = d.Path
	}
	target := "http://" + address + path + "?" + strings.Trim(d.Query+"&"+query.Encode(), "&")

	s := &Subscriber{}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			var dialer net.Dialer
			conn, err := dialer.DialContext(ctx, network, address)
			if tcp, ok := conn.(*net.TCPConn); ok && d.ReadBuffer > 0 {
				_ = tcp.SetReadBuffer(d.ReadBuffer) // smaller is only harsher
			}
			s.conn = conn
			return conn, err
		},
	}}
	var err error
	switch d.Transport {
	case WebSocket:
		err = s.openSocket(ctx, client, target, d)
	case SSE:
		err = s.openStream(ctx, client, target, d)
	default:
		err = fmt.Errorf("no transport %q", d.Transport)
	}
	if err != nil {
		s.end()
		return nil, fmt.Errorf("dial %s: %w", d.Transport, err)
	}
	return s, nil
}

// header is what a client sends beside what HTTP needs.
func (d Dialling) header() http.Header {
	h := http.Header{}
	if d.LastEventID != "" {
		h.Set("Last-Event-ID", d.LastEventID)
	}
	if d.ForwardedFor != "" {
		h.Set("X-Forwarded-For", d.ForwardedFor)
	}
	return h
}

func (s *Subscriber) openSocket(ctx context.Context, client *http.Client, target string, d Dialling) error {
	conn, response, err := websocket.Dial(ctx, target, &websocket.DialOptions{HTTPClient: client, HTTPHeader: d.header()})
	if err != nil {
		return err
	}
	conn.SetReadLimit(-1)
	s.socket, s.Header = conn, response.Header
	return nil
}

func (s *Subscriber) openStream(ctx context.Context, client *http.Client, target string, d Dialling) error {
	// The request must not end with ctx, which bounds the opening alone.
	stop := context.AfterFunc(ctx, s.end)
	request, err := http.NewRequestWithContext(s.life, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	request.Header = d.header()
	request.Header.Set("Accept", "text/event-stream")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	if !stop() {
		response.Body.Close()
		return ctx.Err()
	}
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "text/event-stream" {
		response.Body.Close()
		return fmt.Errorf("status %d, %s", response.StatusCode, response.Header.Get("Content-Type"))
	}
	s.body, s.stream, s.Header = response.Body, bufio.NewReaderSize(response.Body, 32<<10), response.Header
	return nil
}

// Next waits for the next message. Its error is what ended the connection; when ctx ends
// first, the connection ends with it.
func (s *Subscriber) Next(ctx context.Context) (Frame, error) {
	if s.socket != nil {
		kind, data, err := s.socket.Read(ctx)
		if err != nil {
			return Frame{}, err
		}
		if kind != websocket.MessageText {
			s.Broken = append(s.Broken, "a binary message")
		}
		return Frame{Text: string(data)}, nil
	}
	stop := context.AfterFunc(ctx, s.end)
	defer stop()
	var f Frame
	for {
		line, err := s.stream.ReadString('\n')
		if err != nil {
			return Frame{}, err
		}
		line = strings.TrimSuffix(line, "\n")
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if f.Text != "" {
				return f, nil
			}
			f = Frame{}
		case field == "data" && f.Text == "":
			f.Text = value
		case field == "event":
			f.Name = value
		case field == "id":
			f.ID = value
		case field == "retry":
			s.Retry = value
		case field == "": // a comment
		default:
			s.Broken = append(s.Broken, "an unexpected line: "+line)
		}
	}
}

// Send sends a text message on a WebSocket.
func (s *Subscriber) Send(ctx context.Context, text string) error {
	if s.socket == nil {
		return errors.New("send: not a WebSocket")
	}
	return s.socket.Write(ctx, websocket.MessageText, []byte(text))
}

// Stream reports whether it is a stream of server-sent events.
func (s *Subscriber) Stream() bool { return s.stream != nil }

// Cut ends the connection without a farewell.
func (s *Subscriber) Cut() {
	s.end()
	if s.conn != nil {
		_ = s.conn.Close() // it may have ended
	}
	if s.socket != nil {
		_ = s.socket.CloseNow()
	}
	if s.body != nil {
		_ = s.body.Close()
	}
}
