package server_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server"
	"github.com/trumpet-realtime/trumpet/server/hub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is how long any wait of a test may take.
const limit = 20 * time.Second

// backend is a publisher and a cluster of one that need no Postgres.
type backend struct {
	hub     *hub.Hub
	publish func(topic string, data json.RawMessage) (trumpet.EventID, error)
	status  func() server.BusStatus
	ask     func() ([]json.RawMessage, int, error)
}

func (b *backend) Publish(_ context.Context, topic string, data json.RawMessage) (trumpet.EventID, error) {
	return b.publish(topic, data)
}
func (b *backend) Status() server.BusStatus { return b.status() }
func (b *backend) Ask(context.Context) ([]json.RawMessage, int, error) {
	return b.ask()
}

// worker is a server that runs in a test.
type worker struct {
	*backend
	server *server.Server
	addr   string
	stop   context.CancelFunc // ends Serve
	served chan error
}

// start runs a server with a fresh hub until the test ends.
func start(t *testing.T, hubConfig hub.Config, configure func(*server.Config, *backend)) *worker {
	t.Helper()
	h, err := hub.New(hubConfig)
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{
		hub: h,
		publish: func(string, json.RawMessage) (trumpet.EventID, error) {
			return trumpet.EventID{Position: 7, Tag: 7}, nil
		},
		status: func() server.BusStatus { return server.BusStatus{Connected: true, LastHeard: time.Now()} },
		ask:    func() ([]json.RawMessage, int, error) { return nil, 0, nil },
	}
	config := server.Config{
		Worker: "w1", Version: "test", Hub: h, Publisher: b, Cluster: b, Drain: time.Nanosecond,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	if configure != nil {
		configure(&config, b)
	}
	s, err := server.New(config)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	w := &worker{backend: b, server: s, addr: listener.Addr().String(), stop: stop, served: make(chan error, 1)}
	go func() { w.served <- s.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-w.served; err != nil {
			t.Errorf("serve: %v", err)
		}
		h.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return w
}

func (w *worker) url(path string) string { return "http://" + w.addr + path }

// begin makes the worker's hub live at position 0.
func (w *worker) begin() {
	w.hub.Reset(trumpet.EventID{})
	w.hub.Live()
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// dial opens a WebSocket.
func (w *worker) dial(t *testing.T, path string) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.Dial(within(t), "ws://"+w.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(-1)
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

// message is any event or control message.
type message struct {
	ID      string          `json:"id"`
	Topic   string          `json:"topic"`
	Op      string          `json:"op"`
	Type    string          `json:"type"`
	Reason  string          `json:"reason"`
	Code    string          `json:"code"`
	Message string          `json:"message"`
	Resumed bool            `json:"resumed"`
	Worker  string          `json:"worker"`
	Topics  []string        `json:"topics"`
	More    bool            `json:"more"`
	Data    json.RawMessage `json:"data"`
}

// next reads one message.
func next(t *testing.T, conn *websocket.Conn) message {
	t.Helper()
	_, b, err := conn.Read(within(t))
	if err != nil {
		t.Fatal(err)
	}
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	return m
}

// expect reads one message of a type.
func expect(t *testing.T, conn *websocket.Conn, kind string) message {
	t.Helper()
	m := next(t, conn)
	if m.Type != kind {
		t.Fatalf("got %+v, want a message of type %q", m, kind)
	}
	return m
}

// broadcast is an event at a position.
func broadcast(position int64, topic string) trumpet.Event {
	return trumpet.Event{
		ID: trumpet.EventID{Position: position, Tag: uint32(position)}, Topic: topic, Op: trumpet.OpBroadcast,
		At: time.Unix(position, 0), Data: json.RawMessage(`{"n":1}`),
	}
}

// give appends events, each a transaction.
func (w *worker) give(events ...trumpet.Event) { w.hub.Append(events, events[len(events)-1].ID) }
