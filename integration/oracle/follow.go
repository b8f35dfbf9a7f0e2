package oracle

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// take handles one message: it is looked at as far as that is possible without the log, kept
// for the comparison with the log, and applied.
func (c *client) take(conn *connection, frame trumpettest.Frame) {
	m, err := frame.Decode()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spoiled {
		return
	}
	c.messages++
	if err != nil {
		c.fail(breaks(ordered, "it got what is no message: %v", err))
		return
	}
	if c.transport == trumpettest.SSE && (frame.Name != m.Type || m.IsEvent() && frame.ID != m.ID) {
		c.fail(breaks(ordered, "the SSE event is called %q and has the id %q: %.200s", frame.Name, frame.ID, frame.Text))
	}
	var id trumpet.EventID
	if m.ID != "" {
		if id, err = trumpet.ParseEventID(m.ID); err != nil {
			c.fail(breaks(ordered, "it got the id %q: %v", m.ID, err))
			return
		}
	}
	var wrong *broken
	switch m.Type {
	case "":
		wrong = c.event(conn, &m, id)
	case "ready":
		wrong = c.ready(conn, &m, id)
	case "reset":
		wrong = c.reset(conn, &m, id)
	case "snapshot":
		wrong = c.snapshot(conn, &m)
	case "subscribed":
		wrong = c.subscribed(&m, id)
	case "refused":
		wrong = c.refused(conn, &m)
	case "ping":
		wrong = c.claim(id, "a ping")
		c.last = m.ID
	case "stale", "live":
		c.note("is told that it is %s", m.Type)
	case "error":
		conn.ended = m.Code
		c.note("is told %s", frame.Text)
		if m.Retry == nil || !*m.Retry {
			wrong = breaks(counted, "it was sent away for good: %s", frame.Text)
		}
	}
	if wrong != nil {
		c.fail(wrong)
	}
}

// fail tells of a broken invariant, once for a client: nothing after it can be trusted. The client's mu is
// held.
func (c *client) fail(b *broken) {
	if !c.spoiled {
		c.spoiled = true
		c.run.failClient(c, b)
	}
}

func (c *client) event(conn *connection, m *trumpettest.Message, id trumpet.EventID) *broken {
	c.run.tally.events.Add(1)
	if m.Op == string(trumpet.OpResult) {
		if c.interest[m.Topic] == 0 && (c.board == nil || c.board.wish == nil) {
			return breaks(private, "it got a result of %s", m.Topic)
		}
		if b := c.result(m); b != nil || id.IsZero() {
			return b
		}
	}
	if id.IsZero() {
		if m.Topic != "dispatch" || !strings.Contains(string(m.Data), noise) {
			return breaks(committed, "it got an event without an id that nobody sent: %.200s", m.Data)
		}
		return nil
	}
	if c.board != nil && conn.anew && len(conn.lacks) == 0 {
		c.begin(trumpet.EventID{}) // behind its snapshots; ready comes later
		conn.anew = false
	}
	if c.stretch == nil || conn.anew {
		return breaks(unique, "it got %s before it was told where it begins", id)
	}
	if newest := c.stretch.newest(); id.Compare(newest) <= 0 {
		if i := sort.Search(len(c.stretch.got), func(i int) bool { return c.stretch.got[i].id.Compare(id) >= 0 }); i < len(c.stretch.got) && c.stretch.got[i].id == id {
			return breaks(unique, "it got %s a second time", id)
		}
		return breaks(ordered, "it got %s, and had been given everything up to %s", id, newest)
	}
	c.stretch.got = append(c.stretch.got, received{id, sumOf(payload(m)), m.Topic, trumpet.Op(m.Op), m.More})
	c.last = m.ID
	if text := string(payload(m)); strings.Contains(text, rolledBack) {
		return breaks(committed, "it got %s of a savepoint that was rolled back: %.200s", id, text)
	}
	if m.Topic == markers {
		var n int64
		if err := json.Unmarshal(m.Data, &n); err != nil {
			return breaks(committed, "it got the marker %.200s", m.Data)
		}
		c.reached.Store(max(n, c.reached.Load())) // one that was given up may commit late
		c.run.marked.tell()
	}
	if c.board != nil {
		return c.strictly(m)
	}
	c.apply(m)
	return nil
}

// payload is what of an event is compared with the log.
func payload(m *trumpettest.Message) []byte {
	switch trumpet.Op(m.Op) {
	case trumpet.OpInsert, trumpet.OpUpdate:
		return m.New
	case trumpet.OpDelete:
		return m.Old
	case trumpet.OpBulk:
		return fmt.Appendf(nil, "%s %d", m.Statement, m.Rows)
	case trumpet.OpEnter:
		return m.New
	case trumpet.OpLeave:
		return m.Old
	case trumpet.OpResult:
		return fmt.Appendf(nil, "%d %v %s", m.AsOf, m.Stale, m.Data)
	}
	return m.Data
}

// apply does to the client's view what the event did to the table.
func (c *client) apply(m *trumpettest.Message) {
	v := c.views[m.Topic]
	if v == nil {
		return
	}
	switch trumpet.Op(m.Op) {
	case trumpet.OpInsert:
		v[string(m.Key)] = sumOf(m.New)
	case trumpet.OpUpdate:
		var before struct{ ID *json.Number }
		if json.Unmarshal(m.Old, &before) == nil && before.ID != nil {
			delete(v, fmt.Sprintf(`{"id":%s}`, *before.ID)) // the row has another key now
		}
		v[string(m.Key)] = sumOf(m.New)
	case trumpet.OpDelete:
		delete(v, string(m.Key))
	case trumpet.OpTruncate:
		clear(v)
	case trumpet.OpBulk:
		c.dirty[m.Topic] = true
		c.run.tally.bulks.Add(1)
	}
}

// refresh fetches the views that are not good any more, as an application does. While Postgres is
// away it tries again with the next message.
func (c *client) refresh(ctx context.Context, conn *connection) {
	c.mu.Lock()
	var tables []string
	if conn.ready {
		for table, dirty := range c.dirty {
			if dirty {
				tables = append(tables, table)
			}
		}
	}
	c.mu.Unlock()
	for _, table := range tables {
		bounded, cancel := context.WithTimeout(ctx, fetchTimeout)
		rows, err := c.run.fetcher.fetch(bounded, table)
		cancel()
		if err != nil {
			continue
		}
		c.mu.Lock()
		c.views[table], c.dirty[table] = make(view, len(rows)), false
		for key, row := range rows {
			c.views[table][key] = row
		}
		c.mu.Unlock()
	}
}

func (c *client) ready(conn *connection, m *trumpettest.Message, id trumpet.EventID) *broken {
	c.note("is ready at %s, resumed %v", m.ID, m.Resumed)
	first := !conn.ready
	if want := !conn.reset && (conn.since != "" || !first); m.Resumed != want {
		return breaks(delivered, "it came with since %q, was reset: %v, and is told that it is ready with resumed %v", conn.since, conn.reset, m.Resumed)
	}
	if c.board != nil && conn.anew && len(conn.lacks) > 0 {
		return breaks(delivered, "it is ready, and of %v no snapshot came", conn.lacks)
	}
	anew := conn.anew
	conn.ready, conn.reset, conn.anew = true, false, false
	c.last = m.ID
	if first {
		c.following.Store(true)
		if m.Resumed {
			c.run.tally.resumes.Add(1)
			c.run.seen(conn, "", "resumed")
		}
	}
	if c.stretch == nil || anew {
		c.begin(id)
		return nil
	}
	return c.claim(id, "ready")
}

func (c *client) reset(conn *connection, m *trumpettest.Message, id trumpet.EventID) *broken {
	c.note("is reset at %s: %s", m.ID, m.Reason)
	c.run.tally.reset(m.Reason)
	c.run.seen(conn, "", "reset "+m.Reason)
	conn.reset = true
	if c.board != nil && conn.anew && m.ID == "" { // its snapshots are not good
		c.anew(conn)
		if !c.run.mayReset(wire.Reason(m.Reason), trumpet.EventID{}) {
			return breaks(delivered, "it was reset (%s) while it got its first snapshots", m.Reason)
		}
		return nil
	}
	if c.stretch == nil {
		return breaks(delivered, "it was reset (%s) before it had anything", m.Reason)
	}
	if newest := c.stretch.newest(); !c.run.mayReset(wire.Reason(m.Reason), newest) {
		return breaks(delivered, "it was reset (%s) with the last id %s, which the log could go on from", m.Reason, newest)
	}
	if c.board != nil && !conn.ready {
		if m.ID != "" {
			return breaks(delivered, "it came with snapshot=1, and is reset to %s without one", m.ID)
		}
		c.anew(conn)
		return nil
	}
	c.begin(id)
	if c.board != nil { // it asks for snapshots
		for topic := range c.views {
			c.board.loose[topic] = true
		}
		clear(c.results)
	}
	c.last = m.ID
	return nil
}

// begin begins a new stretch: what the client shows is not good any more.
func (c *client) begin(after trumpet.EventID) {
	if c.stretch != nil {
		c.former = append(c.former, c.stretch)
	}
	c.stretch = &stretch{after: after, follows: c.interest}
	for table := range c.dirty {
		c.dirty[table] = true
	}
}

// claim notes that a worker says that everything up to id has come.
func (c *client) claim(id trumpet.EventID, said string) *broken {
	if c.stretch == nil {
		return breaks(delivered, "%s at %s came before ready", said, id)
	}
	if newest := c.stretch.newest(); id.Compare(newest) < 0 {
		return breaks(unique, "%s takes it back to %s, and it had everything up to %s", said, id, newest)
	}
	c.stretch.claims = append(c.stretch.claims, claim{len(c.stretch.got), id, said})
	return nil
}

// story is the newest of what happened to somebody, for the tale of a violation.
type story []string

// maxStory bounds a story.
const maxStory = 40

func (s *story) add(format string, args ...any) {
	*s = append(*s, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	if len(*s) > 2*maxStory {
		*s = append(story(nil), (*s)[maxStory:]...)
	}
}
