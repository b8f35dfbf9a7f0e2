package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// sink is many connections that only read, by one thread with epoll(7), so that it is not what a
// measurement measures. It takes no frames apart: it looks for numbered messages in the stream of bytes,
// and notes when one is missing, comes twice, or comes late.
type sink struct {
	epoll  int
	conns  []sinkConn
	buffer []byte
	hello  []byte // what each client says first
	parse  parser
	step   int64 // how many numbers lie between two messages of a client

	ready   atomic.Int64 // connections that were told so
	total   atomic.Int64 // messages, of all connections together
	goal    atomic.Int64 // of total; who waits for it is told by reached
	reached chan struct{}

	mu     sync.Mutex
	record bool // note arrivals
	noted  []arrived
	err    error // the first one

	done sync.WaitGroup
	stop atomic.Bool
}

// arrived is a message that one client was given.
type arrived struct {
	number   int64
	at       time.Time
	intended int64 // when, in Unix nanoseconds, where the message says so
}

// delay is how long it took.
func (a arrived) delay() time.Duration { return a.at.Sub(time.Unix(0, a.intended)) }

type sinkConn struct {
	fd      int
	stalled bool // it stops reading once it is live
	said    bool // hello, after the server's head
	live    bool
	rest    []byte // not taken yet
	last    int64  // the number of the newest message
}

const (
	// pongEvery is how often WebSocket clients give a sign of life, so that pings need not be looked for.
	pongEvery = 10 * time.Second
	// connectCommand is the first that a client of centrifuge says.
	connectCommand = `{"id":1,"connect":{}}`
	// messageStart is what a message's data begin with: {"n":number,"t":nanoseconds of its intended time,…
	messageStart = `{"n":`
	// eventStart is what an event begins with: {"id":"position.ordinal-tag",…
	eventStart = `{"id":"`
)

// parser is how messages are found, and taken apart.
type parser struct {
	start string
	// parse reads the beginning of a message, which begins with start: its number, when it was intended, and
	// how much was read, which is 0 if that is not all there.
	parse func(text []byte) (number, intended int64, size int)
}

var (
	numbered = parser{messageStart, parseStart}
	// committed finds events of the log, of which the sink sees all: their positions are their numbers.
	committed = parser{eventStart, parseID}
)

// audience is who is to be connected.
type audience struct {
	clients    int
	topics     []string // clients follow one each, in turn; and messages are for one each, in turn
	stalled    int      // so many of them stop reading once they are live
	sse        bool     // which of the two transports
	centrifuge bool     // they say what a client of centrifuge says
	messages   parser
}

// dialSink connects and starts the goroutines that read and send pongs.
func dialSink(address string, a audience) (*sink, error) {
	clients := a.clients
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	s := &sink{
		epoll: epoll, buffer: make([]byte, 256<<10), reached: make(chan struct{}, 1), conns: make([]sinkConn, clients),
		parse: a.messages, step: int64(len(a.topics)),
	}
	for i := range s.conns {
		s.conns[i].fd, s.conns[i].stalled = -1, i < a.stalled
		s.conns[i].last = int64(i%len(a.topics)) + 1 - s.step
	}
	s.done.Go(s.read)
	// What centrifuge is to be told, and Trumpet does not mind: a command in the URL, or in a frame, which is
	// masked with zeros.
	after := ""
	if a.sse {
		after = "&cf_connect=" + url.QueryEscape(connectCommand)
	} else {
		s.done.Go(s.pong)
		if a.centrifuge {
			s.hello = append([]byte{0x81, 0x80 | byte(len(connectCommand)), 0, 0, 0, 0}, connectCommand...)
		}
	}
	for i := range s.conns {
		if err := s.dial(i, at, request(address, "topics="+a.topics[i%len(a.topics)]+after, a.sse)); err != nil {
			return nil, errors.Join(fmt.Errorf("connect client %d: %w", i, err), s.close())
		}
	}
	return s, nil
}

func (s *sink) dial(i int, at netip.AddrPort, request string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.conns[i].fd = fd
	s.mu.Unlock()
	if s.conns[i].stalled { // the less fits in between, the sooner it is in the way
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10); err != nil {
			return err
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte(request)); err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	return unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}) //nolint:gosec // few
}

// read is the goroutine that reads all.
func (s *sink) read() {
	runtime.LockOSThread()
	events := make([]unix.EpollEvent, 512)
	for !s.stop.Load() {
		n, err := unix.EpollWait(s.epoll, events, 50)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			s.fail(fmt.Errorf("epoll: %w", err))
			return
		}
		s.mu.Lock()
		got := int64(0)
		for _, e := range events[:n] {
			c := &s.conns[e.Fd]
			size, err := unix.Read(c.fd, s.buffer)
			switch {
			case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
				continue
			case err == nil && size > 0:
				var n int64
				n, err = s.take(c, s.buffer[:size])
				got += n
				if err == nil && !(c.stalled && c.live) {
					continue
				}
			case err == nil:
				err = fmt.Errorf("the server hung up after message %d: %q", c.last, c.rest)
			}
			_ = unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, c.fd, nil)
			if s.err == nil && err != nil {
				s.err = fmt.Errorf("client %d: %w", e.Fd, err)
			}
		}
		failed := s.err != nil
		s.mu.Unlock()
		if total, goal := s.total.Add(got), s.goal.Load(); failed || total >= goal && goal > 0 {
			select {
			case s.reached <- struct{}{}:
			default:
			}
		}
	}
}

func (s *sink) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

// take counts the messages in what a connection got.
func (s *sink) take(c *sinkConn, text []byte) (messages int64, err error) {
	if len(c.rest) > 0 {
		c.rest = append(c.rest, text...)
		text = c.rest
	}
	if !c.live {
		if !c.said && bytes.Contains(text, []byte("\r\n\r\n")) {
			if !bytes.HasPrefix(text, []byte("HTTP/1.1 101")) && !bytes.HasPrefix(text, []byte("HTTP/1.1 200")) {
				return 0, fmt.Errorf("the server answered %q", text)
			}
			c.said = true
			if len(s.hello) > 0 {
				if _, err := unix.Write(c.fd, s.hello); err != nil {
					return 0, err
				}
			}
		}
		at := bytes.Index(text, []byte(`"ready"`))
		if at < 0 {
			c.keep(text)
			return 0, nil
		}
		c.live, text = true, text[at:]
		s.ready.Add(1)
	}
	now := time.Now()
	for {
		at := bytes.Index(text, []byte(s.parse.start))
		if at < 0 {
			c.keep(text[max(0, len(text)-len(s.parse.start)+1):])
			return messages, nil
		}
		number, intended, size := s.parse.parse(text[at:])
		if size == 0 {
			c.keep(text[at:])
			return messages, nil
		}
		if number != c.last+s.step {
			return messages, fmt.Errorf("after message %d came %d", c.last, number)
		}
		c.last = number
		messages++
		if s.record {
			s.noted = append(s.noted, arrived{number, now, intended})
		}
		text = text[at+size:]
	}
}

// keep keeps what is to be looked at with what comes next.
func (c *sinkConn) keep(text []byte) { c.rest = append(c.rest[:0], text...) }

// parseStart reads the beginning of a message's data; size is 0 if that is not all there.
func parseStart(text []byte) (number, intended int64, size int) {
	const second = `,"t":`
	rest := text[len(messageStart):]
	end := bytes.IndexByte(rest, ',')
	if end < 0 || len(rest) < end+len(second) || string(rest[end:end+len(second)]) != second {
		return 0, 0, 0
	}
	number, rest = position(rest[:end]), rest[end+len(second):]
	if end = bytes.IndexByte(rest, ','); end < 0 {
		return 0, 0, 0
	}
	return number, position(rest[:end]), len(text) - len(rest) + end
}

// parseID reads the beginning of an event.
func parseID(text []byte) (number, intended int64, size int) {
	rest := text[len(eventStart):]
	end := bytes.IndexByte(rest, '.')
	if end < 0 {
		return 0, 0, 0
	}
	return position(rest[:end]), 0, len(eventStart) + end
}

// message is numbered data of some size.
func message(dst []byte, number int64, intended time.Time, size int) []byte {
	start := len(dst)
	dst = append(dst, messageStart...)
	dst = strconv.AppendInt(dst, number, 10)
	dst = append(dst, `,"t":`...)
	dst = strconv.AppendInt(dst, intended.UnixNano(), 10)
	dst = append(dst, `,"pad":"`...)
	for len(dst)-start < size-2 {
		dst = append(dst, 'x')
	}
	return append(dst, `"}`...)
}

// pong has every client give a sign of life now and then (RFC 6455, section 5.5.3: a pong may come unasked).
func (s *sink) pong() {
	frame := []byte{0x8a, 0x80, 0, 0, 0, 0}
	for next := time.Now().Add(pongEvery); !s.stop.Load(); time.Sleep(50 * time.Millisecond) {
		if time.Now().Before(next) {
			continue
		}
		next = time.Now().Add(pongEvery)
		s.mu.Lock()
		for i := range s.conns {
			if s.conns[i].live {
				_, _ = unix.Write(s.conns[i].fd, frame) // who is gone is noticed by read
			}
		}
		s.mu.Unlock()
	}
}

// awaitReady returns when all connections were told that they are live.
func (s *sink) awaitReady(ctx context.Context) error {
	for s.ready.Load() < int64(len(s.conns)) {
		if err := errors.Join(s.failed(), sleep(ctx, time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

// failed returns what went wrong so far.
func (s *sink) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// complete reports an error unless every client that reads has had every message up to a number.
func (s *sink) complete(number int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.conns {
		if s.conns[i].last <= number-s.step && !s.conns[i].stalled {
			return fmt.Errorf("client %d has messages up to %d, of %d", i, s.conns[i].last, number)
		}
	}
	return s.err
}

// recording begins to note arrivals, or returns those that were noted.
func (s *sink) recording(on bool) []arrived {
	s.mu.Lock()
	defer s.mu.Unlock()
	noted := s.noted
	s.record, s.noted = on, nil
	return noted
}

// close hangs up and waits.
func (s *sink) close() error {
	s.stop.Store(true)
	s.done.Wait()
	for i := range s.conns {
		if s.conns[i].fd >= 0 {
			_ = unix.Close(s.conns[i].fd)
		}
	}
	return unix.Close(s.epoll)
}
