package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server"
	"github.com/trumpet-realtime/trumpet/server/hub"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// runTarget is a process that is measured. It says on standard output where it listens, and gives its
// clients what standard input says: each line is a message's data. It ends with standard input.
func runTarget(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("target takes a name, a format and a number of topics, and got %q", args)
	}
	topics, err := strconv.Atoi(args[2])
	if err != nil || topics < 1 {
		return fmt.Errorf("%q is not a number of topics", args[2])
	}
	if err := allowFiles(64); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	in := bufio.NewReaderSize(os.Stdin, 64<<10)
	if args[0] == "loop" {
		return runLoop(listener, in, wireFormats[args[1]], topicNames(topics))
	}
	return runHub(ctx, listener, in, topicNames(topics))
}

// topicNames are so many topics' names.
func topicNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = "bench" + strconv.Itoa(i)
	}
	return names
}

var wireFormats = map[string]wire.Format{"websocket": wire.WebSocket, "sse": wire.SSE}

// nextMessages waits for a message, and returns all that have come. At the end of input it returns io.EOF.
func nextMessages(in *bufio.Reader, topics []string) (events []trumpet.Event, err error) {
	for len(events) == 0 || in.Buffered() > 0 {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		data := bytes.TrimSuffix(line, []byte("\n"))
		number, intended, size := parseStart(data)
		if size == 0 {
			return nil, fmt.Errorf("not a message: %q", data)
		}
		events = append(events, trumpet.Event{
			ID: trumpet.EventID{Position: number, Tag: 1}, Topic: topics[int(number-1)%len(topics)], Op: trumpet.OpBroadcast,
			At: time.Unix(0, intended), Data: data,
		})
	}
	return events, nil
}

// runHub is a worker without Postgres: what it reads is appended to its hub.
func runHub(ctx context.Context, listener net.Listener, in *bufio.Reader, topics []string) (err error) {
	h, err := hub.New(hub.Config{Worker: "bench"})
	if err != nil {
		return err
	}
	defer h.Close()
	h.Reset(trumpet.EventID{})
	h.Live()
	s, err := server.New(server.Config{Hub: h, Publisher: alone{}, Cluster: alone{}, Drain: time.Millisecond})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, listener) }()
	for {
		events, err := nextMessages(in, topics)
		if err != nil {
			cancel()
			return errors.Join(<-served, unlessEOF(err))
		}
		h.Append(events, events[len(events)-1].ID)
	}
}

func unlessEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// alone is the cluster of a worker that has no Postgres.
type alone struct{}

func (alone) Publish(context.Context, string, json.RawMessage) (trumpet.EventID, error) {
	return trumpet.EventID{}, errors.New("there is no Postgres")
}
func (alone) Status() server.BusStatus { return server.BusStatus{Connected: true} }
func (alone) Ask(context.Context) ([]json.RawMessage, int, error) {
	return nil, 0, errors.New("there are no others")
}

// loop is the least that can be done: one thread that writes each message, encoded once, to one socket
// after the other.
type loop struct {
	format wire.Format
	mu     sync.Mutex
	conns  []net.Conn // not to be collected
	fds    map[string][]int
}

func runLoop(listener net.Listener, in *bufio.Reader, format wire.Format, topics []string) error {
	l := &loop{format: format, fds: make(map[string][]int)}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if err := l.welcome(conn); err != nil {
				fmt.Fprintln(os.Stderr, "trumpet-bench: target:", err)
				return
			}
		}
	})
	defer accepting.Wait()
	defer listener.Close()
	for {
		events, err := nextMessages(in, topics)
		if err != nil {
			return unlessEOF(err)
		}
		l.mu.Lock()
		for i := range events {
			frame := wire.EncodeEvent(format, wire.Whole, &events[i], false)
			for _, fd := range l.fds[events[i].Topic] {
				if err := writeAll(fd, frame); err != nil {
					l.mu.Unlock()
					return err
				}
			}
		}
		l.mu.Unlock()
	}
}

// welcome reads a request, which comes in one piece, and answers it.
func (l *loop) welcome(conn net.Conn) error {
	var buffer [1024]byte
	n, err := conn.Read(buffer[:])
	if err != nil || !bytes.HasSuffix(buffer[:n], []byte("\r\n\r\n")) {
		return fmt.Errorf("read request %q: %w", buffer[:n], err)
	}
	answer := []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + webSocketAccept + "\r\n\r\n")
	if l.format == wire.SSE {
		answer = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	_, topic, _ := strings.Cut(string(buffer[:n]), "topics=")
	topic = topic[:max(0, strings.IndexAny(topic, " &"))]
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := raw.Control(func(fd uintptr) { l.fds[topic] = append(l.fds[topic], int(fd)) }); err != nil { //nolint:gosec // a file descriptor
		return err
	}
	l.conns = append(l.conns, conn)
	_, err = conn.Write(wire.AppendReady(answer, l.format, trumpet.EventID{}, false, "loop"))
	return err
}

// writeAll waits where the socket's buffer is full: there is nobody else to serve meanwhile.
func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case err == nil:
			b = b[n:]
		case errors.Is(err, unix.EAGAIN):
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1); err != nil && !errors.Is(err, unix.EINTR) { //nolint:gosec // a file descriptor
				return err
			}
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}
