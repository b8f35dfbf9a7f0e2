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
)

// The handshake's key, which need not be random here, and its answer (RFC 6455, section 1.3).
const (
	webSocketKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	webSocketAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// follower is one connection that only reads. It does as little as it can, so that many of them
// cost little.
type follower struct {
	sse     bool
	address string
	query   string // of the URL

	conn   net.Conn
	reader *bufio.Reader
}

func (f *follower) close() {
	if f.conn != nil {
		_ = f.conn.Close()
	}
}

// follow connects and gives each message to take, until that returns an error, which is follow's.
// When ctx ends the connection does too.
func (f *follower) follow(ctx context.Context, take func(message []byte) error) error {
	var dialer net.Dialer
	var err error
	if f.conn, err = dialer.DialContext(ctx, "tcp", f.address); err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := f.conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	defer context.AfterFunc(ctx, f.close)()
	status := "HTTP/1.1 101"
	if f.sse {
		status = "HTTP/1.1 200"
	}
	if _, err := io.WriteString(f.conn, request(f.address, f.query, f.sse)); err != nil {
		return err
	}
	f.reader = bufio.NewReaderSize(f.conn, 32<<10)
	for first := true; ; first = false {
		line, err := f.reader.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read head: %w", err)
		}
		if first && !bytes.HasPrefix(line, []byte(status)) {
			rest, _ := io.ReadAll(io.LimitReader(f.reader, int64(f.reader.Buffered())))
			return fmt.Errorf("the worker answered %q: %s", line, rest)
		}
		if len(bytes.TrimSpace(line)) == 0 {
			break
		}
	}
	if f.sse {
		return f.readStream(take)
	}
	return f.readFrames(take)
}

// request asks for a WebSocket or a stream of events.
func request(address, query string, sse bool) string {
	if sse {
		return "GET /api/stream?" + query + " HTTP/1.1\r\nHost: " + address + "\r\n\r\n"
	}
	return "GET /ws?" + query + " HTTP/1.1\r\nHost: " + address + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + webSocketKey + "\r\n\r\n"
}

func (f *follower) readFrames(take func([]byte) error) error {
	for {
		head, err := f.reader.Peek(2)
		if err != nil {
			return err
		}
		opcode, size, length := head[0], int(head[1]), 2
		switch {
		case size == 126:
			if head, err = f.reader.Peek(4); err != nil {
				return err
			}
			size, length = int(binary.BigEndian.Uint16(head[2:])), 4
		case size > 126:
			return errors.New("a frame that is longer than anything here")
		}
		frame, err := f.reader.Peek(length + size)
		if err != nil {
			return err
		}
		switch opcode {
		case 0x81:
			err = take(frame[length:])
		case 0x89: // a ping; the answer is masked, with zeros
			pong := append([]byte{0x8a, 0x80 | byte(size), 0, 0, 0, 0}, frame[length:]...)
			_, err = f.conn.Write(pong)
		default:
			err = fmt.Errorf("a frame with opcode %#x: %q", opcode, frame[length:])
		}
		if err != nil {
			return err
		}
		if _, err := f.reader.Discard(length + size); err != nil {
			return err
		}
	}
}

func (f *follower) readStream(take func([]byte) error) error {
	for {
		line, err := f.reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		message, ok := bytes.CutPrefix(line, []byte("data: "))
		if !ok {
			continue
		}
		if err := take(bytes.TrimSuffix(message, []byte("\n"))); err != nil {
			return err
		}
	}
}

// position reads the digits that text begins with.
func position(text []byte) int64 {
	var n int64
	for _, c := range text {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int64(c-'0')
	}
	return n
}
