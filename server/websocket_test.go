package server_test

import (
	"testing"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/hub"
)

func TestWebSocketLive(t *testing.T) {
	t.Parallel()
	w := start(t, hub.Config{Worker: "w1"}, nil)
	w.begin()
	conn := w.dial(t, "/ws/dispatch")
	if m := expect(t, conn, "ready"); m.Resumed || m.Worker != "w1" || m.ID != "0.0-00000000" {
		t.Fatalf("ready is %+v", m)
	}
	// The hub may have become live just behind.
	w.give(broadcast(1, "dispatch"), broadcast(2, "elsewhere"), broadcast(3, "jobs"))
	for _, want := range []int64{1, 3} {
		m := next(t, conn)
		for m.Type != "" {
			m = next(t, conn)
		}
		if id := (trumpet.EventID{Position: want, Tag: uint32(want)}); m.ID != id.String() {
			t.Fatalf("got %+v, want %v", m, id)
		}
	}
}
