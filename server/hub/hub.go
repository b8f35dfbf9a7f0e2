package hub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// ErrClosed is returned to those who come after Close.
var ErrClosed = errors.New("the hub is closed")

// Log is where events older than the list are read. Package pgbus has one.
type Log interface {
	// ReadLog returns the events after one id and not after another: a page that ends
	// where a transaction does, and is complete up to upTo. Its error wraps
	// trumpet.ErrPruned or trumpet.ErrUnknownID where the log cannot go on from after.
	ReadLog(ctx context.Context, after, until trumpet.EventID) (events []trumpet.Event, upTo trumpet.EventID, err error)
}

// Socket is what the hub writes to; package socket has two. Only the connection's shard or
// its drainer calls it, except for Close.
type Socket interface {
	// TryWrite writes what can be written without waiting. If that is less than buf, the
	// caller holds the socket, goes on with WriteUntil and ends with Release.
	TryWrite(buf []byte) (int, error)
	// Hold takes the socket as a short TryWrite does.
	Hold()
	// WriteUntil goes on where the last write was cut. buf ends where a frame ends. After
	// os.ErrDeadlineExceeded it can be called again with what is left.
	WriteUntil(buf []byte, deadline time.Time) (int, error)
	// Release ends the hold. After os.ErrDeadlineExceeded it can be called again.
	Release(deadline time.Time) error
	// Finish says that all was written: the peer is to hang up soon.
	Finish()
	Close() error
}

// Config says how a hub works. The zero value is good.
type Config struct {
	// Worker is this worker's name, for clients and operators.
	Worker string
	// Shards is how many loops there are; default GOMAXPROCS, at least 2.
	Shards int
	// RingBytes and RingEvents bound the list of recent events; default 32 MiB and 65,536.
	RingBytes  int64
	RingEvents int
	// MaxLag is how far behind a connection may be before it is ended as slow, and in what
	// time a client must take 64 KiB that wait for it; default 20 s.
	MaxLag time.Duration
	// Ping is how often a quiet connection hears from the worker; default 15 s. A WebSocket's
	// client that has not answered by the next ping is ended.
	Ping time.Duration
	// MaxDelay is how long an event may wait for others to be written with; the first that waits counts.
	// Default 0: events that come while a shard is busy are written together, and nothing waits. At most
	// 10 s.
	MaxDelay time.Duration
	// Patience is how long a client waits for the bus or the log before it is sent away;
	// default 5 s.
	Patience time.Duration
	// LogPages bounds how many pages of the log are read at once; default 4. None is begun
	// while those in memory take LogBytes; default 64 MiB.
	LogPages int
	LogBytes int64
	Logger   *slog.Logger

	// turns is how many drainers put a chunk together at once; default 128.
	turns int
	// farewell is how long the last words to a client may take; default 1 s.
	farewell time.Duration
}

func (c Config) withDefaults() Config {
	c.Worker = cmp.Or(c.Worker, "worker")
	c.Shards = cmp.Or(c.Shards, max(2, runtime.GOMAXPROCS(0)))
	c.RingBytes = cmp.Or(c.RingBytes, 32<<20)
	c.RingEvents = cmp.Or(c.RingEvents, 65_536)
	c.MaxLag = cmp.Or(c.MaxLag, 20*time.Second)
	c.Ping = cmp.Or(c.Ping, 15*time.Second)
	c.Patience = cmp.Or(c.Patience, 5*time.Second)
	c.LogPages = cmp.Or(c.LogPages, 4)
	c.LogBytes = cmp.Or(c.LogBytes, 64<<20)
	c.turns = cmp.Or(c.turns, turns)
	c.farewell = cmp.Or(c.farewell, time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	if c.Shards < 0 || c.RingBytes < 0 || c.RingEvents < 0 || c.LogPages < 0 || c.LogBytes < 0 {
		return fmt.Errorf("configure hub: shards, ring and log pages cannot be negative")
	}
	if c.MaxLag < 0 || c.Ping < wheelSlots*time.Millisecond || c.Patience < 0 {
		return fmt.Errorf("configure hub: max lag and patience cannot be negative, ping is at least %d ms", wheelSlots)
	}
	if c.MaxDelay < 0 || c.MaxDelay > maxDelay {
		return fmt.Errorf("configure hub: max delay is from 0 to %v", maxDelay)
	}
	return nil
}

// maxDelay keeps MaxDelay below all that is measured by time: lag, pings, patience.
const maxDelay = 10 * time.Second

// Hub is the fan-out core. Reset, Rewind, Append, Retain, Live and Stale are called by one goroutine; all
// other methods by any.
type Hub struct {
	config Config
	list   list
	shards []*shard
	pages  *pages
	shots  *shots
	turns  outputs
	epoch  atomic.Uint64 // how often ids became void
	stats  counters

	// Of the goroutine that appends.
	started bool
	stale   bool

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	loops    sync.WaitGroup
	drainers sync.WaitGroup

	mu       sync.Mutex
	attached int
	turn     int
	closing  bool
	empty    chan struct{} // closed when the last connection is gone; nil unless somebody waits
}

// New returns a hub whose shards run until Close.
func New(config Config) (*Hub, error) {
	h, err := newHub(config)
	if err != nil {
		return nil, err
	}
	for _, s := range h.shards {
		h.loops.Go(s.run)
	}
	return h, nil
}

// newHub returns a hub that stands still.
func newHub(config Config) (*Hub, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	h := &Hub{
		config: config,
		list:   list{maxBytes: config.RingBytes, maxEvents: config.RingEvents},
		stale:  true, // until the bus says otherwise
		turn:   rand.IntN(config.Shards),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.pages = newPages(h)
	h.shots = newShots(h)
	h.turns = newOutputs(config.turns)
	for range config.Shards {
		h.shards = append(h.shards, newShard(h))
	}
	return h, nil
}

// UseLog gives the hub the log that clients resume from. Without one it only resumes from
// the list. Call it before the first Attach.
func (h *Hub) UseLog(log Log) { h.pages.log = log }

// UseSnapshots gives the hub where snapshots are read. Without them nobody gets one. Call it
// before the first Attach.
func (h *Hub) UseSnapshots(source Snapshots) { h.shots.source = source }

// Reset begins, or begins anew, after an id. Called again it voids what was held.
func (h *Hub) Reset(after trumpet.EventID) {
	what := resetNotice
	if !h.started {
		h.started, what = true, origin
	}
	h.append(noticeNode(what, after), true)
	h.voided()
}

// Rewind says that the log lost what was given after an id; what was given up to it stands,
// and positions are given a second time. Those who were given something of it are told to
// fetch their state, all others only what their place is now.
func (h *Hub) Rewind(to trumpet.EventID) {
	switch head := h.list.head(); {
	case !h.started || to != head && to.Compare(head) >= 0:
		h.Reset(to)
		return
	case to != head:
		n := noticeNode(rewindNotice, to)
		n.stale = h.stale
		h.list.rewind(n, to)
		h.pokeAll()
	}
	// Even if nothing was given: a client may have come from a worker that was ahead.
	h.voided()
}

// voided forgets what was found out about ids.
func (h *Hub) voided() {
	h.epoch.Add(1)
	h.pages.void()
}

// Append gives the next events; everything up to head has then been given. The events are
// whole transactions and are never changed afterwards. Append does not wait for anybody.
func (h *Hub) Append(events []trumpet.Event, head trumpet.EventID) {
	if !h.started || len(events) == 0 && head == h.list.head() {
		return
	}
	h.stats.events.Add(uint64(len(events)))
	h.append(eventNode(events, head), false)
}

// Retain gives the newest results of live queries as of now, which may be older than what
// was appended, or no longer in the log: newcomers get them.
func (h *Hub) Retain(results []trumpet.Event) {
	if !h.started || len(results) == 0 {
		return
	}
	out := make([]trumpet.Event, len(results))
	for i := range results {
		out[i] = results[i]
		out[i].ID, out[i].More = trumpet.EventID{}, false // it is given out of its place
	}
	h.append(eventNode(out, h.list.head()), false)
}

// Live says that the bus hears Postgres and has caught up.
func (h *Hub) Live() {
	if h.started && h.stale {
		h.stale = false
		h.append(noticeNode(liveNotice, h.list.head()), false)
	}
}

// Stale says that the bus lost Postgres.
func (h *Hub) Stale() {
	if h.started && !h.stale {
		h.stale = true
		h.append(noticeNode(staleNotice, h.list.head()), false)
	}
}

// append links a node and wakes the shards.
func (h *Hub) append(n *node, void bool) {
	n.stale = h.stale
	h.list.append(n, void)
	h.pokeAll()
}

func (h *Hub) pokeAll() {
	for _, s := range h.shards {
		s.poke()
	}
}

// Client describes a connection that wants to be driven.
type Client struct {
	Socket    Socket
	Format    wire.Format
	Interests []Interest
	// Snapshot: give the rows of the topics first, unless the client resumes.
	Snapshot bool
	// Resume: give everything after Since first.
	Resume bool
	Since  trumpet.EventID
	// Refused is why the client cannot resume although it wants to; it gets a reset.
	Refused wire.Reason
}

// Attach hands a connection to the hub. Whoever reads from the connection calls Detach when
// that ends, in any case.
func (h *Hub) Attach(client Client) (*Conn, error) {
	h.mu.Lock()
	if h.closing {
		h.mu.Unlock()
		return nil, ErrClosed
	}
	defer h.mu.Unlock()
	h.attached++
	h.turn = (h.turn + 1) % len(h.shards)
	h.stats.connections[client.Format].Add(1)
	c := newConn(h, h.shards[h.turn], client)
	// With mu held, so that the shard hears of it before it hears of Close.
	c.shard.post(command{kind: attach, conn: c})
	return c, nil
}

// detached counts a connection out.
func (h *Hub) detached(c *Conn) {
	h.stats.connections[c.reader.format].Add(-1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attached--
	if h.attached == 0 && h.empty != nil {
		close(h.empty)
		h.empty = nil
	}
}

// Drain sends all clients away, spread evenly over a time, and waits until they are gone.
// Newcomers are sent away at once.
func (h *Hub) Drain(ctx context.Context, over time.Duration) error {
	for _, s := range h.shards {
		s.post(command{kind: drainAll, over: over})
	}
	h.mu.Lock()
	if h.attached == 0 {
		h.mu.Unlock()
		return nil
	}
	if h.empty == nil {
		h.empty = make(chan struct{})
	}
	empty := h.empty
	h.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain connections: %w", ctx.Err())
	}
}

// Close cuts what connections are left and returns when all goroutines have ended.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closing = true
	h.mu.Unlock()
	for _, s := range h.shards {
		s.post(command{kind: cutAll})
	}
	h.cancel()
	h.loops.Wait()
	h.drainers.Wait()
}
