//go:build linux

package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// Clients vanish without a word: their host's packets go nowhere any more. A WebSocket client keeps its
// connection alive, takes everything, and never answers a ping. Their places are free in time, and so is
// what they held. Some follow topics where nothing happens, some are sent small events, some so much
// that their socket is full.
func TestVanishedClientsLeaveTheirPlaces(t *testing.T) {
	t.Parallel()
	const each = 5 // of each kind
	a, b, wire := newNetwork(t)
	server, _ := pgtest.StartMigrated(t, nil)
	url := server.SocketURL("app") // from all networks
	conn := pgtest.Connect(t, url)
	prepare(t, capture, url, conn)
	w := a.startWorker(t, url, "w1", a.address)
	// near reaches the worker on a path of its own, far over the wire.
	near := &worker{name: "w1", addr: a.relay(t, net.JoinHostPort(a.address, workerPort))}
	far := &worker{name: "w1 over the wire", addr: b.relay(t, net.JoinHostPort(a.address, workerPort))}

	witness := dial(t, near, dialling{transport: webSocket, topics: "dispatch,customers,large"})
	witness.ready(t)
	before := resourcesOf(t, near, w)
	var vanishing []*client
	for range each {
		for _, transport := range transports {
			for _, topics := range []string{"quiet", "dispatch", "dispatch,large"} {
				c := dial(t, far, dialling{transport: transport, topics: topics})
				c.ready(t)
				vanishing = append(vanishing, c)
			}
		}
	}
	var deaf []*deafClient
	for range each {
		deaf = append(deaf, dialDeaf(t, near.addr, "dispatch"))
	}
	// A deaf client has the answer to its handshake before the hub counts it.
	var full resources
	counted, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	poll(counted, t, "all clients to be counted", func() bool {
		full = resourcesOf(t, near, w)
		return full.clients == before.clients+len(vanishing)+len(deaf)
	})
	if full.files < full.clients {
		t.Fatalf("%v before, %v with the clients", before, full)
	}
	broadcast(t, conn, `"all are here"`)
	for _, c := range vanishing[1:3] {
		c.waitData(t, `"all are here"`)
	}

	wire.cut(t)
	began := time.Now()
	stop := scribble(t, url)
	large := strings.Repeat("x", 500<<10)
	for n := range 16 {
		pgtest.Exec(t, conn, "select trumpet.broadcast('large', jsonb_build_object('n', $1::int, 'x', $2::text))", n, large)
	}
	// The deaf ones began to be deaf when they came; all others vanished after them.
	for _, d := range deaf {
		d.waitClosed(t)
	}
	keep(t, "clients that never answer a ping were sent away", began, placeWithin)
	ctx := t.Context()
	deadline := time.Now().Add(placeWithin)
	var now resources
	poll(ctx, t, "the places to be free", func() bool {
		now = resourcesOf(t, near, w)
		return now.clients == before.clients || time.Now().After(deadline.Add(patience))
	})
	keep(t, "the places were free", began, placeWithin)
	status := statusOf(t, near)
	if free := status.Boards + status.Streams; free != before.clients {
		t.Errorf("the status counts %d clients, want %d", free, before.clients)
	}
	stop()
	truth := finish(t, conn, witness)
	t.Logf("%d events; before %v, after %v", len(truth), before, now)
	witness.check(t)
	witness.unbroken(t)
	poll(ctx, t, "what they held to be free", func() bool {
		now = resourcesOf(t, near, w)
		// Requests of this test come and go.
		return now.files <= before.files+8 && now.goroutines <= before.goroutines+16
	})
	endings := metricsOf(t, near)
	t.Logf("endings: unresponsive %v, slow %v", endings[`trumpet_endings_total{ending="unresponsive"}`], endings[`trumpet_endings_total{ending="slow"}`])
	if n := endings[`trumpet_endings_total{ending="unresponsive"}`]; n < each {
		t.Errorf("%v endings as unresponsive are counted, want at least %d", n, each)
	}
}

// resources are what a worker's clients hold.
type resources struct{ clients, files, goroutines int }

func resourcesOf(t *testing.T, w, process *worker) resources {
	t.Helper()
	m := metricsOf(t, w)
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", process.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return resources{
		clients:    int(m[`trumpet_connections{transport="websocket"}`] + m[`trumpet_connections{transport="sse"}`]),
		files:      len(files),
		goroutines: int(m["go_goroutines"]),
	}
}

// metricsOf reads a worker's metrics, by their names with labels.
func metricsOf(t *testing.T, w *worker) map[string]float64 {
	t.Helper()
	code, body, _ := ask(t, http.MethodGet, w.url("/metrics"), "", "")
	if code != http.StatusOK {
		t.Fatalf("metrics: %d", code)
	}
	values := make(map[string]float64)
	for line := range strings.Lines(string(body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if number, err := strconv.ParseFloat(value, 64); err == nil && !strings.HasPrefix(name, "#") {
			values[name] = number
		}
	}
	return values
}

// deafClient is a WebSocket client that reads everything and answers nothing.
type deafClient struct {
	conn  net.Conn
	ended chan struct{}
	close int // the code of the close frame; read it when ended is closed
}

func dialDeaf(t *testing.T, address, topics string) *deafClient {
	t.Helper()
	d := &deafClient{conn: dialRaw(t, address, webSocket, topics, "", 0), ended: make(chan struct{})}
	reader := bufio.NewReader(d.conn)
	if response, err := http.ReadResponse(reader, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("handshake: %v, %v", response, err)
	}
	go func() {
		defer close(d.ended)
		for {
			opcode, payload, err := readFrame(reader)
			if err != nil {
				return
			}
			if opcode == 8 && len(payload) >= 2 {
				d.close = int(payload[0])<<8 | int(payload[1])
			}
		}
	}()
	t.Cleanup(func() {
		_ = d.conn.Close()
		<-d.ended
	})
	return d
}

func (d *deafClient) waitClosed(t *testing.T) {
	t.Helper()
	select {
	case <-d.ended:
	case <-time.After(placeWithin + patience):
		t.Fatal("a client that never answers a ping was not sent away")
	}
	if d.close != 4002 {
		t.Errorf("a client that never answers a ping was closed with %d, want 4002", d.close)
	}
}

// dialRaw opens a connection and asks for events; what comes is for the caller to read. The kernel
// keeps about so many bytes of what was not read; 0 is its own default.
func dialRaw(t *testing.T, address string, kind transport, topics, since string, readBuffer int) net.Conn {
	t.Helper()
	conn, err := rawDialer(readBuffer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	query := "topics=" + topics
	if since != "" {
		query += "&since=" + since
	}
	request := "GET /api/stream?" + query + " HTTP/1.1\r\nHost: " + address + "\r\nAccept: text/event-stream\r\n\r\n"
	if kind == webSocket {
		request = "GET /ws?" + query + " HTTP/1.1\r\nHost: " + address + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return conn
}

// readFrame reads one frame of a server, which is not masked (RFC 6455, section 5.2).
func readFrame(r *bufio.Reader) (opcode byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	length, extra := int(head[1]&0x7f), 0
	switch length {
	case 126:
		length, extra = 0, 2
	case 127:
		length, extra = 0, 8
	}
	for range extra {
		b, err := r.ReadByte()
		if err != nil {
			return 0, nil, err
		}
		length = length<<8 | int(b)
	}
	payload = make([]byte, length)
	_, err = io.ReadFull(r, payload)
	return head[0] & 0xf, payload, err
}
