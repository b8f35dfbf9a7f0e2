package hub

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// patrol is how often a drainer that waits for its client looks whether to go on.
const patrol = 500 * time.Millisecond

// endError is the error of a drainer that must end its connection.
type endError struct{ ending trumpet.Ending }

func (e *endError) Error() string { return e.ending.Name }

// errRefused: the client cannot resume; the shard says so where it becomes live.
var errRefused = errors.New("resume refused")

var chunks = sync.Pool{New: func() any { b := make([]byte, 0, chunkBytes); return &b }}

// drainer writes to one connection for as long as that takes, and reads from the log and
// the list by the connection's cursor.
type drainer struct {
	*Conn
	ctx context.Context

	chunk    *[]byte
	ends     []int     // where the chunk's frames end
	cut      []byte    // of the frame that the end of the connection cut
	behind   time.Time // when what is written now was appended
	progress time.Time // when the client last took something
	holding  time.Time // since when a page of the log is held, if one is
}

// drain is the drainer's goroutine. When it returns, the connection is at the list's end,
// or refused or to be ended by the shard, or lost.
func (c *Conn) drain(ctx context.Context) {
	now := time.Now()
	d := &drainer{Conn: c, ctx: ctx, chunk: chunks.Get().(*[]byte), behind: now, progress: now}
	defer func() {
		*d.chunk = (*d.chunk)[:0]
		chunks.Put(d.chunk)
	}()
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
	case errors.As(err, &end):
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
	if len(d.rest) > 0 {
		rest := d.rest
		d.rest = nil
		if err := d.write(rest, []int{len(rest)}); err != nil {
			return err
		}
	}
	for {
		if !d.placed {
			if err := d.findPlace(); err != nil {
				return err
			}
		}
		if err := d.check(); err != nil {
			return err
		}
		n, where := d.hub.list.at(d.cursor)
		switch where {
		case inList:
			if err := d.give(n); err != nil {
				return err
			}
		case expired:
			if d.ready {
				return &endError{trumpet.EndingSlow}
			}
			d.placed = false // the log goes on where the list cannot
		case atEnd:
			if len(*d.chunk) > 0 {
				if err := d.flush(); err != nil {
					return err
				}
				continue
			}
			return d.release()
		}
	}
}

// give gives one node, from the cursor on.
func (d *drainer) give(n *node) error {
	index := d.cursor.index
	if n.seq != d.cursor.seq { // skipped to a reset
		index = 0
	}
	if len(*d.chunk) == 0 {
		d.behind = n.appended
	}
	if n.notice == resetNotice && n.seq > d.attached && !d.ready {
		d.resumed = false
	}
	// What follows n must not be held by a client that is waited for.
	entries, replay, next, head := n.entries, n.seq <= d.attached, n.end(), n.head
	if err := d.giveAll(entries, index, replay); err != nil {
		return err
	}
	d.cursor, d.since = next, head
	return nil
}

func (d *drainer) giveAll(entries []entry, from int, replay bool) error {
	var err error
	d.reader.each(entries, from, replay, func(b []byte, _ int) bool {
		d.hub.stats.deliveries.Add(1)
		if len(*d.chunk) > 0 && len(*d.chunk)+len(b) > chunkBytes {
			if err = d.flush(); err != nil {
				return false
			}
		}
		if len(b) >= chunkBytes {
			err = d.write(b, []int{len(b)})
			return err == nil
		}
		*d.chunk = append(*d.chunk, b...)
		d.ends = append(d.ends, len(*d.chunk))
		return true
	})
	return err
}

func (d *drainer) flush() error {
	err := d.write(*d.chunk, d.ends)
	*d.chunk, d.ends = (*d.chunk)[:0], d.ends[:0]
	return err
}

// write writes whole frames, and waits for the client as long as it may.
func (d *drainer) write(b []byte, ends []int) error {
	d.progress = time.Now()
	for done := 0; done < len(b); {
		n, err := d.socket.WriteUntil(b[done:], time.Now().Add(patrol))
		done += n
		d.hub.stats.wrote(1, n)
		if n > 0 {
			d.progress = time.Now()
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if err := d.check(); err != nil {
			for _, end := range ends {
				if end >= done {
					// A copy: the chunk is reused.
					d.cut = append([]byte(nil), b[done:end]...)
					break
				}
			}
			return err
		}
	}
	return nil
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
	if now.Sub(d.progress) > d.hub.config.MaxLag {
		return &endError{trumpet.EndingSlow}
	}
	if !d.holding.IsZero() && now.Sub(d.holding) > d.hub.config.MaxLag {
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
