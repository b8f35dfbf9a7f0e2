package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"time"
)

// resumer is one client that comes back. It only counts, so that many of them cost little: it
// looks at each event's position, which must be the next one.
type resumer struct {
	sse     bool
	address string
	since   string
	last    int64 // the newest event's position

	conn     net.Conn
	position int64
	count    int64
	ready    time.Duration
	err      error
}

func (r *resumer) close() {
	if r.conn != nil {
		_ = r.conn.Close()
	}
}

// run connects and reads until ready, which must come right after the last event.
func (r *resumer) run(ctx context.Context) error {
	from, _, _ := bytes.Cut([]byte(r.since), []byte("."))
	var err error
	if r.position, err = strconv.ParseInt(string(from), 10, 64); err != nil {
		return err
	}
	var dialer net.Dialer
	if r.conn, err = dialer.DialContext(ctx, "tcp", r.address); err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := r.conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	// A client that was cancelled does not read on.
	defer context.AfterFunc(ctx, r.close)()
	query := "?topics=watched&since=" + url.QueryEscape(r.since)
	request := "GET /ws" + query + " HTTP/1.1\r\nHost: " + r.address + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	status := "HTTP/1.1 101"
	if r.sse {
		request = "GET /api/stream" + query + " HTTP/1.1\r\nHost: " + r.address + "\r\n\r\n"
		status = "HTTP/1.1 200"
	}
	if _, err := io.WriteString(r.conn, request); err != nil {
		return err
	}
	reader := bufio.NewReaderSize(r.conn, 32<<10)
	for first := true; ; first = false {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read head: %w", err)
		}
		if first && !bytes.HasPrefix(line, []byte(status)) {
			return fmt.Errorf("the worker answered %q", line)
		}
		if len(bytes.TrimSpace(line)) == 0 {
			break
		}
	}
	if r.sse {
		return r.readStream(reader)
	}
	return r.readFrames(reader)
}

var errDone = errors.New("ready")

func (r *resumer) readFrames(reader *bufio.Reader) error {
	for {
		head, err := reader.Peek(2)
		if err != nil {
			return err
		}
		text, size, length := head[0] == 0x81, int(head[1]), 2
		switch {
		case size == 126:
			if head, err = reader.Peek(4); err != nil {
				return err
			}
			size, length = int(binary.BigEndian.Uint16(head[2:])), 4
		case size > 126:
			return errors.New("a frame that is longer than any event here")
		}
		frame, err := reader.Peek(length + size)
		if err != nil {
			return err
		}
		if text {
			err = r.take(frame[length:])
		} else if frame[0] != 0x89 {
			err = fmt.Errorf("a frame with opcode %#x: %q", frame[0], frame[length:])
		}
		if errors.Is(err, errDone) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := reader.Discard(length + size); err != nil {
			return err
		}
	}
}

func (r *resumer) readStream(reader *bufio.Reader) error {
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		message, ok := bytes.CutPrefix(line, []byte("data: "))
		if !ok {
			continue
		}
		if err := r.take(message); errors.Is(err, errDone) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// take takes one message; it returns errDone at the ready that is due.
func (r *resumer) take(message []byte) error {
	id, ok := bytes.CutPrefix(message, []byte(`{"id":"`))
	if !ok {
		switch {
		case bytes.HasPrefix(message, []byte(`{"type":"ping"`)):
			return nil
		case !bytes.HasPrefix(message, []byte(`{"type":"ready"`)) || !bytes.Contains(message, []byte(`"resumed":true`)):
			return fmt.Errorf("the worker said %s", message)
		case r.position != r.last:
			return fmt.Errorf("ready at position %d of %d", r.position, r.last)
		}
		return errDone
	}
	var position int64
	for _, c := range id {
		if c < '0' || c > '9' {
			break
		}
		position = 10*position + int64(c-'0')
	}
	r.count++
	if position != r.position+1 {
		return fmt.Errorf("position %d after %d", position, r.position)
	}
	r.position = position
	return nil
}
