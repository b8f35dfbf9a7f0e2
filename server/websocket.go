package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"github.com/julienschmidt/httprouter"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/hub"
	"github.com/trumpet-realtime/trumpet/server/socket"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

const (
	// A client's frames are short, and the library's own are control frames of at most 127
	// bytes, which must reach the socket in one piece.
	readBuffer  = 64
	writeBuffer = 128
	// sayTimeout bounds what is written before the hub has a connection, or instead.
	sayTimeout = 5 * time.Second
	// patience lets the hub's bound for slow clients come before the kernel's.
	patience = 45 * time.Second
)

// upgrade is the ResponseWriter that the WebSocket library is given: its Hijack returns our
// connection with small buffers, and its errors are problem documents.
type upgrade struct {
	http.ResponseWriter
	poller *socket.Poller
	conn   *socket.Conn
	buffer *bufio.Reader // what the library reads by
	status int
}

func (u *upgrade) WriteHeader(status int) {
	u.status = status
	if status == http.StatusSwitchingProtocols {
		u.ResponseWriter.WriteHeader(status)
	}
}

func (u *upgrade) Write(p []byte) (int, error) {
	if u.status >= http.StatusBadRequest {
		u.Header().Del("Content-Type")
		writeProblem(u.ResponseWriter, u.status, strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func (u *upgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, early, err := hijack(u.ResponseWriter)
	if err != nil {
		return nil, nil, err
	}
	u.conn = socket.New(conn, socket.Config{Early: early, Patience: patience, Poller: u.poller})
	u.buffer = bufio.NewReaderSize(u.conn, readBuffer)
	return u.conn, bufio.NewReadWriter(u.buffer, bufio.NewWriterSize(u.conn, writeBuffer)), nil
}

// hijack takes a connection over from the HTTP server, and what that had read ahead.
func hijack(w http.ResponseWriter) (net.Conn, []byte, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, err := rw.Reader.Peek(rw.Reader.Buffered())
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, append([]byte(nil), early...), nil
}

// websocket serves WebSockets; topics are those of a client that names none.
func (s *Server) websocket(topics []string) httprouter.Handle {
	return func(w http.ResponseWriter, r *http.Request, _ httprouter.Params) {
		if !s.checkReader(w, r) {
			return
		}
		client, ending, ok := s.client(w, r, wire.WebSocket, topics)
		if !ok {
			return
		}
		reader := &socketReader{server: s}
		up := &upgrade{ResponseWriter: w, poller: s.poller.Load()}
		var err error
		reader.library, err = websocket.Accept(up, r, &websocket.AcceptOptions{
			InsecureSkipVerify: true, // checkReader did, and said why not
			OnPingReceived:     func(context.Context, []byte) bool { reader.control(); return true },
			OnPongReceived:     func(context.Context, []byte) { reader.control() },
		})
		if err != nil {
			if up.conn != nil {
				_ = up.conn.Close()
			}
			return
		}
		reader.socket, reader.buffer = up.conn, up.buffer
		reader.library.SetReadLimit(wire.MaxClientFrame)
		client.Socket = up.conn
		from := clientAddress(r, s.config.TrustedProxies)
		reader.begin = func() { reader.admit(client, ending, from) }
		s.reading(up.conn, reader)
		// The handler returns, which frees the request and the HTTP server's buffers.
	}
}

// hubConn is a connection in the hub, or none because the client is sent away.
type hubConn struct{ *hub.Conn }

func (c hubConn) heard() {
	if c.Conn != nil {
		c.Heard()
	}
}

// socketReader reads what one WebSocket's client sends.
type socketReader struct {
	server  *Server
	library *websocket.Conn
	buffer  *bufio.Reader // the library's
	socket  *socket.Conn
	begin   func() // until it was called
	place   *place
	conn    hubConn
	between bool // the library is between two messages
	over    bool // what else comes is not obeyed
	err     error
}

// admit lets the client in and gives it to the hub, or sends it away.
func (r *socketReader) admit(client hub.Client, ending *trumpet.Ending, from netip.Addr) {
	admission := r.server.admit(from, ending)
	r.place = admission.place
	refusal := admission.refusal
	if refusal == nil {
		conn, err := r.server.config.Hub.Attach(client)
		if err != nil {
			refusal = &trumpet.EndingDraining
		} else {
			r.conn = hubConn{conn}
			r.socket.OnBlocked(conn.Blocked)
		}
	}
	if refusal != nil && !admission.silent {
		_ = say(r.socket, wire.AppendEnding(nil, wire.WebSocket, *refusal))
		r.socket.Finish()
	}
	if admission.silent {
		_ = r.socket.Close()
	}
}

func (r *socketReader) end() {
	if r.conn.Conn != nil && !broken(r.err) {
		r.conn.Detach()
		// The library has said what was wrong, or not, as where a frame is not masked. The client
		// reads it only if the socket is not closed with something unread.
		_, _ = r.socket.Write(wire.AppendClose(nil, farewell(r.err)))
		linger(r.socket)
	}
	_ = r.library.CloseNow()
	_ = r.socket.Close()
	if r.conn.Conn != nil {
		r.conn.Detach()
	}
	r.place.leave()
}

// say writes to a connection that the hub does not have.
func say(conn *socket.Conn, b []byte) error {
	deadline := time.Now().Add(sayTimeout)
	conn.Hold()
	if _, err := conn.WriteUntil(b, deadline); err != nil {
		return err
	}
	return conn.Release(deadline)
}

func (r *socketReader) read() bool {
	if begin := r.begin; begin != nil {
		r.begin = nil
		begin()
	}
	for r.err == nil {
		r.err = r.message()
	}
	if errors.Is(r.err, socket.ErrIdle) {
		r.err = nil
		return true
	}
	return false
}

// message reads a message and obeys it. Between two frames that are no parts of a message the library
// can be left and asked again: nothing is lost by an error of the socket there.
func (r *socketReader) message() error {
	r.between = true
	r.mayIdle()
	// The hub ends a read by closing the socket, or by its deadline.
	kind, reader, err := r.library.Reader(context.Background())
	r.between = false
	if err != nil {
		return err
	}
	message, err := io.ReadAll(reader)
	if err != nil {
		return err
	}
	r.conn.heard()
	if r.over || r.conn.Conn == nil {
		return nil
	}
	if kind == websocket.MessageText && !utf8.Valid(message) {
		return errNotUTF8
	}
	if err := r.obey(kind, message); err != nil {
		r.over = true
		ending := trumpet.EndingBadRequest
		ending.Message = err.Error()
		r.conn.End(ending)
	}
	return nil
}

// control is called by the library when it has read a ping or a pong.
func (r *socketReader) control() {
	r.conn.heard()
	if r.between {
		r.mayIdle()
	}
}

// mayIdle lets the socket say that nothing has come, if the library has not begun the next frame.
func (r *socketReader) mayIdle() {
	if r.buffer.Buffered() == 0 {
		r.socket.Idle()
	}
}

func (r *socketReader) obey(kind websocket.MessageType, message []byte) error {
	if kind != websocket.MessageText {
		return errors.New("messages are text frames with JSON, not binary ones")
	}
	command, err := wire.ParseClientFrame(message)
	var change hub.Change
	if err == nil {
		// Bounded; and nobody waits for a reader whose connection is cut.
		if change, err = r.server.change(context.Background(), command); err == nil {
			return r.conn.Change(change)
		}
		if _, ok := errors.AsType[*trumpet.Refusal](err); !ok {
			return r.conn.Refuse(command.Ref, "Postgres could not be asked for the columns of a filter; ask again later")
		}
	}
	if refusal, ok := errors.AsType[*trumpet.Refusal](err); ok {
		return r.conn.Refuse(command.Ref, refusal.Message)
	}
	return err
}

var errNotUTF8 = errors.New("a text message is not UTF-8")

// farewell is how the standard closes after what no client may send (RFC 6455, section 7.4.1).
func farewell(err error) trumpet.Ending {
	code := websocket.StatusProtocolError
	if errors.Is(err, errNotUTF8) {
		code = websocket.StatusInvalidFramePayloadData
	}
	return trumpet.Ending{Code: int(code), Message: err.Error()}
}

// broken reports whether a read ended because the connection did, and not because of what
// was read.
func broken(err error) bool {
	var closed websocket.CloseError
	var network net.Error
	return errors.As(err, &closed) || errors.As(err, &network) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// linger reads a little of what the peer still sends, so that it can read our last words.
func linger(conn *socket.Conn) {
	const most = 64 << 10
	conn.Finish()
	buf := make([]byte, readBuffer)
	for total := 0; total < most; {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		total += n
	}
}
