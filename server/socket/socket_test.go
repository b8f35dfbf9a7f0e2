package socket_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trumpet-realtime/trumpet/server/socket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 20 * time.Second

// pair returns a socket and the far end of its connection.
func pair(t *testing.T, config socket.Config) (*socket.Conn, net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var dialer net.Dialer
	far, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = near.(*net.TCPConn).SetWriteBuffer(64 << 10)
	_ = far.(*net.TCPConn).SetReadBuffer(64 << 10)
	conn := socket.New(near, config)
	t.Cleanup(func() { _, _ = conn.Close(), far.Close() })
	_ = far.SetDeadline(time.Now().Add(limit))
	return conn, far
}

// frame is a WebSocket frame of size bytes in all, at least 10.
func frame(opcode byte, size int) []byte {
	b := make([]byte, size)
	b[0], b[1] = 0x80|opcode, 127
	binary.BigEndian.PutUint64(b[2:], uint64(size-10))
	return b
}

// Control frames of the library wait until the frame that is cut has ended.
func TestControlFramesNeverCutAFrame(t *testing.T) {
	t.Parallel()
	conn, far := pair(t, socket.Config{})
	data := frame(1, 1<<20)
	var sent [][]byte // the rest of the last one is still to be written
	var rest []byte
	for rest == nil {
		n, err := conn.TryWrite(data)
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, data)
		if n < len(data) {
			rest = data[n:]
		}
	}
	oldPong, pong, closing := []byte("\x8a\x03old"), []byte("\x8a\x03new"), []byte("\x88\x02\x03\xe8")
	for _, control := range [][]byte{oldPong, pong, closing} {
		if n, err := conn.Write(control); err != nil || n != len(control) {
			t.Fatal(n, err)
		}
	}
	if n, err := conn.TryWrite(data); n != 0 || err != nil {
		t.Fatalf("a held socket took %d bytes, %v", n, err)
	}
	written := make(chan error)
	go func() {
		for len(rest) > 0 {
			n, err := conn.WriteUntil(rest, time.Now().Add(time.Millisecond))
			rest = rest[n:]
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				written <- err
				return
			}
		}
		written <- conn.Release(time.Now().Add(limit))
	}()
	want := append(bytes.Join(sent, nil), append(pong, closing...)...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(far, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("frames are mixed")
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if n, err := conn.TryWrite(data[:10]); n != 10 || err != nil {
		t.Fatalf("a released socket took %d bytes, %v", n, err)
	}
}

// A control frame that does not fit waits, and somebody is told.
func TestBlockedControlFrame(t *testing.T) {
	t.Parallel()
	conn, far := pair(t, socket.Config{})
	blocked := make(chan struct{}, 1)
	conn.OnBlocked(func() { blocked <- struct{}{} })
	ping := []byte("\x89\x00")
	sent := 0
	for told := false; !told; {
		if _, err := conn.Write(ping); err != nil {
			t.Fatal(err)
		}
		sent += len(ping)
		select {
		case <-blocked:
			told = true
		default:
		}
	}
	conn.Hold()
	released := make(chan error)
	go func() { released <- conn.Release(time.Now().Add(limit)) }()
	got := make([]byte, sent)
	if _, err := io.ReadFull(far, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, bytes.Repeat(ping, sent/2)) {
		t.Error("frames are mixed")
	}
	if err := <-released; err != nil {
		t.Fatal(err)
	}
}

func TestFinish(t *testing.T) {
	t.Parallel()
	conn, far := pair(t, socket.Config{HalfClose: true, Early: []byte("early")})
	if _, err := conn.TryWrite([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	conn.Finish()
	if n, err := conn.TryWrite([]byte("more")); n != 0 || err == nil {
		t.Errorf("wrote %d bytes after the end", n)
	}
	if n, err := conn.Write([]byte("\x8a\x00")); n != 2 || err != nil {
		t.Errorf("a control frame after the end: %d, %v", n, err)
	}
	if got, err := io.ReadAll(far); err != nil || string(got) != "bye" {
		t.Errorf("got %q, %v", got, err)
	}
	// The far end does not hang up: reading ends all the same, after what was early.
	got, err := io.ReadAll(conn)
	if string(got) != "early" || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %q, %v", got, err)
	}
}

// A closed connection's descriptor is the next one's. Nothing goes there.
func TestNothingIsWrittenAfterClose(t *testing.T) {
	t.Parallel()
	closed, _ := pair(t, socket.Config{})
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	next, far := pair(t, socket.Config{})
	if n, err := closed.TryWrite([]byte("stale")); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("took %d bytes, %v", n, err)
	}
	if _, err := closed.Write([]byte("\x8a\x00")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a control frame: %v", err)
	}
	if _, err := next.TryWrite([]byte("fresh")); err != nil {
		t.Fatal(err)
	}
	_ = next.Close()
	if got, err := io.ReadAll(far); string(got) != "fresh" || err != nil {
		t.Errorf("the next connection got %q, %v", got, err)
	}
}

// What has no file descriptor, such as a TLS connection, is only written with waiting.
func TestWithoutDescriptor(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	conn := socket.New(near, socket.Config{})
	if n, err := conn.TryWrite([]byte("data")); n != 0 || err != nil {
		t.Fatalf("took %d bytes, %v", n, err)
	}
	if _, err := conn.Write([]byte("\x8a\x00")); err != nil {
		t.Fatal(err)
	}
	written := make(chan error)
	go func() {
		_, err := conn.WriteUntil([]byte("data"), time.Now().Add(limit))
		if err == nil {
			err = conn.Release(time.Now().Add(limit))
		}
		written <- err
	}()
	got := make([]byte, 6)
	if _, err := io.ReadFull(far, got); err != nil || string(got) != "\x8a\x00data" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}
