package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// manner is how a client behaves while the storm lasts.
type manner string

const (
	steady    manner = "steady"    // stays, unless it is disturbed
	roaming   manner = "roaming"   // cuts its connection and goes on at any worker at once
	pausing   manner = "pausing"   // stays away for a while, also over a rest
	slow      manner = "slow"      // stops reading for a while, or reads a little at a time
	vanishing manner = "vanishing" // stops reading, never closes, and comes back over another connection
)

// mannerOf deals manners out: every second client is steady.
func mannerOf(index int) manner {
	return []manner{steady, roaming, steady, slow, steady, pausing, steady, roaming, steady, vanishing}[index%10]
}

// topicSets are dealt out too. Everybody hears markers, by which the oracle knows how far a client is.
var topicSets = [][]string{
	{"jobs", "customers", "dispatch"},
	{"jobs"},
	{"dispatch", "customers"},
	{"jobs", "dispatch"},
	{"customers", "nobody"},
}

// markers is the topic of what the oracle sends to see whether it arrives.
const markers = "markers"

// slowBuffer is what the kernel keeps for a slow client: little, but more than a segment on loopback,
// below which TCP itself crawls.
const slowBuffer = 128 << 10

// client is one application that follows along. Its goroutine dials, reads and applies; what
// is below mu is also read by the oracle, and its connection cut.
type client struct {
	run       *run
	index     int
	name      string
	rng       *rand.Rand
	manner    manner
	transport trumpettest.Transport
	topics    []string // of who is no board
	tamper    Tamper

	disturbed atomic.Int64 // counts what the oracle, or its manner, did to it
	following atomic.Bool  // it has a connection that is ready and reads it
	stallTill atomic.Int64 // it does not read before this time, in Unix nanoseconds
	reached   atomic.Int64 // the newest marker that it has

	mu       sync.Mutex
	interest interest
	board    *board          // nil: it has no filters and no snapshots
	results  map[string]held // of live queries
	last     string          // its last id, as it would send it
	stretch  *stretch
	former   []*stretch // ended by resets, not compared yet
	views    map[string]view
	dirty    map[string]bool // views that must be fetched anew
	conn     *connection     // nil while it has none
	away     bool            // on a pause that a rest does not end
	spoiled  bool            // it broke an invariant, and is looked at no more
	story    story
	messages int
}

// connection is one that a client has or had.
type connection struct {
	*trumpettest.Subscriber
	at    sighting
	since string
	ready bool
	reset bool            // since the last ready
	anew  bool            // the client begins anew here, and has nothing yet that it could go on from
	lacks map[string]bool // tables whose snapshots must come first
	ours  bool            // we cut it
	ended string
}

func newClient(r *run, index int) *client {
	c := &client{
		run: r, index: index, manner: r.config.manner(index), rng: r.rng(1000 + uint64(index)),
		transport: []trumpettest.Transport{trumpettest.WebSocket, trumpettest.SSE}[index%2],
		topics:    append([]string{markers}, topicSets[(index/2)%len(topicSets)]...),
		views:     map[string]view{}, dirty: map[string]bool{}, results: map[string]held{},
	}
	if index%20 >= 10 { // so that each manner has both transports
		c.transport = []trumpettest.Transport{trumpettest.SSE, trumpettest.WebSocket}[index%2]
	}
	if r.config.Tamper != nil {
		c.tamper = r.config.Tamper(index)
	}
	if board := index - r.config.Clients; board >= 0 {
		newBoard(c, board)
		return c
	}
	c.interest = interestOf(c.topics)
	c.name = fmt.Sprintf("client %d (%s, %s, %s)", index, c.transport, c.manner, strings.Join(c.topics[1:], ","))
	for _, topic := range c.topics {
		if maxRows[topic] > 0 {
			c.views[topic], c.dirty[topic] = view{}, true
		}
	}
	return c
}

// note adds to the client's story. Its mu is held.
func (c *client) note(format string, args ...any) { c.story.add(format, args...) }

// live dials again and again until ctx ends.
func (c *client) live(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := c.dial(ctx)
		if err != nil {
			pause(ctx, time.Duration(20+c.rng.IntN(300))*time.Millisecond) // the spread of a client that comes back
			continue
		}
		c.follow(ctx, conn)
	}
}

// dial connects to any worker that is up, with the last id.
func (c *client) dial(ctx context.Context) (*connection, error) {
	station := c.run.anyStation(c.rng)
	c.mu.Lock()
	d := trumpettest.Dialling{Transport: c.transport}
	if c.board != nil {
		d.Query = c.query() // it may have to begin anew
	} else {
		d.Topics = strings.Join(c.topics, ",")
	}
	d.Since = c.last
	if c.transport == trumpettest.SSE && c.last != "" && c.rng.IntN(2) == 0 {
		d.Since, d.LastEventID = "", c.last
		if c.rng.IntN(2) == 0 {
			d.Since = "1.0-00000000" // the one in the URL grows old, and does not count
		}
	}
	since := c.last
	if c.manner == slow {
		d.ReadBuffer = slowBuffer
	}
	c.mu.Unlock()
	if c.tamper.Since != nil {
		d.Since, d.LastEventID = c.tamper.Since(c.last), "" // last is this goroutine's own to change
	}
	dialling, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	before := station.sight()
	subscriber, err := trumpettest.Dial(dialling, station.worker.Address, d)
	if err != nil {
		return nil, err
	}
	c.run.tally.connections.Add(1)
	conn := &connection{Subscriber: subscriber, at: before, since: since, anew: since == ""}
	if before != station.sight() {
		conn.at.process = 0 // which process it is, nobody can tell
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	if conn.anew {
		c.anew(conn)
	}
	c.note("connects to %s with since %q", conn.at, since)
	return conn, nil
}

// cut ends the client's connection without a farewell, from outside.
func (c *client) cut(why string) {
	c.disturbed.Add(1)
	c.mu.Lock()
	conn := c.conn
	if conn != nil {
		conn.ours = true
		c.note("is cut: %s", why)
	}
	c.mu.Unlock()
	if conn != nil {
		conn.Cut()
	}
}

// stall has the client stop reading for a while, from outside.
func (c *client) stall(d time.Duration) {
	c.disturbed.Add(1)
	c.following.Store(false)
	c.stallTill.Store(time.Now().Add(d).UnixNano())
}

// follow reads a connection until it ends, or until the client has had enough.
func (c *client) follow(ctx context.Context, conn *connection) {
	vanish := false
	defer func() {
		c.following.Store(false)
		if vanish {
			c.run.abandon(conn)
		} else {
			conn.Cut()
		}
		c.mu.Lock()
		c.conn = nil
		ended := conn.ended
		c.mu.Unlock()
		c.run.seen(conn, ended, "")
	}()
	storming, rest := c.run.storming()
	act := make(<-chan time.Time)
	if c.manner != steady && storming {
		act = time.After(c.restless())
	}
	for {
		c.standStill(ctx)
		select {
		case <-act:
			if storming, _ = c.run.storming(); storming {
				if vanish = c.act(ctx, conn, rest); vanish || c.manner != slow {
					return
				}
			}
			act = time.After(c.restless())
		default:
		}
		frame, err := conn.Next(ctx)
		if err != nil {
			c.ended(conn, err)
			return
		}
		frames := []trumpettest.Frame{frame}
		if c.tamper.Receive != nil {
			frames = c.tamper.Receive(frame)
		}
		for _, frame := range frames {
			c.take(conn, frame)
		}
		if c.board != nil {
			if c.seek(ctx, conn) {
				return
			}
		} else {
			c.refresh(ctx, conn)
		}
	}
}

func (c *client) restless() time.Duration {
	return 100*time.Millisecond + time.Duration(c.rng.Int64N(int64(c.run.config.Restless)))
}

// standStill waits while the oracle wants the client not to read.
func (c *client) standStill(ctx context.Context) {
	till := time.Unix(0, c.stallTill.Load())
	if wait := time.Until(till); wait > 0 {
		c.following.Store(false)
		c.mu.Lock()
		c.note("stops reading for %v", wait.Round(time.Millisecond))
		c.mu.Unlock()
		storming, rest := c.run.storming()
		if storming {
			select {
			case <-rest:
			case <-ctx.Done():
			case <-time.After(wait):
			}
		}
		c.stallTill.Store(0)
		c.mu.Lock()
		c.note("reads on")
		c.following.Store(c.conn != nil && c.conn.ready)
		c.mu.Unlock()
	}
}

// act does what the client's manner is. vanish: its connection is to stay open, unread.
func (c *client) act(ctx context.Context, conn *connection, rest <-chan struct{}) (vanish bool) {
	c.disturbed.Add(1)
	c.following.Store(false)
	switch c.manner {
	case roaming:
		c.cut("it roams")
		if c.rng.IntN(2) == 0 {
			pause(ctx, time.Duration(c.rng.IntN(500))*time.Millisecond)
		}
	case pausing:
		c.cut("it goes away")
		c.goAway(ctx, rest)
	case slow:
		if c.rng.IntN(3) == 0 {
			c.sip(ctx, conn, rest)
		} else {
			c.stall(time.Duration(1000+c.rng.IntN(45_000)) * time.Millisecond)
			c.standStill(ctx)
		}
		c.following.Store(conn.ready)
	case vanishing:
		c.mu.Lock()
		c.note("vanishes")
		conn.ours = true
		c.mu.Unlock()
		return true
	}
	return false
}

// goAway stays away, one time of three for so long that a rest goes on without it.
func (c *client) goAway(ctx context.Context, rest <-chan struct{}) {
	if c.rng.IntN(3) > 0 {
		select {
		case <-rest:
		case <-ctx.Done():
		case <-time.After(time.Duration(c.rng.IntN(15_000)) * time.Millisecond):
		}
		return
	}
	c.mu.Lock()
	c.away = true
	c.note("goes away for long")
	c.mu.Unlock()
	select {
	case <-c.run.lastRest:
	case <-ctx.Done():
	case <-time.After(time.Duration(10_000+c.rng.IntN(80_000)) * time.Millisecond):
	}
	c.mu.Lock()
	c.away = false
	c.mu.Unlock()
}

// sip reads a little at a time.
func (c *client) sip(ctx context.Context, conn *connection, rest <-chan struct{}) {
	for range 20 + c.rng.IntN(60) {
		select {
		case <-rest:
			return
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
		frame, err := conn.Next(ctx)
		if err != nil {
			return // Next will say so again
		}
		c.take(conn, frame)
	}
}

// ended notes why a connection ended.
func (c *client) ended(conn *connection, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var closed websocket.CloseError
	if errors.As(err, &closed) {
		for _, e := range trumpet.Endings {
			if e.Code == int(closed.Code) {
				conn.ended = e.Name
			}
		}
	}
	c.note("its connection to %s ended: %v %s", conn.at, err, conn.ended)
	if conn.ended == trumpet.EndingBadRequest.Name {
		c.fail(breaks(counted, "it was sent away as one that does not know the protocol: %v", err))
	}
}
