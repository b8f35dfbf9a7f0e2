package server

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"time"

	"github.com/julienschmidt/httprouter"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/hub"
	"github.com/trumpet-realtime/trumpet/server/socket"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// retry is how long an EventSource is to wait before it comes back: not all at once.
func retry() time.Duration { return time.Second + rand.N(2*time.Second) }

// stream serves server-sent events.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, _ httprouter.Params) {
	if !s.checkReader(w, r) {
		return
	}
	client, ending, ok := s.client(w, r, wire.SSE, streamTopics)
	if !ok {
		return
	}
	from := clientAddress(r, s.config.TrustedProxies)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store, no-transform")
	h.Set("X-Accel-Buffering", "no")
	h.Set("X-Content-Type-Options", "nosniff")
	// Whatever comes now is 200: any other status ends an EventSource for good.
	if r.ProtoMajor == 1 {
		conn, early, err := hijack(w)
		switch {
		case err == nil:
			s.serveHijacked(socket.New(conn, socket.Config{Early: early, HalfClose: true, Patience: patience, Poller: s.poller.Load()}), h, client, ending, from)
			return
		case !errors.Is(err, http.ErrNotSupported):
			return
		}
	}
	s.serveResponse(w, r, client, ending, from)
}

// serveHijacked writes the response's head itself; the stream ends with the connection.
func (s *Server) serveHijacked(conn *socket.Conn, h http.Header, client hub.Client, ending *trumpet.Ending, from netip.Addr) {
	h.Set("Connection", "close")
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	head := appendHead(make([]byte, 0, 512), h)
	head = wire.AppendRetry(head, retry())
	client.Socket = conn
	reader := &streamReader{conn: conn}
	reader.begin = func() bool { return s.beginStream(reader, head, client, ending, from) }
	s.reading(conn, reader)
}

// beginStream admits a client and gives it to the hub. It reports whether there is anybody to wait for.
func (s *Server) beginStream(r *streamReader, head []byte, client hub.Client, ending *trumpet.Ending, from netip.Addr) bool {
	admission := s.admit(from, ending)
	r.place = admission.place
	if admission.silent {
		return false
	}
	refusal := admission.refusal
	if refusal != nil {
		head = wire.AppendEnding(head, wire.SSE, *refusal)
	}
	if say(r.conn, head) != nil {
		return false
	}
	if refusal == nil {
		var err error
		if r.attached, err = s.config.Hub.Attach(client); err == nil {
			return true
		}
		_ = say(r.conn, wire.AppendEnding(nil, wire.SSE, trumpet.EndingDraining))
	}
	r.conn.Finish()
	return true
}

// streamReader waits for the peer to hang up. An EventSource sends nothing.
type streamReader struct {
	conn     *socket.Conn
	begin    func() bool // until it was called
	place    *place
	attached *hub.Conn // nil if the client is sent away
}

func (r *streamReader) read() bool {
	if begin := r.begin; begin != nil {
		r.begin = nil
		if !begin() {
			return false
		}
	}
	var buf [64]byte
	for {
		r.conn.Idle()
		if _, err := r.conn.Read(buf[:]); err != nil {
			return errors.Is(err, socket.ErrIdle)
		}
	}
}

func (r *streamReader) end() {
	_ = r.conn.Close()
	if r.attached != nil {
		r.attached.Detach()
	}
	r.place.leave()
}

// appendHead appends the head of an HTTP/1.1 response.
func appendHead(dst []byte, h http.Header) []byte {
	dst = append(dst, "HTTP/1.1 200 OK\r\n"...)
	for name, values := range h {
		for _, value := range values {
			dst = append(dst, name...)
			dst = append(dst, ": "...)
			dst = append(dst, value...)
			dst = append(dst, "\r\n"...)
		}
	}
	return append(dst, "\r\n"...)
}

// serveResponse serves a stream that cannot be hijacked. The handler stays.
func (s *Server) serveResponse(w http.ResponseWriter, r *http.Request, client hub.Client, ending *trumpet.Ending, from netip.Addr) {
	admission := s.admit(from, ending)
	defer admission.place.leave()
	if admission.silent {
		panic(http.ErrAbortHandler)
	}
	stream := socket.NewStream(w, patience)
	hello := wire.AppendRetry(nil, retry())
	refusal := admission.refusal
	if refusal != nil {
		hello = wire.AppendEnding(hello, wire.SSE, *refusal)
	}
	if _, err := stream.WriteUntil(hello, time.Time{}); err != nil || refusal != nil {
		return
	}
	client.Socket = stream
	conn, err := s.config.Hub.Attach(client)
	if err != nil {
		_, _ = stream.WriteUntil(wire.AppendEnding(nil, wire.SSE, trumpet.EndingDraining), time.Time{})
		return
	}
	select {
	case <-stream.Done():
	case <-r.Context().Done():
	}
	_ = stream.Close()
	conn.Detach() // nobody writes to w any more
}
