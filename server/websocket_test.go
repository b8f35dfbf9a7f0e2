package server_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server"
	"github.com/trumpet-realtime/trumpet/server/hub"
)

// nextEvent reads one event; the hub may tell that it is live before.
func nextEvent(t *testing.T, conn *websocket.Conn) message {
	t.Helper()
	for {
		if m := next(t, conn); m.Type == "" {
			return m
		}
	}
}

// expectClose reads until the connection is closed and compares the code.
func expectClose(t *testing.T, conn *websocket.Conn, code int) {
	t.Helper()
	for ctx := within(t); ; {
		_, _, err := conn.Read(ctx)
		if err == nil {
			continue
		}
		if got := websocket.CloseStatus(err); int(got) != code {
			t.Fatalf("closed with %d (%v), want %d", got, err, code)
		}
		return
	}
}

func TestWebSocketLive(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{Worker: "w1"}, nil)
	w.begin()
	conn := w.dial(t, "/ws/dispatch")
	if m := expect(t, conn, "ready"); m.Resumed || m.Worker != "w1" || m.ID != "0.0-00000000" {
		t.Fatalf("ready is %+v", m)
	}
	w.give(broadcast(1, "dispatch"), broadcast(2, "elsewhere"), broadcast(3, "jobs"))
	for _, want := range []int64{1, 3} {
		if m, id := nextEvent(t, conn), (trumpet.EventID{Position: want, Tag: uint32(want)}); m.ID != id.String() {
			t.Fatalf("got %+v, want %v", m, id)
		}
	}
}

func TestWebSocketResume(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	w.give(broadcast(1, "jobs"))
	w.give(broadcast(2, "jobs"), broadcast(3, "jobs"))
	conn := w.dial(t, "/ws?topics=jobs&since=2.0-00000002")
	if m := nextEvent(t, conn); m.ID != "3.0-00000003" {
		t.Fatalf("got %+v", m)
	}
	if m := expect(t, conn, "ready"); !m.Resumed || m.ID != "3.0-00000003" {
		t.Fatalf("got %+v", m)
	}
	bad := w.dial(t, "/ws?topics=jobs&since=nonsense")
	if m := expect(t, bad, "reset"); m.Reason != "invalid" {
		t.Fatalf("got %+v", m)
	}
	if m := expect(t, bad, "ready"); m.Resumed {
		t.Fatalf("got %+v", m)
	}
}

func TestWebSocketSubscribe(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	conn := w.dial(t, "/ws")
	expect(t, conn, "ready")
	if err := conn.Write(within(t), websocket.MessageText, []byte(`{"type":"subscribe","topics":["jobs"]}`)); err != nil {
		t.Fatal(err)
	}
	m := next(t, conn)
	for m.Type == "stale" || m.Type == "live" {
		m = next(t, conn)
	}
	if m.Type != "subscribed" || len(m.Topics) != 1 {
		t.Fatalf("got %+v", m)
	}
	w.give(broadcast(1, "jobs"))
	if m := nextEvent(t, conn); m.Topic != "jobs" {
		t.Fatalf("got %+v", m)
	}
	// A client that pings is answered, and nothing else is disturbed.
	ctx := conn.CloseRead(within(t))
	if err := conn.Ping(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestWebSocketBadRequests(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	for name, test := range map[string]struct {
		kind websocket.MessageType
		text string
		code int
	}{
		"not JSON":     {websocket.MessageText, "hello", 4500},
		"other type":   {websocket.MessageText, `{"type":"publish","topics":["a"]}`, 4500},
		"binary":       {websocket.MessageBinary, `{"type":"subscribe","topics":["a"]}`, 4500},
		"too large":    {websocket.MessageText, `"` + strings.Repeat("x", 17<<10) + `"`, 1009},
		"much too big": {websocket.MessageText, `"` + strings.Repeat("x", 60<<10) + `"`, 1009},
	} {
		t.Run(name, func(t *testing.T) {
			conn := w.dial(t, "/ws")
			expect(t, conn, "ready")
			if err := conn.Write(within(t), test.kind, []byte(test.text)); err != nil {
				t.Fatal(err)
			}
			expectClose(t, conn, test.code)
		})
	}
	if n := w.hub.Stats().Endings["bad_request"]; n != 3 {
		t.Errorf("%d bad requests were counted", n)
	}
}

// Frames that no library would send are answered with the code that RFC 6455 names, and with one close
// frame only.
func TestMalformedFrames(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	const mask = "\x00\x00\x00\x00"
	for name, test := range map[string]struct {
		frames string
		code   int
	}{
		"not masked":               {"\x81\x02{}", 1002},
		"not masked ping":          {"\x89\x00", 1002},
		"not masked continuation":  {"\x01\x81" + mask + "x" + "\x80\x01x", 1002},
		"RSV1":                     {"\xc1\x80" + mask, 1002},
		"RSV2":                     {"\xa1\x80" + mask, 1002},
		"RSV3":                     {"\x91\x80" + mask, 1002},
		"RSV1 of a ping":           {"\xc9\x80" + mask, 1002},
		"reserved opcode":          {"\x83\x80" + mask, 1002},
		"reserved control opcode":  {"\x8b\x80" + mask, 1002},
		"long ping":                {"\x89\xfe\x00\x7e" + mask + strings.Repeat("x", 126), 1002},
		"long pong":                {"\x8a\xfe\x00\x7e" + mask + strings.Repeat("x", 126), 1002},
		"long close":               {"\x88\xfe\x00\x7e" + mask + "\x03\xe8" + strings.Repeat("x", 124), 1002},
		"fragmented ping":          {"\x09\x80" + mask, 1002},
		"continuation of none":     {"\x80\x80" + mask, 1002},
		"text within a fragment":   {"\x01\x81" + mask + "x" + "\x81\x81" + mask + "x", 1002},
		"binary within a fragment": {"\x01\x81" + mask + "x" + "\x82\x81" + mask + "x", 1002},
		"negative length":          {"\x81\xff\x80\x00\x00\x00\x00\x00\x00\x01" + mask, 1002},
		"oversize":                 {"\x81\xfe\x40\x01" + mask + strings.Repeat("x", 16<<10+1), 1009},
		"oversize, so it says":     {"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff" + mask + strings.Repeat("x", 16<<10+1), 1009},
		"oversize in fragments":    {"\x01\xfe\x40\x00" + mask + strings.Repeat("x", 16<<10) + "\x80\x81" + mask + "x", 1009},
		"not UTF-8":                {"\x81\xa5" + mask + `{"type":"subscribe","topics":["a` + "\xff" + `b"]}`, 1007},
		"half a character":         {"\x81\x83" + mask + "\"\xe2\x82", 1007},
		"half a character, split":  {"\x01\x82" + mask + "\"\xe2" + "\x80\x81" + mask + "\"", 1007},
		"a surrogate":              {"\x81\x85" + mask + "\"\xed\xa0\x80\"", 1007},
		"not UTF-8, but binary":    {"\x82\x81" + mask + "\xff", 4500},
		"close of one byte":        {"\x88\x81" + mask + "\x03", 1002},
		"close with 0":             {"\x88\x82" + mask + "\x00\x00", 1002},
		"close with 999":           {"\x88\x82" + mask + "\x03\xe7", 1002},
		"close with 1005":          {"\x88\x82" + mask + "\x03\xed", 1002},
		"close with 1006":          {"\x88\x82" + mask + "\x03\xee", 1002},
		"close with 1015":          {"\x88\x82" + mask + "\x03\xf7", 1002},
		"close with 2999":          {"\x88\x82" + mask + "\x0b\xb7", 1002},
		"close with 65535":         {"\x88\x82" + mask + "\xff\xff", 1002},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, read := w.upgrade(t)
			if _, err := io.WriteString(conn, test.frames); err != nil {
				t.Fatal(err)
			}
			if code := closeCode(t, read); code != test.code {
				t.Errorf("closed with %d, want %d", code, test.code)
			}
			_ = conn.(*net.TCPConn).CloseWrite()
			if rest, _ := io.ReadAll(read); strings.Contains(string(rest), "\x88") {
				t.Errorf("after the close frame came %q", rest)
			}
		})
	}
}

// What is unusual but right is taken: a message in fragments, the last one empty, with a ping and a pong
// that nobody asked for in between, and each frame with another mask.
func TestFragments(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	conn, read := w.upgrade(t)
	message := `{"type":"subscribe","topics":["é"]}`
	split := strings.Index(message, "é") + 1 // within the character
	frames := masked(0x01, message[:split]) + masked(0x89, "?") + masked(0x00, message[split:]) + masked(0x8a, "unasked") + masked(0x80, "")
	if _, err := io.WriteString(conn, frames); err != nil {
		t.Fatal(err)
	}
	for pong, subscribed := false, false; !pong || !subscribed; {
		opcode, body := readFrame(t, read)
		switch {
		case opcode == 0xa:
			pong = string(body) == "?"
		case opcode == 0x8:
			t.Fatalf("closed with %q", body)
		default:
			subscribed = subscribed || strings.Contains(string(body), `"subscribed"`)
		}
	}
}

// However the bytes come apart, nothing of a message is lost while its reader has no goroutine.
func TestFramesInPieces(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	conn, read := w.upgrade(t)
	_ = conn.(*net.TCPConn).SetNoDelay(true)
	message := `{"type":"subscribe","topics":["jobs"],"ref":%d}`
	const rounds = 60
	for round := range rounds {
		text := fmt.Sprintf(message, round)
		frames := masked(0x8a, "unasked") + masked(0x01, text[:20]) + masked(0x89, "within") + masked(0x8a, "") +
			masked(0x00, text[20:30]) + masked(0x80, text[30:]) + masked(0x89, "after")
		piece := 1 + round%9
		for len(frames) > 0 {
			n := min(piece, len(frames))
			if _, err := io.WriteString(conn, frames[:n]); err != nil {
				t.Fatal(err)
			}
			frames = frames[n:]
		}
		want := fmt.Sprintf(`"ref":%d`, round)
		for within, subscribed, after := false, false, false; !within || !subscribed || !after; {
			opcode, body := readFrame(t, read)
			switch {
			case opcode == 0x8:
				t.Fatalf("closed with %q", body)
			case opcode == 0xa: // of two that wait the newer one counts
				within, after = true, after || string(body) == "after"
			case strings.Contains(string(body), `"subscribed"`) && strings.Contains(string(body), want):
				subscribed = true
			}
		}
	}
}

// Clients that say nothing cost no goroutine, and are noticed when they go.
func TestSilentClientsHaveNoGoroutine(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	const clients = 100
	var streams []*stream
	var sockets []*websocket.Conn
	for range clients {
		streams = append(streams, w.open(t, "/api/stream?topics=jobs", nil))
		sockets = append(sockets, w.dial(t, "/ws?topics=jobs"))
		streams[len(streams)-1].expect(t, "ready")
		expect(t, sockets[len(sockets)-1], "ready")
	}
	eventually(t, "readers have no goroutines", func() bool {
		// Tests beside this one have readers too, but few.
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		return strings.Count(string(stacks), "server.(*reading).run") < clients
	})
	w.give(broadcast(1, "jobs"))
	for i := range clients {
		for streams[i].mustNext(t).Topic == "" { // it may be told that Postgres is heard
		}
		nextEvent(t, sockets[i])
		_ = sockets[i].CloseNow()
		_ = streams[i].response.Body.Close()
	}
	eventually(t, "nobody is connected", func() bool {
		stats := w.hub.Stats()
		return stats.WebSockets == 0 && stats.Streams == 0
	})
}

// eventually waits for a condition that nobody tells of.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-time.After(time.Millisecond)
	}
}

// masked is a client's short frame.
func masked(head byte, body string) string {
	mask := [4]byte{head, 0x5a, byte(len(body)), 0xff}
	b := []byte{head, 0x80 | byte(len(body)), mask[0], mask[1], mask[2], mask[3]}
	for i := range len(body) {
		b = append(b, body[i]^mask[i%4])
	}
	return string(b)
}

// upgrade opens a WebSocket by hand.
func (w *worker) upgrade(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(limit))
	_, _ = fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", w.addr)
	read := bufio.NewReader(conn)
	response, err := http.ReadResponse(read, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %v, %v", response, err)
	}
	return conn, read
}

// closeCode reads frames until one closes.
func closeCode(t *testing.T, read *bufio.Reader) int {
	t.Helper()
	for {
		opcode, body := readFrame(t, read)
		switch {
		case opcode == 0x8 && len(body) < 2:
			return int(websocket.StatusNoStatusRcvd)
		case opcode == 0x8:
			return int(body[0])<<8 | int(body[1])
		}
	}
}

// readFrame reads a frame of less than 64 KiB.
func readFrame(t *testing.T, read *bufio.Reader) (opcode byte, body []byte) {
	t.Helper()
	head := make([]byte, 2)
	if _, err := io.ReadFull(read, head); err != nil {
		t.Fatal(err)
	}
	length := int(head[1])
	if length == 126 {
		long := make([]byte, 2)
		if _, err := io.ReadFull(read, long); err != nil {
			t.Fatal(err)
		}
		length = int(long[0])<<8 | int(long[1])
	}
	body = make([]byte, length)
	if _, err := io.ReadFull(read, body); err != nil {
		t.Fatal(err)
	}
	return head[0] & 0xf, body
}

func TestWebSocketIsNotAPage(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	response, p := w.get(t, "/ws", nil)
	if response.StatusCode != http.StatusUpgradeRequired || p.Status != http.StatusUpgradeRequired || p.Detail == "" {
		t.Errorf("got %d, %+v", response.StatusCode, p)
	}
}

func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, func(c *server.Config, _ *backend) { c.MaxConnections = 2 })
	w.begin()
	first := w.dial(t, "/ws")
	expect(t, first, "ready")
	stream := w.open(t, "/api/stream", nil)
	stream.expect(t, "ready")
	expectClose(t, w.dial(t, "/ws"), 4009)
	refused := w.open(t, "/api/stream", nil)
	if m := refused.expect(t, "error"); m.Code != "limit" {
		t.Errorf("got %+v", m)
	}
	refused.expectEOF(t)
	if n := w.hub.Stats().Endings["limit"]; n != 2 {
		t.Errorf("%d refusals were counted", n)
	}
	// A place that becomes free is given again.
	_ = first.Close(websocket.StatusNormalClosure, "")
	for {
		conn := w.dial(t, "/ws")
		_, b, err := conn.Read(within(t))
		if err == nil && strings.Contains(string(b), "ready") {
			return
		}
		if websocket.CloseStatus(err) != 4009 {
			t.Fatal(err)
		}
	}
}

func TestDrainSendsEverybodyAway(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, func(c *server.Config, _ *backend) { c.Drain = 200 * time.Millisecond })
	w.begin()
	conn := w.dial(t, "/ws")
	expect(t, conn, "ready")
	stream := w.open(t, "/api/stream", nil)
	stream.expect(t, "ready")
	w.stop()
	expectClose(t, conn, 4001)
	for {
		m, err := stream.next()
		if err != nil {
			t.Fatal(err)
		}
		if m.Type == "error" {
			if m.Code != "draining" {
				t.Errorf("got %+v", m)
			}
			break
		}
	}
	stream.expectEOF(t)
	err := <-w.served
	w.served <- err
	if err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", w.addr); err == nil {
		t.Error("still listening")
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 100)
	w := start(t, hub.Config{}, func(_ *server.Config, b *backend) {
		b.ask = func() ([]json.RawMessage, int, error) {
			asked <- struct{}{}
			return []json.RawMessage{
				json.RawMessage(`{"name":"w2","boards":3,"streams":4,"connected":true}`),
				json.RawMessage(`{"name":"w1","boards":1,"streams":0,"connected":true,"new":1}`),
				json.RawMessage(`nonsense`),
			}, 3, nil
		}
	})
	w.begin()
	expect(t, w.dial(t, "/ws"), "ready")
	var got struct {
		Worker struct {
			Name    string
			Boards  int
			Version string
			Head    string
		}
		Workers                          []struct{ Name string }
		Alive, Answered, Boards, Streams int
	}
	for range 5 {
		body := w.body(t, "/api/dispatch/status")
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
	}
	if got.Worker.Name != "w1" || got.Worker.Boards != 1 || got.Worker.Version != "test" || got.Worker.Head != "0.0-00000000" {
		t.Errorf("worker is %+v", got.Worker)
	}
	if len(got.Workers) != 2 || got.Workers[0].Name != "w1" || got.Alive != 3 || got.Answered != 2 || got.Boards != 4 || got.Streams != 4 {
		t.Errorf("got %+v", got)
	}
	if n := len(asked); n > 3 {
		t.Errorf("asked %d times for five requests", n)
	}
	if answer := w.server.Answer(); len(answer) > 2000 || !strings.Contains(string(answer), `"boards":1`) {
		t.Errorf("answer is %s", answer)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	connected := make(chan bool, 1)
	w := start(t, hub.Config{}, func(_ *server.Config, b *backend) {
		b.status = func() server.BusStatus {
			c := <-connected
			connected <- c
			return server.BusStatus{Connected: c}
		}
	})
	connected <- false
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 503, "/metrics": 200, "/": 200, "/client.js": 200} {
		if response, _ := w.get(t, path, nil); response.StatusCode != want {
			t.Errorf("%s: got %d, want %d", path, response.StatusCode, want)
		}
	}
	<-connected
	connected <- true
	if response, _ := w.get(t, "/readyz", nil); response.StatusCode != 200 {
		t.Errorf("got %d", response.StatusCode)
	}
	if body := string(w.body(t, "/metrics")); !strings.Contains(body, `trumpet_connections{transport="sse"} 0`) || !strings.Contains(body, `trumpet_endings_total{ending="slow"} 0`) {
		t.Errorf("metrics lack something:\n%s", body)
	}
}
