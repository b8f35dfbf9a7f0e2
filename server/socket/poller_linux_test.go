package socket_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/server/socket"
)

func TestPark(t *testing.T) {
	t.Parallel()
	poller, err := socket.NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- poller.Run() }()
	defer func() {
		if err := errors.Join(poller.Close(), <-ran); err != nil {
			t.Error(err)
		}
	}()
	// read reads what is there, parks, and does what should end that.
	read := func(conn *socket.Conn, wake func()) (string, error) {
		t.Helper()
		resumed := make(chan struct{}, 1)
		buf := make([]byte, 10)
		for {
			conn.Idle()
			n, err := conn.Read(buf)
			if !errors.Is(err, socket.ErrIdle) {
				return string(buf[:n]), err
			}
			if !conn.Park(func() { resumed <- struct{}{} }) {
				t.Fatal("not parked")
			}
			wake()
			select {
			case <-resumed:
			case <-time.After(limit):
				t.Fatal("not resumed")
			}
		}
	}
	conn, far := pair(t, socket.Config{Poller: poller})
	for _, want := range []string{"one", "two"} {
		got, err := read(conn, func() { _, _ = io.WriteString(far, want) })
		if got != want || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if _, err := read(conn, func() { _ = far.Close() }); !errors.Is(err, io.EOF) {
		t.Errorf("the far end closed: %v", err)
	}
	closed, _ := pair(t, socket.Config{Poller: poller})
	if _, err := read(closed, func() { _ = closed.Close() }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if closed.Park(func() {}) {
		t.Error("a closed connection is parked")
	}
	// After Finish reading waits for the peer to hang up.
	finished, far := pair(t, socket.Config{Poller: poller})
	got, err := read(finished, func() {
		finished.Finish()
		_, _ = io.WriteString(far, "bye")
	})
	if got != "bye" || err != nil {
		t.Errorf("finished: %q, %v", got, err)
	}
}
