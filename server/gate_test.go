package server_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/server"
	"github.com/trumpet-realtime/trumpet/server/hub"
)

// Connections that say nothing, or are only kept open, take no place from anybody for long: clients go on,
// and newcomers come in as soon as the HTTP server has lost its patience.
func TestConnectionsThatAreNoClients(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, func(c *server.Config, _ *backend) { c.Headroom = 16 })
	w.begin()
	client := w.dial(t, "/ws?topics=a")
	expect(t, client, "ready")

	// Kept open after a request: they make room at once.
	var kept []net.Conn
	for range 40 {
		conn := w.connect(t)
		fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: %s\r\n\r\n", w.addr)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("request %d: %v", len(kept), err)
		}
		response.Body.Close()
		kept = append(kept, conn)
	}
	open := 0
	for _, conn := range kept {
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				open++
			}
		}
	}
	if open == 0 || open > 12 {
		t.Errorf("%d of 40 connections are kept open, want at most 12", open)
	}

	// Silent ones: who is a client already does not feel them, and others wait no longer than those may.
	for range 20 {
		w.connect(t)
	}
	w.give(broadcast(1, "a"))
	if m := nextEvent(t, client); m.Topic != "a" {
		t.Errorf("got %+v", m)
	}
	expect(t, w.dial(t, "/ws"), "ready")
	w.open(t, "/api/stream", nil).expect(t, "ready")
	if body := string(w.body(t, "/metrics")); strings.Contains(body, "trumpet_accept_waits_total 0") {
		t.Errorf("nobody had to wait:\n%s", body)
	}
}

// connect opens a TCP connection.
func (w *worker) connect(t *testing.T) net.Conn {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(within(t), "tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
