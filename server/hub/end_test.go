package hub

import (
	"context"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// A reader that is about to subscribe when its connection ends is not left waiting.
func TestChangeAfterTheEnd(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	p := newPeer(t, h, Client{Format: wire.WebSocket}, false)
	p.expect(t, "ready")
	p.conn.End(trumpet.EndingUnauthorized)
	p.expect(t, "error")
	p.expectEnd(t, trumpet.EndingUnauthorized)
	if err := p.conn.Change(Change{Interests: follow("a")}); err == nil {
		t.Error("subscribed after the end")
	}
	p.hangUp()
}

func TestPingAndUnresponsive(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Ping: 500 * time.Millisecond})
	answering := newPeer(t, h, Client{Format: wire.WebSocket}, false)
	silent := newPeer(t, h, Client{Format: wire.WebSocket}, false)
	stream := newPeer(t, h, Client{Format: wire.SSE}, false)
	for _, p := range []*peer{answering, silent, stream} {
		p.expect(t, "ready")
	}
	for range 3 {
		m, err := answering.next()
		if err != nil || m.Type != "ping" || m.ID == "" {
			t.Fatalf("got %+v, %v", m, err)
		}
		if m, err := answering.next(); err != nil || m.opcode != 9 {
			t.Fatalf("got %+v, %v, want a protocol ping", m, err)
		}
		answering.conn.Heard() // what the server does at a pong
		if m, err := stream.next(); err != nil || m.Type != "ping" || m.sse != m.ID {
			t.Fatalf("got %+v, %v", m, err)
		}
	}
	silent.expectEnd(t, trumpet.EndingUnresponsive)
	for _, p := range []*peer{answering, silent, stream} {
		p.hangUp()
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	var peers []*peer
	for i := range 60 {
		p := newPeer(t, h, Client{Format: wire.Format(i % 2), Interests: follow([]string{"big", "a"}[min(i, 1)])}, i == 0)
		p.expect(t, "ready")
		peers = append(peers, p)
	}
	// One of them lags, and is told all the same.
	big := []trumpet.Event{event(1, 0, "big", false, 1<<20)}
	h.Append(big, last(big))
	eventually(t, "it lags", func() bool { return h.Stats().Lagging == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	const over = 300 * time.Millisecond
	began := time.Now()
	drained := make(chan error)
	go func() { drained <- h.Drain(ctx, over) }()
	peers[0].expectEvents(t, expected(big, "big"))
	for _, p := range peers {
		p.expectEnd(t, trumpet.EndingDraining)
		_ = p.far.Close()
	}
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < over/2 {
		t.Errorf("all were sent away within %v", took)
	}
	if n := h.Stats().Endings["draining"]; n != uint64(len(peers)) {
		t.Errorf("%d were sent away", n)
	}
	late := newPeer(t, h, Client{Format: wire.SSE}, false)
	late.expectEnd(t, trumpet.EndingDraining)
	late.hangUp()
	h.Close()
	if _, err := h.Attach(Client{}); err == nil {
		t.Error("attached to a closed hub")
	}
}

func TestCloseCutsEverybody(t *testing.T) {
	t.Parallel()
	h, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	waits := newPeer(t, h, Client{Format: wire.SSE}, false)
	h.Reset(trumpet.EventID{})
	waits.expect(t, "ready")
	lags := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("a")}, true)
	lags.expect(t, "ready")
	big := []trumpet.Event{event(1, 0, "a", false, 1<<20)}
	h.Append(big, last(big))
	eventually(t, "lagging", func() bool { return h.Stats().Lagging == 1 })
	h.Close()
	waits.hangUp()
	lags.hangUp()
}
