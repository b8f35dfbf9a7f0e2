package hub

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// errEnded is given to a client whose connection ends.
var errEnded = errors.New("the connection has ended")

type state uint8

const (
	waiting state = iota
	live
	drained
	ended
)

// Conn is one connection that the hub drives.
type Conn struct {
	hub    *Hub
	shard  *shard
	socket Socket

	heard atomic.Int64 // when the client last said anything, in Unix nanoseconds
	gone  chan struct{}

	// The shard's.
	state     state
	detached  bool // the reader is gone
	reader    reader
	group     *group
	member    int   // index in group.members
	slot      int   // of the wheel
	seat      int   // index in the slot
	pinged    int64 // when, since it joined, as heard; 0 for not yet
	pending   *Change
	deadline  time.Time // while waiting
	attached  uint64    // the newest node when it came
	ready     bool      // it was told
	resume    bool
	resumed   bool            // nothing was missed
	placed    bool            // cursor is in the list
	since     trumpet.EventID // all up to here was given: to go on from, or when it has a drainer
	refused   wire.Reason
	stop      context.CancelFunc // hurries the drainer
	doneAfter bool               // rest is the last that is written
	stuck     bool               // the socket wants a drainer
	snapshot  bool               // it begins by one, and when it cannot resume

	// The drainer's while there is one.
	cursor cursor
	rest   []byte  // of what was cut, and only read
	lost   bool    // the drainer ended the connection
	owed   bool    // it has something that was lost, and is told at the next rewind
	fresh  bool    // it began by a snapshot
	adding *adding // what it asked for with a snapshot
	added  *adding // and has been given: it is told where it is live

	ending atomic.Pointer[trumpet.Ending] // what the drainer is to end with
}

func newConn(h *Hub, s *shard, client Client) *Conn {
	c := &Conn{
		hub: h, shard: s, socket: client.Socket,
		reader:   reader{client.Format, newInterests(client.Interests)},
		resume:   client.Resume,
		snapshot: client.Snapshot && h.shots.source != nil,
		since:    client.Since,
		refused:  client.Refused,
		gone:     make(chan struct{}),
		stop:     func() {},
		slot:     rand.IntN(wheelSlots),
	}
	c.Heard()
	return c
}

// Heard notes that the client gave a sign of life.
func (c *Conn) Heard() { c.heard.Store(time.Now().UnixNano()) }

// Blocked says that the socket has something to write but cannot without waiting.
func (c *Conn) Blocked() { c.shard.post(command{kind: blocked, conn: c}) }

// Refuse tells the client that what it asked for is not possible, after the answers to what it
// asked for before. The connection stays as it is.
func (c *Conn) Refuse(ref json.RawMessage, message string) error {
	return c.Change(Change{Ref: ref, refusal: message})
}

// Change subscribes or unsubscribes, and returns when the client was, or is about to be,
// told. One call at a time: this is how a client's commands are bounded.
func (c *Conn) Change(what Change) error {
	what.applied = make(chan error, 1)
	c.shard.post(command{kind: change, conn: c, change: &what})
	select {
	case err := <-what.applied:
		return err
	case <-c.gone:
		return errEnded
	}
}

// End sends the client away.
func (c *Conn) End(e trumpet.Ending) { c.shard.post(command{kind: end, conn: c, ending: e}) }

// Detach says that nobody reads from the connection any more, and returns when the hub has
// let go of it. That is at once if the socket was closed before.
func (c *Conn) Detach() {
	c.shard.post(command{kind: detach, conn: c})
	<-c.gone
}
