package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// Both targets over both transports, with what print shows: every client has every message, and a missing
// one is noticed.
func TestSinkHasWhatTargetsGive(t *testing.T) {
	t.Parallel()
	for _, format := range formats {
		for _, target := range new(fanout).targets() {
			t.Run(target.name+" over "+format.name, func(t *testing.T) {
				t.Parallel()
				listener, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				reader, writer := io.Pipe()
				in := bufio.NewReader(reader)
				const clients, topics, stalled, count = 24, 2, 2, 300
				ended := make(chan error, 1)
				go func() {
					if target.name == "loop" {
						ended <- runLoop(listener, in, wireFormats[format.name], topicNames(topics))
						return
					}
					ended <- runHub(t.Context(), listener, in, topicNames(topics))
				}()
				s, err := dialSink(listener.Addr().String(), audience{
					clients: clients, topics: topicNames(topics), stalled: stalled, sse: format.name == "sse", messages: numbered,
				})
				if err != nil {
					t.Fatal(err)
				}
				r := &running{sink: s, in: writer, each: (clients - stalled) / topics, size: 200}
				for deadline := time.Now().Add(20 * time.Second); s.ready.Load() < clients; {
					if err := errors.Join(s.failed(), sleep(t.Context(), time.Millisecond)); err != nil || time.Now().After(deadline) {
						t.Fatalf("%d of %d are ready: %v", s.ready.Load(), clients, err)
					}
				}
				s.recording(true)
				for range count {
					if err := r.publish(time.Now()); err != nil {
						t.Fatal(err)
					}
				}
				if err := errors.Join(r.await(t.Context(), count), s.complete(count)); err != nil {
					t.Fatal(err)
				}
				if delays := s.recording(false); len(delays) != (clients-stalled)/topics*count {
					t.Errorf("%d delays were noted", len(delays))
				}
				r.published += topics // one of each topic is left out
				if err := r.publish(time.Now()); err != nil {
					t.Fatal(err)
				}
				if err := r.await(t.Context(), count+1); err == nil {
					t.Error("a missing message is not noticed")
				}
				if err := errors.Join(s.close(), writer.Close(), <-ended); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// Messages are found wherever the stream of bytes was cut.
func TestSinkTakesMessagesInPieces(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_795_000_000, 123)
	stream := []byte("HTTP/1.1 200 OK\r\n\r\nevent: ready\ndata: {\"type\":\"ready\"}\n\n")
	for n := range int64(12) {
		stream = message(append(stream, "data: "...), n+1, at, 80+int(n))
	}
	for piece := 1; piece < len(stream); piece += 7 {
		s, c, total := &sink{record: true, parse: numbered, step: 1}, &sinkConn{}, int64(0)
		for from := 0; from < len(stream); from += piece {
			n, err := s.take(c, stream[from:min(from+piece, len(stream))])
			if err != nil {
				t.Fatalf("in pieces of %d: %v", piece, err)
			}
			total += n
		}
		if total != 12 || c.last != 12 || s.ready.Load() != 1 || len(s.noted) != 12 {
			t.Errorf("in pieces of %d: %d messages, up to %d", piece, total, c.last)
		}
	}
	log, c := &sink{parse: committed, step: 1}, &sinkConn{live: true, last: 41}
	if n, err := log.take(c, []byte(`{"id":"42.0-0000abcd","topic":"a"}{"id":"43.0-0000abcd","topic":"b"}{"id":"4`)); n != 2 || err != nil || c.last != 43 {
		t.Errorf("of the log came %d, up to %d: %v", n, c.last, err)
	}
	if _, err := log.take(c, []byte(`5.0-0000abcd"}`)); err == nil {
		t.Error("a gap in the log is not noticed")
	}
	refused := &sinkConn{}
	if _, err := new(sink).take(refused, []byte("HTTP/1.1 503 Service Unavailable\r\n\r\n")); err == nil {
		t.Error("a refusal is taken for a stream")
	}
}
