package server_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/julienschmidt/httprouter"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server"
	"github.com/trumpet-realtime/trumpet/server/hub"
)

// stream is an SSE client.
type stream struct {
	response *http.Response
	read     *bufio.Reader
}

func (w *worker) open(t *testing.T, path string, header map[string]string) *stream {
	t.Helper()
	return openStream(t, http.DefaultClient, w.url(path), header)
}

func openStream(t *testing.T, client *http.Client, url string, header map[string]string) *stream {
	t.Helper()
	request, err := http.NewRequestWithContext(within(t), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	if response.StatusCode != http.StatusOK {
		t.Fatalf("got %s", response.Status)
	}
	s := &stream{response, bufio.NewReader(response.Body)}
	line, err := s.read.ReadString('\n')
	var retry int
	if _, scan := fmt.Sscanf(line, "retry: %d\n", &retry); err != nil || scan != nil || retry < 1000 || retry > 3000 {
		t.Fatalf("the stream begins with %q, %v", line, err)
	}
	_, _ = s.read.ReadString('\n')
	return s
}

func (s *stream) next() (message, error) {
	var m message
	for {
		line, err := s.read.ReadString('\n')
		if err != nil {
			return m, err
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(data), &m); err != nil {
				return m, err
			}
		}
		if line == "\n" {
			return m, nil
		}
	}
}

func (s *stream) mustNext(t *testing.T) message {
	t.Helper()
	m, err := s.next()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (s *stream) expect(t *testing.T, kind string) message {
	t.Helper()
	m := s.mustNext(t)
	if m.Type != kind {
		t.Fatalf("got %+v, want a message of type %q", m, kind)
	}
	return m
}

func (s *stream) expectEOF(t *testing.T) {
	t.Helper()
	if m, err := s.next(); !errors.Is(err, io.EOF) {
		t.Fatalf("got %+v, %v, want EOF", m, err)
	}
}

func TestStream(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	s := w.open(t, "/api/stream?topics=jobs", nil)
	for name, want := range map[string]string{
		"Content-Type": "text/event-stream", "Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no",
	} {
		if got := s.response.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	s.expect(t, "ready")
	w.give(broadcast(1, "jobs"), broadcast(2, "other"), broadcast(3, "jobs"))
	for _, want := range []string{"1.0-00000001", "3.0-00000003"} {
		m := s.mustNext(t)
		for m.Type != "" {
			m = s.mustNext(t)
		}
		if m.ID != want {
			t.Fatalf("got %+v, want %s", m, want)
		}
	}
	// Last-Event-ID wins over the id in the URL, which is older.
	again := w.open(t, "/api/stream?topics=jobs&since=0.0-00000000", map[string]string{"Last-Event-ID": "1.0-00000001"})
	if m := again.mustNext(t); m.ID != "3.0-00000003" {
		t.Fatalf("got %+v", m)
	}
	if m := again.expect(t, "ready"); !m.Resumed {
		t.Fatalf("got %+v", m)
	}
	bad := w.open(t, "/api/stream", map[string]string{"Last-Event-ID": "x"})
	if m := bad.expect(t, "reset"); m.Reason != "invalid" {
		t.Fatalf("got %+v", m)
	}
}

// A stream that cannot be hijacked, or whose socket is a TLS connection, works too.
func TestStreamOverTLS(t *testing.T) {
	t.Parallel()
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			t.Parallel()
			w := start(t, hub.Config{}, nil)
			w.begin()
			front := httptest.NewUnstartedServer(w.server.Handler())
			front.EnableHTTP2 = http2
			front.StartTLS()
			defer front.Close()
			s := openStream(t, front.Client(), front.URL+"/api/stream?topics=jobs", nil)
			if got := s.response.ProtoMajor == 2; got != http2 {
				t.Fatalf("the protocol is %s", s.response.Proto)
			}
			s.expect(t, "ready")
			var events []trumpet.Event
			for i := range int64(200) {
				e := broadcast(i+1, "jobs")
				e.Data = json.RawMessage(`"` + strings.Repeat("x", 10_000) + `"`)
				events = append(events, e)
				w.give(e)
			}
			for i := range events {
				m := s.mustNext(t)
				for m.Type != "" {
					m = s.mustNext(t)
				}
				if m.ID != events[i].ID.String() {
					t.Fatalf("got %+v, want %v", m, events[i].ID)
				}
			}
			_ = s.response.Body.Close()
			if http2 {
				return
			}
			conn, _, err := websocket.Dial(within(t), front.URL+"/ws?topics=jobs&since=100.0-00000064", &websocket.DialOptions{HTTPClient: front.Client()})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.CloseNow()
			for i := 100; i < 200; i++ {
				if m := nextEvent(t, conn); m.ID != events[i].ID.String() {
					t.Fatalf("got %+v, want %v", m, events[i].ID)
				}
			}
			expect(t, conn, "ready")
			if err := conn.Ping(conn.CloseRead(within(t))); err != nil {
				t.Error(err)
			}
		})
	}
}

// problem is a problem document.
type problem struct {
	Type, Title, Detail string
	Status              int
}

func (w *worker) do(t *testing.T, method, path, body string, header map[string]string) (*http.Response, []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(within(t), method, w.url(path), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, b
}

func (w *worker) body(t *testing.T, path string) []byte {
	t.Helper()
	_, b := w.do(t, http.MethodGet, path, "", nil)
	return b
}

// get reads an answer that may be a problem document.
func (w *worker) get(t *testing.T, path string, header map[string]string) (*http.Response, problem) {
	t.Helper()
	return w.problem(t, http.MethodGet, path, "", header)
}

func (w *worker) problem(t *testing.T, method, path, body string, header map[string]string) (*http.Response, problem) {
	t.Helper()
	response, b := w.do(t, method, path, body, header)
	var p problem
	if response.Header.Get("Content-Type") == "application/problem+json" {
		if err := json.Unmarshal(b, &p); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
	}
	return response, p
}

func TestProblems(t *testing.T) {
	t.Parallel()
	isJSON := map[string]string{"Content-Type": "application/json; charset=utf-8"}
	w := start(t, hub.Config{}, func(c *server.Config, _ *backend) {
		c.Mount = func(r *httprouter.Router) {
			r.GET("/mounted", func(http.ResponseWriter, *http.Request, httprouter.Params) { panic("on purpose") })
		}
	})
	w.begin()
	for _, test := range []struct {
		method, path, body string
		header             map[string]string
		status             int
	}{
		{"GET", "/nowhere", "", nil, 404},
		{"DELETE", "/api/stream", "", nil, 405},
		{"GET", "/mounted", "", nil, 500},
		{"GET", "/api/stream?topics=", "", nil, 400},
		{"GET", "/api/stream?topics=a,,b", "", nil, 400},
		{"GET", "/api/stream?topics=" + strings.Repeat("a", 200), "", nil, 400},
		{"GET", "/ws?topics=a%20b", "", nil, 400},
		{"POST", "/api/dispatch/broadcast", "{}", nil, 415},
		{"POST", "/api/dispatch/broadcast", "{}", map[string]string{"Content-Type": "text/plain"}, 415},
		{"POST", "/api/dispatch/broadcast", "{", isJSON, 400},
		{"POST", "/api/dispatch/broadcast", "", isJSON, 400},
		{"POST", "/api/dispatch/broadcast", "1 2", isJSON, 400},
		{"POST", "/api/dispatch/broadcast", "\"\xff\"", isJSON, 400},
		{"POST", "/api/dispatch/broadcast", `"` + strings.Repeat("x", 1<<20) + `"`, isJSON, 413},
		{"POST", "/api/topics/a%2Cb", "{}", isJSON, 400},
	} {
		response, p := w.problem(t, test.method, test.path, test.body, test.header)
		if response.StatusCode != test.status || p.Status != test.status || p.Title == "" || p.Type == "" || p.Detail == "" {
			t.Errorf("%s %s: got %d, %+v, want %d", test.method, test.path, response.StatusCode, p, test.status)
		}
	}
}

// sqlError is an error of Postgres.
type sqlError string

func (e sqlError) Error() string    { return "postgres says " + string(e) }
func (e sqlError) SQLState() string { return string(e) }

func TestPublish(t *testing.T) {
	t.Parallel()
	type publication struct {
		topic string
		data  string
	}
	published := make(chan publication, 1)
	var id trumpet.EventID
	var failure error
	w := start(t, hub.Config{}, func(_ *server.Config, b *backend) {
		b.publish = func(topic string, data json.RawMessage) (trumpet.EventID, error) {
			published <- publication{topic, string(data)}
			return id, failure
		}
	})
	isJSON := map[string]string{"Content-Type": "application/json"}
	for _, test := range []struct {
		path, topic string
		id          trumpet.EventID
		failure     error
		status      int
		body        string
	}{
		{"/api/dispatch/broadcast", "dispatch", trumpet.EventID{Position: 9, Tag: 1}, nil, 200, `{"id":"9.0-00000001"}`},
		{"/api/topics/crew.7", "crew.7", trumpet.EventID{}, nil, 200, `{"id":null}`},
		{"/api/dispatch/broadcast", "dispatch", trumpet.EventID{}, errors.New("no connection"), 503, ""},
		{"/api/dispatch/broadcast", "dispatch", trumpet.EventID{}, fmt.Errorf("publish: %w", sqlError("22P05")), 400, ""},
		{"/api/dispatch/broadcast", "dispatch", trumpet.EventID{}, fmt.Errorf("publish: %w", sqlError("57P01")), 503, ""},
	} {
		id, failure = test.id, test.failure
		response, body := w.do(t, http.MethodPost, test.path, " {\"text\": \"hello\"}\n", isJSON)
		if got := <-published; got != (publication{test.topic, `{"text": "hello"}`}) {
			t.Errorf("published %+v", got)
		}
		if response.StatusCode != test.status || test.body != "" && strings.TrimSpace(string(body)) != test.body {
			t.Errorf("got %d %s, want %d %s", response.StatusCode, body, test.status, test.body)
		}
		if test.status == 503 && response.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, func(c *server.Config, _ *backend) { c.AllowedOrigins = []string{"https://app.example.com"} })
	w.begin()
	for _, test := range []struct {
		origin, site string
		allowed      bool
		cors         bool
	}{
		{"", "", true, false},
		{"http://" + w.addr, "", true, false},
		{"https://app.example.com", "cross-site", true, true},
		{"https://evil.example.com", "cross-site", false, false},
		{"https://app.example.com.evil.com", "", false, false},
		{"null", "cross-site", false, false},
		{"https://behind.proxy.example", "same-origin", true, false},
	} {
		header := map[string]string{"Origin": test.origin, "Sec-Fetch-Site": test.site, "Content-Type": "application/json"}
		for name, value := range header {
			if value == "" {
				delete(header, name)
			}
		}
		response, p := w.problem(t, http.MethodPost, "/api/dispatch/broadcast", "{}", header)
		if (response.StatusCode == 200) != test.allowed || !test.allowed && (response.StatusCode != 403 || p.Detail == "") {
			t.Errorf("POST from %q: got %d", test.origin, response.StatusCode)
		}
		if test.cors != (response.Header.Get("Access-Control-Allow-Origin") == test.origin) && test.origin != "" {
			t.Errorf("POST from %q: headers %v", test.origin, response.Header)
		}
		h := http.Header{}
		for name, value := range header {
			h.Set(name, value)
		}
		conn, response, err := websocket.Dial(within(t), "ws://"+w.addr+"/ws", &websocket.DialOptions{HTTPHeader: h})
		if (err == nil) != test.allowed || err != nil && response.StatusCode != 403 {
			t.Errorf("WebSocket from %q: %v", test.origin, err)
		}
		if err == nil {
			_ = conn.CloseNow()
		}
		if !test.allowed {
			if response, _ := w.get(t, "/api/stream", header); response.StatusCode != 403 {
				t.Errorf("stream from %q: got %d", test.origin, response.StatusCode)
			}
			continue
		}
		s := w.open(t, "/api/stream", header)
		s.expect(t, "ready")
		if test.cors && s.response.Header.Get("Access-Control-Allow-Origin") != test.origin {
			t.Errorf("stream from %q: headers %v", test.origin, s.response.Header)
		}
	}
	preflight := map[string]string{"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
	response, _ := w.problem(t, http.MethodOptions, "/api/dispatch/broadcast", "", preflight)
	if response.StatusCode != 204 || !strings.Contains(response.Header.Get("Access-Control-Allow-Methods"), "POST") {
		t.Errorf("preflight: got %d, %v", response.StatusCode, response.Header)
	}
}
