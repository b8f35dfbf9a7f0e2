package server_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/server"
	"github.com/trumpet-realtime/trumpet/server/hub"
)

// exchange sends bytes on a connection of their own and returns all that is answered, once the server
// has closed it.
func (w *worker) exchange(t *testing.T, request string) string {
	t.Helper()
	conn := w.connect(t)
	_ = conn.SetDeadline(time.Now().Add(limit))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(conn, request) // the server need not take all of it
	}()
	// A server that closes what it has not read all of resets the connection; the answer came before.
	answer, err := io.ReadAll(conn)
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		t.Errorf("the connection is still open after %q", answer)
	}
	_ = conn.Close()
	<-sent
	return string(answer)
}

// Headers have at most 16 KiB, and what the HTTP server adds for its own convenience.
func TestLargeHeaders(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	const rest = " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
	for name, test := range map[string]struct {
		request string
		status  int
	}{
		"16 KiB":             {"GET /healthz" + rest + "X: " + strings.Repeat("x", 16<<10-100) + "\r\n\r\n", 200},
		"21 KiB":             {"GET /healthz" + rest + "X: " + strings.Repeat("x", 21<<10) + "\r\n\r\n", 431},
		"1 MB":               {"GET /healthz" + rest + "X: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", 431},
		"1 MB without end":   {"GET /healthz" + rest + strings.Repeat("X: x\r\n", 1<<20/6), 431},
		"1 MB of path":       {"GET /healthz?" + strings.Repeat("x", 1<<20) + rest + "\r\n", 431},
		"1 MB to a stream":   {"GET /api/stream" + rest + "X: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", 431},
		"1 MB of last id":    {"GET /api/stream" + rest + "Last-Event-ID: " + strings.Repeat("1", 1<<20) + "\r\n\r\n", 431},
		"1 MB to publish":    {"POST /api/topics/a" + rest + "X: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", 431},
		"1 MB, one line end": {strings.Repeat("x", 1<<20), 431},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if answer := w.exchange(t, test.request); !strings.HasPrefix(answer, fmt.Sprintf("HTTP/1.1 %d ", test.status)) {
				t.Errorf("got %.200q, want %d", answer, test.status)
			}
		})
	}
}

// A body has at most 1 MiB, whatever it says of itself.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, func(_ *server.Config, b *backend) { b.publish = nil })
	w.begin()
	const head = "POST /api/topics/a HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
	large := strings.Repeat("x", 1<<20+1)
	for name, request := range map[string]string{
		"a byte too many":        head + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(large)) + large,
		"1 TB, so it says":       head + "Content-Length: 1000000000000\r\n\r\n" + large,
		"chunked":                head + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(large), large),
		"chunked without an end": head + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat(fmt.Sprintf("400\r\n%s\r\n", large[:1024]), 1025),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if answer := w.exchange(t, request); !strings.HasPrefix(answer, "HTTP/1.1 413 ") {
				t.Errorf("got %.200q, want 413", answer)
			}
		})
	}
}

// Requests of which two programs may see the end at different places, each with another one behind it:
// there is one answer, and the connection ends.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	const (
		head     = "POST /api/topics/a HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
		smuggled = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
		chunks   = "2\r\n{}\r\n0\r\n\r\n"
	)
	for name, test := range map[string]struct {
		request string
		status  int
	}{
		"two lengths":                  {head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
		"two lengths in one":           {head + "Content-Length: 2, 3\r\n\r\n{}", 400},
		"signed length":                {head + "Content-Length: +2\r\n\r\n{}", 400},
		"hexadecimal length":           {head + "Content-Length: 0x2\r\n\r\n{}", 400},
		"empty length":                 {head + "Content-Length: \r\n\r\n{}", 400},
		"negative length":              {head + "Content-Length: -2\r\n\r\n{}", 400},
		"length beyond all":            {head + "Content-Length: 99999999999999999999\r\n\r\n{}", 400},
		"length and chunked":           {head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, 200},
		"chunked and length":           {head + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n" + chunks, 200},
		"chunked alone":                {head + "Transfer-Encoding: chunked\r\n\r\n" + chunks, 200},
		"chunked over two lines":       {head + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 2\r\n\r\n" + chunks, 200},
		"chunked, with HTTP/1.0":       {strings.Replace(head, "1.1", "1.0", 1) + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, 400},
		"chunked to what is not there": {"GET /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, 404},
		"chunked twice":                {head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, 501},
		"chunked and identity":         {head + "Transfer-Encoding: chunked, identity\r\n\r\n" + chunks, 501},
		"nearly chunked":               {head + "Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\n{}", 501},
		"chunked before a tab":         {head + "Transfer-Encoding: chunked\v\r\nContent-Length: 2\r\n\r\n{}", 400},
		"a space before the colon":     {head + "Transfer-Encoding : chunked\r\nContent-Length: 2\r\n\r\n{}", 400},
		"a space in a name":            {head + "Content Length: 2\r\n\r\n{}", 400},
		"chunk with a sign":            {head + "Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n", 400},
		"chunk that ends in LF":        {head + "Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n", 400},
		"chunk beyond its size":        {head + "Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n", 400},
		"two hosts":                    {strings.Replace(head, "Host: a\r\n", "Host: a\r\nHost: b\r\n", 1) + "Content-Length: 2\r\n\r\n{}", 400},
		"no host":                      {strings.Replace(head, "Host: a\r\n", "", 1) + "Content-Length: 2\r\n\r\n{}", 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answer := w.exchange(t, test.request+smuggled)
			if n := strings.Count(answer, "HTTP/1."); n != 1 || !strings.HasPrefix(answer[len("HTTP/1.x"):], fmt.Sprintf(" %d ", test.status)) {
				t.Errorf("%d answers, want one with %d: %q", n, test.status, answer)
			}
		})
	}
}

// Who takes too long to say what it wants is cut off: after 5 s in the headers, after 15 s in the body.
func TestSlowRequests(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{}, nil)
	w.begin()
	var group sync.WaitGroup
	const whole = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, test := range map[string]struct {
		begin, rest string // the rest comes a byte at a time, over and over
		within      time.Duration
	}{
		"says nothing":              {"", "", 5 * time.Second},
		"headers":                   {"GET /healthz HTTP/1.1\r\nHost: a\r\n", "X: x\r\n", 5 * time.Second},
		"headers of a stream":       {"GET /api/stream HTTP/1.1\r\nHost: a\r\n", "X: x\r\n", 5 * time.Second},
		"headers of the second one": {whole + "GET /healthz HTTP/1.1\r\n", "X: x\r\n", 5 * time.Second},
		"empty lines":               {"", "\r\n", 5 * time.Second},
		"body":                      {"POST /api/topics/a HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n", " ", 15 * time.Second},
	} {
		conn := w.connect(t)
		group.Go(func() {
			answer, took := trickle(conn, test.begin, test.rest)
			if took > test.within+4*time.Second {
				t.Errorf("%s: cut off after %v", name, took)
			}
			if n := strings.Count(answer, "HTTP/1.1 200"); n != strings.Count(test.begin, whole) {
				t.Errorf("%s: answered with %q", name, answer)
			}
		})
	}
	group.Wait() // and not one parallel test each: these wait for most of their time
}

// trickle sends the beginning, then a byte of the rest at a time, over and over, until the connection ends.
func trickle(conn net.Conn, begin, rest string) (answer string, took time.Duration) {
	began := time.Now()
	_ = conn.SetDeadline(began.Add(limit))
	ended := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(conn)
		ended <- string(b)
	}()
	_, _ = io.WriteString(conn, begin) // reading tells of the end
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for i := 0; ; i++ {
		select {
		case answer := <-ended:
			return answer, time.Since(began)
		case <-ticker.C:
			if rest != "" {
				_, _ = conn.Write([]byte{rest[i%len(rest)]})
			}
		}
	}
}
