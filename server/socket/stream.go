package socket

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// Stream writes to a ResponseWriter, for what cannot be hijacked, such as HTTP/2. It is
// never written without waiting, so that its connection always has a drainer while there
// is something to write.
type Stream struct {
	w        http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration

	once sync.Once
	done chan struct{}
}

// NewStream wraps a ResponseWriter. The handler waits for Done, and returns only when
// nobody writes any more.
func NewStream(w http.ResponseWriter, patience time.Duration) *Stream {
	return &Stream{w: w, control: http.NewResponseController(w), patience: patience, done: make(chan struct{})}
}

// Done is closed when all was written, or nothing more can be.
func (s *Stream) Done() <-chan struct{} { return s.done }

// TryWrite takes nothing.
func (s *Stream) TryWrite([]byte) (int, error) { return 0, nil }

// Hold does nothing: there is only one who writes.
func (s *Stream) Hold() {}

// WriteUntil waits for its own deadline: a write that was broken off cannot be continued.
func (s *Stream) WriteUntil(buf []byte, _ time.Time) (int, error) {
	select {
	case <-s.done:
		return 0, net.ErrClosed
	default:
	}
	if err := s.control.SetWriteDeadline(time.Now().Add(s.patience)); err != nil {
		return 0, net.ErrClosed
	}
	n, err := s.w.Write(buf)
	if err == nil {
		err = s.control.Flush()
	}
	if err != nil {
		// Not os.ErrDeadlineExceeded, which would ask for another try.
		return n, net.ErrClosed
	}
	return n, nil
}

// Release does nothing.
func (s *Stream) Release(time.Time) error { return nil }

// Finish lets the handler return.
func (s *Stream) Finish() { s.once.Do(func() { close(s.done) }) }

// Close lets the handler return.
func (s *Stream) Close() error {
	s.Finish()
	return nil
}
