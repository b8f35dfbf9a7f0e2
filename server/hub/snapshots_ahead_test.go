package hub

import (
	"testing"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// The worker may be behind a snapshot that a live client asked for, and get there, and far beyond, in the
// moment in which the client's drainer looks. Still only what is up to the snapshot comes before it.
func TestSnapshotAheadOfTheWorker(t *testing.T) {
	t.Parallel()
	const tries, before, all = 30, 20, 400
	for range tries {
		h, s := withTable(t, 1)
		p := newPeer(t, h, Client{Format: wire.WebSocket, Interests: follow("a")}, false)
		p.expect(t, "ready")
		var events []trumpet.Event
		for i := range all {
			events = append(events, event(int64(i+1), 0, "a", false, 1))
		}
		s.gate = make(chan struct{})
		s.mu.Lock()
		s.at = events[before-1].ID
		s.mu.Unlock()
		if err := p.conn.Change(Change{Snapshot: true, Interests: follow("jobs")}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a read", func() bool { return s.now.Load() == 1 })
		close(s.gate)
		for i := range events {
			h.Append(events[i:i+1], events[i].ID)
		}
		for i := range before {
			if m := p.mustNext(t); m.ID != events[i].ID.String() {
				t.Fatalf("got %+v, want event %d", m, i+1)
			}
		}
		if m := p.mustNext(t); m.Type != "snapshot" {
			t.Fatalf("got %+v behind event %d, where the snapshot stands", m, before)
		}
		m := p.mustNext(t)
		if m.Type == "subscribed" {
			m = p.mustNext(t)
		}
		if m.ID != events[before].ID.String() {
			t.Fatalf("got %+v behind the snapshot", m)
		}
		p.hangUp()
		h.Close()
	}
}
