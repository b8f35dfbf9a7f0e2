package oracle

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// boardSets are what boards subscribe to when they come, dealt out like topicSets.
var boardSets = [][]string{
	{"jobs?status=eq.open", "customers?note=is.null", "by_status", "totals"},
	{"jobs?priority=gte.1&priority=lt.3", "jobs?customer_id=is.null&status=neq.done", "amounts"},
	{"jobs", "customers?name=gte.w1", "noted", "newest"},
	{"jobs?id=gt.0", "dispatch", "by_customer"},
	{"jobs?amount=gt.100", "jobs?note=is.null", "jobs?amount=eq.NaN", "amounts"},
	{"jobs?status=not.in.(open,done)&price=gt.20.5", "customers", "by_status"},
	{"jobs?quoted%20%22name=gte.0.5", "customers?note=not.is.null&id=lt.100", "totals", "nobody"},
	{"jobs?customer_id=in.(1,2,30)", "jobs?updated_at=gt.2001-02-03T04%3A05%3A06Z&price=lte.50", "jobs?title=eq.nobody's&status=eq.open", "dispatch"},
	{"customers?name=not.lt.old+3", "jobs?status=in.(new,on_site)", "jobs?amount=not.lte.0.10", "newest"},
}

// board is what a client has more that begins by snapshots, filters what it follows, and over WebSocket
// changes that on the connection. It does as client.js does.
type board struct {
	rng           *rand.Rand
	subscriptions []string
	wish          *wish           // asked for, and not answered
	loose         map[string]bool // tables whose view is not good until a snapshot comes
	page          int             // of the topic below, the last one that came
	coming        string          // the topic whose snapshot comes, up to its last page
	pages         view
	asked         time.Time // the last snapshot, or the last connection
	refs          int
	wishes        bool
	nextWish      time.Time
	touched       [2]string // topic and key of the newest change, for the tale of a violation
}

// newBoard makes a client a board.
func newBoard(c *client, index int) {
	c.board = &board{rng: c.rng, loose: map[string]bool{}, wishes: c.transport == trumpettest.WebSocket && (c.manner != steady || c.index%20 < 10)}
	c.want(append([]string{markers}, boardSets[index%len(boardSets)]...))
	c.name = fmt.Sprintf("board %d (%s, %s, %s)", c.index, c.transport, c.manner, strings.Join(c.board.subscriptions[1:], " "))
}

// want has the client follow these from here on. Views of tables that are new to it are not good yet.
func (c *client) want(subscriptions []string) {
	c.board.subscriptions, c.interest = subscriptions, interestOf(subscriptions)
	for topic := range c.views {
		if c.interest[topic] == 0 {
			delete(c.views, topic)
			delete(c.board.loose, topic)
		}
	}
	for topic := range c.interest {
		if maxRows[topic] > 0 && c.views[topic] == nil {
			c.views[topic], c.board.loose[topic] = view{}, true
		}
	}
	for name := range c.results {
		if c.interest[name] == 0 {
			delete(c.results, name)
		}
	}
}

// anew has the client begin anew over a connection: nothing that it has is good.
func (c *client) anew(conn *connection) {
	c.last = ""
	c.disturbed.Add(1) // a marker may stand before its snapshots
	clear(c.results)
	conn.anew, conn.lacks = true, map[string]bool{}
	if c.board == nil {
		return
	}
	for topic := range c.views {
		c.board.loose[topic], conn.lacks[topic] = true, true
	}
}

// query is what a board asks for in its URL, in both spellings of filters. Its mu is held.
func (c *client) query() string {
	b := c.board
	if w := b.wish; w != nil { // it was not answered: as if it had been granted, or never made
		b.wish = nil
		if !w.done && (w.given || b.rng.IntN(2) == 0 && !w.own) {
			c.want(w.subscriptions)
			c.last = ""
		}
	}
	if len(b.loose) > 0 {
		c.last = ""
	}
	b.coming, b.asked = "", time.Now()
	var plain, parts []string
	raw := b.rng.IntN(2) == 0
	for _, s := range b.subscriptions {
		switch {
		case !strings.Contains(s, "?"):
			plain = append(plain, s)
		case raw:
			parts = append(parts, "topics="+s)
		default:
			parts = append(parts, "topics="+url.QueryEscape(s))
		}
	}
	return strings.Join(append(parts, "topics="+strings.Join(plain, ","), "snapshot=1"), "&")
}

// keyOf is a row's key as events have it.
func keyOf(row []byte) (string, error) {
	var has struct{ ID *json.Number }
	if err := json.Unmarshal(row, &has); err != nil || has.ID == nil {
		return "", fmt.Errorf("a row without a key: %.200s", row)
	}
	return fmt.Sprintf(`{"id":%s}`, *has.ID), nil
}

// snapshot takes a page of rows.
func (c *client) snapshot(conn *connection, m *trumpettest.Message) *broken {
	b := c.board
	if b == nil || !conn.anew && (b.wish == nil || !b.wish.snapshot || !slices.Contains(b.wish.topics, m.Topic)) {
		return breaks(private, "it got a snapshot of %s that it did not ask for", m.Topic)
	}
	if conn.anew && c.interest[m.Topic] == 0 || maxRows[m.Topic] == 0 {
		return breaks(private, "it got a snapshot of %s, which it does not follow or is no table", m.Topic)
	}
	if m.Page == 1 {
		b.coming, b.page, b.pages = m.Topic, 0, view{}
	}
	if b.page++; m.Topic != b.coming || m.Page != b.page {
		return breaks(ordered, "page %d of the snapshot of %s came, where page %d of %s should be", m.Page, m.Topic, b.page, b.coming)
	}
	for _, row := range m.Snapshot {
		key, err := keyOf(row)
		if err != nil {
			return breaks(committed, "the snapshot of %s has %v", m.Topic, err)
		}
		if _, there := b.pages[key]; there {
			return breaks(unique, "the snapshot of %s has the row %s twice", m.Topic, key)
		}
		b.pages[key] = sumOf(row)
	}
	if m.More {
		return nil
	}
	c.run.tally.snapshots.Add(1)
	c.note("has a snapshot of %s, %d rows in %d pages", m.Topic, len(b.pages), b.page)
	b.coming = ""
	if !conn.anew {
		b.wish.given = true
		b.wish.topics = slices.DeleteFunc(b.wish.topics, func(t string) bool { return t == m.Topic })
	}
	c.views[m.Topic] = b.pages
	delete(b.loose, m.Topic)
	delete(conn.lacks, m.Topic)
	if !conn.anew && len(b.wish.topics) == 0 {
		b.wish.done = true
		former := c.stretch
		c.former = append(c.former, former)
		c.want(b.wish.subscriptions)
		c.stretch = &stretch{follows: c.interest, from: former.newest(), formerly: former.follows}
		c.last = "" // it knows no id that it could go on from with what it has now
	}
	return nil
}

// strictly does to a board's view what an event says, which must fit what the view has.
func (c *client) strictly(m *trumpettest.Message) *broken {
	v, op := c.views[m.Topic], trumpet.Op(m.Op)
	switch {
	case v == nil:
		return nil
	case op == trumpet.OpBulk:
		c.board.loose[m.Topic] = true
		c.run.tally.bulks.Add(1)
		return nil
	case op == trumpet.OpTruncate:
		clear(v)
		return nil
	case c.board.loose[m.Topic]:
		return nil
	}
	key, before := string(m.Key), m.Old
	if op == trumpet.OpUpdate {
		var err error
		if before, err = trumpet.MergeOld(m.New, m.Old); err != nil {
			return breaks(committed, "the update %s cannot be undone: %v", m.ID, err)
		}
		if key, err = keyOf(before); err != nil {
			return breaks(committed, "the update %s is of %v", m.ID, err)
		}
	}
	row, there := v[key]
	c.board.touched = [2]string{m.Topic, key}
	switch op {
	case trumpet.OpEnter, trumpet.OpLeave:
		c.run.tally.moves.Add(1)
	}
	switch op {
	case trumpet.OpInsert, trumpet.OpEnter:
		if there {
			return breaks(equal, "it is told of the %s of row %s of %s, which it has (%s)", op, key, m.Topic, m.ID)
		}
		v[key] = sumOf(m.New)
	case trumpet.OpUpdate, trumpet.OpDelete, trumpet.OpLeave:
		if !there {
			return breaks(equal, "it is told of the %s of row %s of %s, which it does not have (%s)", op, key, m.Topic, m.ID)
		}
		if row != sumOf(before) {
			return breaks(equal, "it is told of the %s of row %s of %s, which had another content (%s): %.300s", op, key, m.Topic, m.ID, before)
		}
		delete(v, key)
		if op == trumpet.OpUpdate {
			if _, there := v[string(m.Key)]; there {
				return breaks(equal, "row %s of %s becomes %s, which it has (%s)", key, m.Topic, m.Key, m.ID)
			}
			v[string(m.Key)] = sumOf(m.New)
		}
	}
	return nil
}

// settled reports whether the client waits for no snapshot and no answer. Its mu is held.
func (c *client) settled() bool {
	return c.board == nil || len(c.board.loose) == 0 && c.board.wish == nil && (c.conn == nil || !c.conn.anew)
}

// explain adds to what a board tells what the log has of the row that it was told of last.
func (r *run) explain(ctx context.Context) error {
	r.mu.Lock()
	violations := slices.Clone(r.violations)
	r.mu.Unlock()
	for i, v := range violations {
		if v.Client < 0 || v.Invariant != string(equal) || r.clients[v.Client].board == nil {
			continue
		}
		c := r.clients[v.Client]
		c.mu.Lock()
		topic, key := c.board.touched[0], c.board.touched[1]
		c.mu.Unlock()
		var history string
		if err := r.db.pool.QueryRow(ctx, `
			select coalesce(string_agg(l.position || ' ' || r.op, ', ' order by l.position), 'nothing')
			  from trumpet.log l join trumpet.record r on r.xid = l.xid and r.id = l.id
			 where r.topic = $1 and (r.op in ('bulk', 'truncate') or exists (
			       select from (select json_array_elements(r.before) union all select json_array_elements(r.after)) e(item)
			        where item->>'id' = ($2::json)->>'id'))`, topic, key).Scan(&history); err != nil {
			return fmt.Errorf("ask for the history of a row: %w", err)
		}
		r.mu.Lock()
		r.violations[i].Story = append(v.Story, fmt.Sprintf("the log has of row %s of %s: %s", key, topic, history))
		r.mu.Unlock()
	}
	return nil
}
