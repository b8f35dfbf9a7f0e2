package hub

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

const (
	// patrol is how often a drainer that waits for its client looks whether to go on.
	patrol = 500 * time.Millisecond
	// turns is how many drainers may have an output at once. So what is joined for clients
	// that lag or resume takes at most turns times chunkBytes, however many they are.
	turns = 128
	// hold is how long a drainer keeps its turn while its client takes nothing.
	hold = 25 * time.Millisecond
	// gatherNodes bounds a look through nodes that hold nothing for a client.
	gatherNodes = 4096
)

// endError is the error of a drainer that must end its connection.
type endError struct{ ending trumpet.Ending }

func (e *endError) Error() string { return e.ending.Name }

// errRefused: the client cannot resume; the shard says so where it becomes live.
var errRefused = errors.New("resume refused")

// drainer writes to one connection for as long as that takes, and reads from the log and
// the list by the connection's cursor. It holds no memory of its own while it waits for its
// client: it takes its turn, puts together and writes a chunk, and when the client does not
// take that soon, lets go of all but the frame that was cut.
type drainer struct {
	*Conn
	ctx context.Context

	cut    []byte    // of the frame that the end of the connection cut
	behind time.Time // when what is written now was appended
	// Each chunkBytes must be taken within MaxLag. The time that the client was not waited
	// for does not count.
	begun time.Time
	taken int
	key   trumpet.EventID // of the page of the log that was read last
	uncut bool            // the socket waits for its client whatever the deadline

	glance glance
	begins int    // by how many snapshots it was begun
	epoch  uint64 // of the last one
}

// drain is the drainer's goroutine. When it returns, the connection is at the list's end,
// or refused or to be ended by the shard, or lost.
func (c *Conn) drain(ctx context.Context) {
	now := time.Now()
	d := &drainer{Conn: c, ctx: ctx, behind: now, begun: now}
	if c.doneAfter {
		d.bye(c.rest)
		return
	}
	err := d.follow()
	var end *endError
	switch {
	case err == nil:
	case errors.Is(err, errRefused):
		err = d.release()
	}
	if errors.As(err, &end) {
		c.hub.stats.ended(end.ending)
		d.bye(wire.AppendEnding(d.cut[:len(d.cut):len(d.cut)], c.reader.format, end.ending))
		return
	}
	if err != nil {
		if errors.Is(err, syscall.ETIMEDOUT) {
			c.hub.stats.ended(trumpet.EndingSlow) // the kernel was first to give up
		}
		c.lost = true
		_ = c.socket.Close()
	}
}

// bye writes the last bytes, if the client takes them soon.
func (d *drainer) bye(b []byte) {
	d.lost = true
	deadline := time.Now().Add(d.hub.config.farewell)
	if _, err := d.socket.WriteUntil(b, deadline); err != nil {
		_ = d.socket.Close()
		return
	}
	d.socket.Finish()
}

// follow writes until the client has all there is.
func (d *drainer) follow() error {
	rest := d.rest
	d.rest = nil
	if err := d.write(rest); err != nil {
		return err
	}
	for over := false; !over; {
		var err error
		over, err = d.advance()
		if errors.Is(err, errRefused) && d.snapshot && !d.ready {
			d.placed = false // and begin by another snapshot
			continue
		}
		if err != nil {
			return err
		}
	}
	return d.release()
}

// advance gives the client some of what it lacks, and reports whether that was all.
func (d *drainer) advance() (over bool, err error) {
	switch {
	case d.placed:
	case d.snapshot && !d.ready && (!d.resume && !d.fresh || d.refused != ""):
		return false, d.begin()
	default:
		if err := d.findPlace(); err != nil {
			return false, err
		}
	}
	if err := d.check(); err != nil {
		return false, err
	}
	if d.adding != nil {
		return false, d.add()
	}
	return d.follows(cursor{})
}

// follows gives some of what stands in the list, not beyond a cursor unless that is zero, and
// reports whether there is no more.
func (d *drainer) follows(until cursor) (over bool, err error) {
	switch n, where := d.hub.list.at(d.cursor); {
	case where == expired && d.ready:
		return false, &endError{trumpet.EndingSlow}
	case where == expired:
		d.placed = false // the log goes on where the list cannot
		return false, nil
	case where == atEnd:
		return true, nil
	case n.tells():
		if err := d.tell(n); err != nil {
			return false, err
		}
		d.cursor, d.since = n.end(), n.passed(d.since)
		return false, nil
	default:
		return false, d.give(until)
	}
}

// columnGone: what is to be given lacks a column that a filter needs.
func (d *drainer) columnGone() error {
	if d.ready {
		return &endError{trumpet.EndingSchemaChanged}
	}
	return d.refuse(wire.ReasonSchema)
}

// give gives about a chunk from the list, not beyond a cursor unless that is zero.
func (d *drainer) give(until cursor) error {
	out, err := d.turn()
	if err != nil {
		return err
	}
	at, reach := d.gather(out, until)
	if len(out.frames) == 0 && d.glance.gone {
		d.hub.turns.put(out)
		return d.columnGone()
	}
	b := out.bytes()
	n, err := 0, error(nil)
	if len(b) > 0 {
		n, err = d.try(b)
	}
	var rest []byte
	if errors.Is(err, os.ErrDeadlineExceeded) {
		var index int
		index, rest = out.cut(n)
		at, reach = out.frames[index].behind()
		reach = newer(d.since, reach)
		d.hub.stats.deliveries.Add(uint64(index + 1))
		err = nil
	} else {
		d.hub.stats.deliveries.Add(uint64(len(out.frames)))
	}
	d.hub.turns.put(out)
	if err != nil {
		return err
	}
	d.cursor, d.since = at, reach
	return d.write(rest)
}

// gather puts together what the client is to get next, and returns where that ends.
func (d *drainer) gather(out *output, until cursor) (at cursor, reach trumpet.EventID) {
	at, reach = d.cursor, d.since
	d.glance.gone = false
	for range gatherNodes {
		n, where := d.hub.list.at(at)
		if where != inList || n.tells() || until != (cursor{}) && !at.before(until) {
			break
		}
		entries := n.entries
		if n.seq == until.seq {
			entries = entries[:until.index]
		}
		if out.size == 0 {
			d.behind = n.appended
		}
		whole := d.reader.each(&d.glance, entries, at.index, n.seq <= d.attached, func(b []byte, index int) bool {
			if !out.takes(len(b)) {
				return false
			}
			out.add(b, n, index)
			return true
		})
		if !whole && len(out.frames) > 0 {
			if f := &out.frames[len(out.frames)-1]; f.node == n {
				var id trumpet.EventID
				at, id = f.behind()
				reach = newer(reach, id)
			}
		}
		if !whole {
			break
		}
		if n.seq == until.seq {
			at, reach = until, newer(reach, n.upTo(until.index))
			break
		}
		at, reach = n.end(), newer(reach, n.head)
	}
	return at, reach
}

// write writes what ends where a frame does, and waits for the client as long as it may.
func (d *drainer) write(b []byte) error {
	for len(b) > 0 {
		n, err := d.socket.WriteUntil(b, time.Now().Add(patrol))
		d.took(n)
		b = b[n:]
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err := d.check(); err != nil {
			d.cut = b
			return err
		}
	}
	return nil
}

// try writes what the client takes soon. A socket that cannot be cut, such as a response of
// HTTP/2, may wait longer; its client then gets an output of its own instead of a turn.
func (d *drainer) try(b []byte) (int, error) {
	began := time.Now()
	n, err := d.socket.WriteUntil(b, began.Add(hold))
	d.took(n)
	d.uncut = d.uncut || time.Since(began) > patrol
	return n, err
}

// took notes that the client took n bytes.
func (d *drainer) took(n int) {
	d.hub.stats.wrote(1, n)
	if d.taken += n; d.taken >= chunkBytes {
		d.begun, d.taken = time.Now(), 0
	}
}

// release lets go of the socket at a frame's end.
func (d *drainer) release() error {
	for {
		err := d.socket.Release(time.Now().Add(patrol))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err := d.check(); err != nil {
			return err
		}
	}
}

// check returns why the connection must end now, if it must.
func (d *drainer) check() error {
	if ending := d.ending.Load(); ending != nil {
		return &endError{*ending}
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	now := time.Now()
	if now.Sub(d.begun) > d.hub.config.MaxLag {
		return &endError{trumpet.EndingSlow}
	}
	if !d.ready {
		return nil
	}
	if now.Sub(d.behind) > d.hub.config.MaxLag {
		return &endError{trumpet.EndingSlow}
	}
	if _, where := d.hub.list.at(d.cursor); where == expired {
		return &endError{trumpet.EndingSlow}
	}
	return nil
}

// interrupted returns why the drainer's context ended.
func (d *drainer) interrupted() error {
	if ending := d.ending.Load(); ending != nil {
		return &endError{*ending}
	}
	return d.ctx.Err()
}

// turn waits for an output, in order.
func (d *drainer) turn() (*output, error) {
	if d.uncut {
		return &output{own: true}, nil
	}
	began := time.Now()
	out := d.hub.turns.take(d.ctx)
	d.begun = d.begun.Add(time.Since(began))
	if out == nil {
		return nil, d.interrupted()
	}
	return out, nil
}

// outputs is a bounded number of them.
type outputs chan *output

func newOutputs(most int) outputs {
	o := make(outputs, most)
	for range most {
		o <- new(output)
	}
	return o
}

// take returns nil when ctx ends first.
func (o outputs) take(ctx context.Context) *output {
	select {
	case out := <-o:
		return out
	case <-ctx.Done():
		return nil
	}
}

func (o outputs) put(out *output) {
	out.reset()
	if !out.own {
		o <- out
	}
}
