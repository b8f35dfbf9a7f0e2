package server

import (
	"github.com/trumpet-realtime/trumpet/server/socket"
)

// reader reads what one client sends.
type reader interface {
	// read reads until nothing more has come, or, without a poller, until the end. It reports whether the
	// connection goes on.
	read() bool
	// end is called once, after read returned false.
	end()
}

// reading is a reader at work on its connection. There is a goroutine only while there is something to
// read: most clients say nothing most of the time.
type reading struct {
	server *Server
	conn   *socket.Conn
	reader reader
	resume func()
}

// reading begins to read from a connection; Serve waits for the end.
func (s *Server) reading(conn *socket.Conn, what reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		_ = conn.Close()
		return
	}
	s.sockets[conn] = struct{}{}
	s.readers.Add(1)
	r := &reading{server: s, conn: conn, reader: what}
	r.resume = func() { go r.run() }
	r.resume()
}

func (r *reading) run() {
	for r.reader.read() {
		if r.conn.Park(r.resume) {
			return
		}
	}
	r.reader.end()
	r.server.mu.Lock()
	delete(r.server.sockets, r.conn)
	r.server.mu.Unlock()
	r.server.readers.Done()
}
