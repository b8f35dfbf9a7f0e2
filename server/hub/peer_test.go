package hub

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/socket"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is how long any wait of a test may take.
const limit = 20 * time.Second

// fataler is what *testing.T and *rapid.T have in common.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// peer is a client in a test: the far end of a real socket.
type peer struct {
	conn   *Conn
	near   *socket.Conn
	far    *net.TCPConn
	read   *bufio.Reader
	format wire.Format
	left   chan struct{} // closed when the hub has let go of it
}

// pair returns the two ends of a TCP connection. small makes its buffers so.
func pair(t fataler, small bool) (near, far *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	defer listener.Close()
	dialer := net.Dialer{}
	a, err := dialer.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	b, err := listener.Accept()
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	near, far = b.(*net.TCPConn), a.(*net.TCPConn)
	if small {
		// Not smaller: below the loopback's segment size TCP crawls.
		_ = near.SetWriteBuffer(128 << 10)
		_ = far.SetReadBuffer(128 << 10)
	}
	return near, far
}

// follow are interests in everything of some topics.
func follow(topics ...string) []Interest {
	var out []Interest
	for _, topic := range topics {
		out = append(out, Interest{Subscription: trumpet.Subscription{Topic: topic}})
	}
	return out
}

// newPeer attaches a client to the hub, with a reader as the server has one.
func newPeer(t fataler, h *Hub, client Client, small bool) *peer {
	t.Helper()
	near, far := pair(t, small)
	p := &peer{far: far, read: bufio.NewReader(far), format: client.Format, left: make(chan struct{})}
	p.near = socket.New(near, socket.Config{HalfClose: client.Format == wire.SSE, Patience: 2 * limit, Linger: limit})
	client.Socket = p.near
	conn, err := h.Attach(client)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	p.conn = conn
	p.near.OnBlocked(conn.Blocked)
	go func() {
		defer close(p.left)
		_, _ = io.Copy(io.Discard, p.near)
		_ = p.near.Close()
		conn.Detach()
	}()
	return p
}

// hangUp closes the far end and waits until the hub has noticed.
func (p *peer) hangUp() {
	_ = p.far.Close()
	<-p.left
}

// message is any event or control message, and how it came.
type message struct {
	ID      string            `json:"id"`
	Topic   string            `json:"topic"`
	Type    string            `json:"type"`
	Reason  string            `json:"reason"`
	Code    string            `json:"code"`
	Resumed bool              `json:"resumed"`
	Topics  []string          `json:"topics"`
	More    bool              `json:"more"`
	Data    json.RawMessage   `json:"data"`
	Op      string            `json:"op"`
	Key     json.RawMessage   `json:"key"`
	New     json.RawMessage   `json:"new"`
	Old     json.RawMessage   `json:"old"`
	Ref     json.RawMessage   `json:"ref"`
	Message string            `json:"message"`
	Page    int               `json:"page"`
	Rows    []json.RawMessage `json:"rows"`

	opcode byte
	close  int
	sse    string // the SSE id
}

// next reads one message.
func (p *peer) next() (message, error) {
	_ = p.far.SetReadDeadline(time.Now().Add(limit))
	if p.format == wire.SSE {
		return p.nextSSE()
	}
	return p.nextFrame()
}

func (p *peer) nextFrame() (message, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(p.read, head); err != nil {
		return message{}, err
	}
	if head[0]&0x70 != 0 || head[0]&0x80 == 0 || head[1]&0x80 != 0 {
		return message{}, fmt.Errorf("frame header %x", head)
	}
	size := uint64(head[1])
	switch size {
	case 126:
		b := make([]byte, 2)
		if _, err := io.ReadFull(p.read, b); err != nil {
			return message{}, err
		}
		size = uint64(binary.BigEndian.Uint16(b))
	case 127:
		b := make([]byte, 8)
		if _, err := io.ReadFull(p.read, b); err != nil {
			return message{}, err
		}
		size = binary.BigEndian.Uint64(b)
	}
	if size > 64<<20 {
		return message{}, fmt.Errorf("frame of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(p.read, body); err != nil {
		return message{}, err
	}
	m := message{opcode: head[0] & 0xf}
	switch m.opcode {
	case 1:
		if err := json.Unmarshal(body, &m); err != nil {
			return m, fmt.Errorf("%q: %w", body, err)
		}
	case 8:
		m.close = int(binary.BigEndian.Uint16(body))
	case 9, 10:
	default:
		return m, fmt.Errorf("opcode %d", m.opcode)
	}
	return m, nil
}

func (p *peer) nextSSE() (message, error) {
	var m message
	name := ""
	for {
		line, err := p.read.ReadString('\n')
		if err != nil {
			return m, err
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "id":
			m.sse = value
		case "event":
			name = value
		case "data":
			if err := json.Unmarshal([]byte(value), &m); err != nil {
				return m, err
			}
		case "":
			if m.Type != name {
				return m, fmt.Errorf("event %q of type %q", name, m.Type)
			}
			return m, nil
		default:
			return m, fmt.Errorf("line %q", line)
		}
	}
}

// mustNext reads one message that is no ping.
func (p *peer) mustNext(t fataler) message {
	t.Helper()
	for {
		m, err := p.next()
		if err != nil {
			t.Fatalf("read message: %v", err)
		}
		if m.opcode < 9 && m.Type != "ping" {
			return m
		}
	}
}

// expect reads one message of a type.
func (p *peer) expect(t fataler, kind string) message {
	t.Helper()
	m := p.mustNext(t)
	if m.Type != kind {
		t.Fatalf("got %+v, want a message of type %q", m, kind)
	}
	return m
}

// expectEnd reads how the connection ends.
func (p *peer) expectEnd(t fataler, e trumpet.Ending) {
	t.Helper()
	m := p.mustNext(t)
	if p.format == wire.SSE {
		if m.Type != "error" || m.Code != e.Name {
			t.Fatalf("got %+v, want error %q", m, e.Name)
		}
		if _, err := p.next(); !errors.Is(err, io.EOF) {
			t.Fatalf("after the error: %v, want EOF", err)
		}
		return
	}
	if m.close != e.Code {
		t.Fatalf("got %+v, want close code %d", m, e.Code)
	}
}

// start returns a hub that is live after position 0 and closed at the test's end.
func start(t *testing.T, config Config) *Hub {
	t.Helper()
	config.farewell = limit
	h, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	h.Reset(trumpet.EventID{})
	h.Live()
	eventually(t, "live", func() bool {
		for _, s := range h.shards {
			s.mu.Lock()
			busy := len(s.inbox) > 0
			s.mu.Unlock()
			if busy {
				return false
			}
		}
		return true
	})
	return h
}

// eventually waits for a condition that only counters tell.
func eventually(t fataler, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		<-time.After(time.Millisecond)
	}
}

// event makes one; positions are their own tags.
func event(position int64, ordinal int32, topic string, more bool, size int) trumpet.Event {
	return trumpet.Event{
		ID: trumpet.EventID{Position: position, Ordinal: ordinal, Tag: uint32(position)}, Topic: topic, Op: trumpet.OpBroadcast,
		At: time.Unix(position, 0), More: more,
		Data: append(append([]byte(`"`), bytes.Repeat([]byte("x"), size)...), '"'),
	}
}

// expected is what a client with these topics sees of events.
func expected(events []trumpet.Event, topics ...string) []message {
	var out []message
	open := -1
	for i := range events {
		e := &events[i]
		for _, topic := range topics {
			if topic == e.Topic {
				if open >= 0 {
					out[open].More = true
				}
				out = append(out, message{ID: e.ID.String(), Topic: e.Topic})
				open = len(out) - 1
			}
		}
		if !e.More {
			open = -1
		}
	}
	return out
}

// expectEvents reads events and compares.
func (p *peer) expectEvents(t fataler, want []message) {
	t.Helper()
	for i := range want {
		m := p.mustNext(t)
		if m.ID != want[i].ID || m.Topic != want[i].Topic || m.More != want[i].More {
			t.Fatalf("event %d of %d: got %+v, want %+v", i, len(want), m, want[i])
		}
		if p.format == wire.SSE && m.sse != m.ID {
			t.Fatalf("SSE id is %q, the event's %q", m.sse, m.ID)
		}
	}
}
