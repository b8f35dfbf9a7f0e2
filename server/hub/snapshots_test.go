package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// source is Snapshots that waits for its gate.
type source struct {
	*world
	gate  chan struct{}
	err   error
	now   atomic.Int64
	most  atomic.Int64
	begun atomic.Int64
}

func (s *source) ReadSnapshot(ctx context.Context, requests []trumpet.SnapshotRequest, limits trumpet.SnapshotLimits) (trumpet.Snapshot, error) {
	s.begun.Add(1)
	if now := s.now.Add(1); now > s.most.Load() {
		s.most.Store(now)
	}
	defer s.now.Add(-1)
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return trumpet.Snapshot{}, ctx.Err()
		}
	}
	if s.err != nil {
		return trumpet.Snapshot{}, s.err
	}
	return s.world.ReadSnapshot(ctx, requests, limits)
}

// withTable returns a hub whose table has some open jobs.
func withTable(t *testing.T, rows int) (*Hub, *source) {
	t.Helper()
	h := start(t, Config{})
	s := &source{world: &world{hub: h, rows: map[int]job{}}}
	open := "open"
	for i := range rows {
		s.rows[i+1] = job{ID: i + 1, Status: &open, N: i % 10}
	}
	h.UseSnapshots(s)
	return h, s
}

// Whoever asks for the same while it is read, or right after, shares one read; and not more
// than two are read at once.
func TestSnapshotsAreShared(t *testing.T) {
	t.Parallel()
	h, s := withTable(t, 1500)
	s.gate = make(chan struct{})
	var peers []*peer
	for i := range 60 {
		filter := "jobs?id=gt." + strconv.Itoa(i%3)
		peers = append(peers, newPeer(t, h, Client{Format: wire.Format(i % 2), Interests: interestsIn(t, filter), Snapshot: true}, false))
	}
	eventually(t, "two reads", func() bool { return s.now.Load() == shotReads })
	close(s.gate)
	for i, p := range peers {
		rows := 0
		for page := 1; ; page++ {
			m := p.expect(t, "snapshot")
			if m.Page != page || m.Topic != "jobs" || m.ID != "" || m.sse != "" {
				t.Fatalf("got page %d of %q with id %q %q, want page %d", m.Page, m.Topic, m.ID, m.sse, page)
			}
			rows += len(m.Rows)
			if !m.More {
				break
			}
		}
		if rows != 1500-i%3 {
			t.Errorf("client %d got %d rows", i, rows)
		}
		if m := p.expect(t, "ready"); m.Resumed || m.ID == "" {
			t.Errorf("got %+v", m)
		}
	}
	if begun, most := s.begun.Load(), s.most.Load(); begun != 3 || most > shotReads {
		t.Errorf("%d reads, %d at once", begun, most)
	}
	if st := h.Stats(); st.Snapshots != 3 || st.SnapshotClients != 60 {
		t.Errorf("counted %d snapshots for %d clients", st.Snapshots, st.SnapshotClients)
	}
	for _, p := range peers {
		p.hangUp()
	}
	eventually(t, "no snapshot held", func() bool {
		h.shots.idle()
		h.shots.mu.Lock()
		defer h.shots.mu.Unlock()
		return h.shots.bytes == 0 && len(h.shots.newest) == 0
	})
}

// What cannot be read ends a newcomer, and is refused to one who is live, who goes on.
func TestSnapshotThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err    error
		ending trumpet.Ending
	}{
		{trumpet.Refuse(trumpet.ErrTooLarge, "more than 10 rows"), trumpet.EndingTooLarge},
		{trumpet.Refuse(trumpet.ErrNotReadable, "no right"), trumpet.EndingUnauthorized},
	} {
		for _, format := range []wire.Format{wire.WebSocket, wire.SSE} {
			h, s := withTable(t, 3)
			s.err = fmt.Errorf("read: %w", test.err)
			p := newPeer(t, h, Client{Format: format, Interests: follow("jobs"), Snapshot: true}, false)
			if format == wire.WebSocket {
				p.expect(t, "error")
			}
			p.expectEnd(t, test.ending)
			p.hangUp()
		}
		h, s := withTable(t, 3)
		s.err = fmt.Errorf("read: %w", test.err)
		p := newPeer(t, h, Client{Format: wire.WebSocket, Interests: follow("a")}, false)
		p.expect(t, "ready")
		if err := p.conn.Change(Change{Ref: json.RawMessage("7"), Snapshot: true, Interests: follow("jobs")}); err != nil {
			t.Fatal(err)
		}
		if m := p.expect(t, "refused"); m.Message != test.err.Error() || string(m.Ref) != "7" {
			t.Errorf("got %+v", m)
		}
		events := []trumpet.Event{event(1, 0, "jobs", true, 1), event(2, 0, "a", false, 1)}
		h.Append(events, last(events))
		if m := p.mustNext(t); m.Topic != "a" {
			t.Errorf("got %+v", m)
		}
		p.hangUp()
	}
}

// A live client that asks for a snapshot gets all that it follows up to the snapshot's place
// first, and its answer after the rows.
func TestSnapshotOnALiveConnection(t *testing.T) {
	t.Parallel()
	h, s := withTable(t, 3)
	p := newPeer(t, h, Client{Format: wire.WebSocket, Interests: follow("a")}, false)
	p.expect(t, "ready")
	s.gate = make(chan struct{})
	if err := p.conn.Change(Change{Ref: json.RawMessage(`"x"`), Snapshot: true, Interests: interestsIn(t, "jobs?id=gte.2")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a read", func() bool { return s.now.Load() == 1 })
	// The worker is behind the snapshot: it has not heard of 1 and 2 yet.
	events := []trumpet.Event{event(1, 0, "a", false, 1), event(2, 0, "b", false, 1)}
	s.mu.Lock()
	s.at = last(events)
	s.mu.Unlock()
	close(s.gate)
	h.Append(events, last(events))
	if m := p.mustNext(t); m.ID != events[0].ID.String() {
		t.Fatalf("got %+v", m)
	}
	if m := p.expect(t, "snapshot"); len(m.Rows) != 2 || m.More {
		t.Fatalf("got %+v", m)
	}
	if m := p.expect(t, "subscribed"); len(m.Topics) != 2 || string(m.Ref) != `"x"` || m.ID != last(events).String() {
		t.Fatalf("got %+v", m)
	}
	p.hangUp()
}

// A filter whose column is gone cannot be answered: who is live is sent away to come back, and
// who resumes must fetch all anew.
func TestAColumnIsGone(t *testing.T) {
	t.Parallel()
	for _, filter := range []string{"jobs?status=eq.open", "jobs?status=neq.open"} {
		for _, format := range []wire.Format{wire.WebSocket, wire.SSE} {
			h, _ := withTable(t, 3)
			p := newPeer(t, h, Client{Format: format, Interests: interestsIn(t, filter)}, false)
			p.expect(t, "ready")
			open := "open"
			fits := trumpet.Event{
				ID: trumpet.EventID{Position: 1, Tag: 1}, Topic: "jobs", Op: trumpet.OpInsert,
				Key: json.RawMessage(`{"id":1}`), New: job{ID: 1, Status: &open}.json(),
			}
			if filter != "jobs?status=eq.open" {
				fits.New = json.RawMessage(`{"id":1,"status":"x","n":1}`)
			}
			gone := fits
			gone.ID = trumpet.EventID{Position: 2, Tag: 2}
			gone.New = json.RawMessage(`{"id":1,"state":"open","n":1}`)
			events := []trumpet.Event{fits, gone}
			h.Append(events, last(events))
			if m := p.mustNext(t); m.ID != fits.ID.String() {
				t.Fatalf("%s: got %+v", filter, m)
			}
			p.expectEnd(t, trumpet.EndingSchemaChanged)
			p.hangUp()
			for _, snapshot := range []bool{false, true} {
				back := newPeer(t, h, Client{Format: format, Interests: interestsIn(t, filter), Resume: true, Since: fits.ID, Snapshot: snapshot}, false)
				if m := back.expect(t, "reset"); m.Reason != "schema" || (m.ID == "") != snapshot {
					t.Fatalf("got %+v", m)
				}
				if snapshot {
					back.expect(t, "snapshot")
				}
				back.hangUp()
			}
		}
	}
}

// The newest result of a live query is given to newcomers, once, and without an id.
func TestResultsAreRetained(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	result := func(position int64, text string) trumpet.Event {
		return trumpet.Event{
			ID: trumpet.EventID{Position: position, Tag: uint32(position)}, Topic: "stats", Op: trumpet.OpResult, AsOf: position - 1,
			Data: json.RawMessage(text),
		}
	}
	h.Retain([]trumpet.Event{result(1, `"old"`)})
	early := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("stats", "a")}, false)
	if m := early.mustNext(t); string(m.Data) != `"old"` || m.ID != "" || m.sse != "" || m.Op != "result" {
		t.Fatalf("got %+v", m)
	}
	early.expect(t, "ready")
	events := []trumpet.Event{result(2, `"new"`), event(3, 0, "a", false, 1)}
	h.Append(events, last(events))
	if m := early.mustNext(t); string(m.Data) != `"new"` || m.ID != events[0].ID.String() {
		t.Fatalf("got %+v", m)
	}
	early.mustNext(t)
	late := newPeer(t, h, Client{Format: wire.WebSocket, Interests: follow("a")}, false)
	late.expect(t, "ready")
	if err := late.conn.Change(Change{Interests: follow("stats")}); err != nil {
		t.Fatal(err)
	}
	if m := late.mustNext(t); string(m.Data) != `"new"` || m.ID != "" {
		t.Fatalf("got %+v", m)
	}
	late.expect(t, "subscribed")
	// One that resumes has it, or is given it in its place.
	back := newPeer(t, h, Client{Format: wire.SSE, Interests: follow("stats"), Resume: true, Since: events[0].ID}, false)
	back.expect(t, "ready")
	// What the log lost is not given any more.
	h.Rewind(trumpet.EventID{})
	h.Retain([]trumpet.Event{result(1, `"old"`)})
	for _, p := range []*peer{early, late, back} {
		p.expect(t, "reset")
		p.expect(t, "ready")
		if m := p.mustNext(t); string(m.Data) != `"old"` || m.ID != "" {
			t.Fatalf("got %+v", m)
		}
		p.hangUp()
	}
}
