package pgbus

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/trumpet-realtime/trumpet"
)

// deliverer turns arrivals into calls of the sink. Its state is one goroutine's.
type deliverer struct {
	bus       *Bus
	collected *collector
	session   context.Context // ends with the listening session
	listening bool            // from when that was heard of, until its end was
	started   bool            // the sink was Reset once
	last      trumpet.EventID // the newest record taken, given on or collected
	history   history         // of records taken
	heartbeat int64           // the head that the last heartbeat told of
	forged    bool            // one forged notification was logged
}

// errSessionLost breaks off what waits for Postgres: the listening session has ended. What is
// missing is read when the next one listens.
var errSessionLost = errors.New("listening session lost")

func newDeliverer(b *Bus) *deliverer {
	d := &deliverer{bus: b}
	d.collected = newCollector(func(events []trumpet.Event, head trumpet.EventID) {
		b.status.events.Add(int64(len(events)))
		b.sink.Append(events, head)
		b.status.setHead(head)
		if b.live != nil {
			b.live.Append(events, head, !d.collected.torn)
		}
	})
	return d
}

// retryPause is how long to wait before a failed read of the log is tried again.
const retryPause = 250 * time.Millisecond

func (d *deliverer) run(ctx context.Context) error {
	for {
		arrivals, overflow, err := d.bus.inbox.take(ctx)
		if err != nil {
			return err
		}
		for i := range arrivals {
			if err := d.take(ctx, &arrivals[i]); err != nil && !errors.Is(err, errSessionLost) {
				return err
			}
		}
		if overflow {
			d.bus.log.Warn("inbox full, reading from the log instead")
			d.bus.status.gaps.Add(1)
			if err := d.askHeadAndCatchUp(ctx); err != nil && !errors.Is(err, errSessionLost) {
				return err
			}
		}
		d.collected.flush()
	}
}

func (d *deliverer) take(ctx context.Context, a *arrival) error {
	switch {
	case a.connected != nil:
		d.session, d.listening = a.connected.ctx, true
		return d.connected(ctx, &a.connected.head)
	case a.disconnected:
		d.listening = false
		d.collected.flush()
		if d.bus.status.connected.Swap(false) {
			d.bus.sink.Stale()
		}
		return nil
	case a.heartbeat != nil:
		return d.beat(ctx, a.heartbeat)
	case a.channel == channelEvents:
		if !d.listening {
			// It came before the head that its session begins with, which tells of it; and whether
			// the log still is the one that went before is not known yet.
			return nil
		}
		return d.signed(ctx, a.payload)
	case d.started:
		d.raw(a.channel, a.payload)
		return nil
	default:
		d.bus.status.dropped.Add(1) // nobody is there yet
		return nil
	}
}

// beat compares what a heartbeat saw with what came.
func (d *deliverer) beat(ctx context.Context, now *head) error {
	before := d.heartbeat
	d.heartbeat = now.id.Position
	switch known, ok := d.history.find(now.id.Position); {
	case ok && known.Tag != now.id.Tag, now.id.Position < before:
		return d.catchUp(ctx, now.id.Position) // another history: the read says what stands
	case now.crowded() && now.id.Position > d.last.Position:
		return d.catchUp(ctx, now.id.Position) // nobody notifies
	case before > d.last.Position:
		// What this heartbeat saw may still be on its way; what the one before saw cannot be.
		d.bus.status.gaps.Add(1)
		return d.catchUp(ctx, now.id.Position)
	}
	return nil
}

// connected begins, or goes on after the listening session was lost. What came meanwhile is in
// the log.
func (d *deliverer) connected(ctx context.Context, now *head) error {
	if !d.started {
		after, err := d.recent(ctx)
		if err != nil {
			return err
		}
		d.reset(after)
	} else {
		// What was collected of an unfinished transaction is read again with its rest.
		d.collected.drop()
		d.last = d.bus.Status().Head
		d.history.rewind(d.last.Position)
	}
	d.heartbeat = 0
	if err := d.catchUp(ctx, now.id.Position); err != nil {
		return err
	}
	if err := d.retain(ctx); err != nil {
		return err
	}
	d.bus.status.connected.Store(true)
	d.bus.sink.Live()
	if d.bus.live != nil {
		d.bus.live.Heartbeat(now.live, now.liveFree)
	}
	return nil
}

func (d *deliverer) reset(after trumpet.EventID) {
	d.started = true
	d.collected.drop()
	d.last = after
	d.history.reset(after)
	d.bus.sink.Reset(after)
	d.bus.liveAgain()
	d.bus.status.setHead(after)
}

// recent returns where a worker that starts begins to read.
func (d *deliverer) recent(ctx context.Context) (trumpet.EventID, error) {
	return d.askID(ctx, "trumpet.recent($1::int)", recentRecords)
}

// head returns where the log ends.
func (d *deliverer) head(ctx context.Context) (trumpet.EventID, error) {
	return d.askID(ctx, "trumpet.head()")
}

func (d *deliverer) askID(ctx context.Context, function string, args ...any) (trumpet.EventID, error) {
	var id trumpet.EventID
	err := d.persist(ctx, "read a position", func(ctx context.Context) error {
		conn, err := d.bus.acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		var tag int32
		row := conn.QueryRow(ctx, "select position, last_ordinal, tag from "+function, args...)
		if err := row.Scan(&id.Position, &id.Ordinal, &tag); err != nil {
			return err
		}
		id.Tag = uint32(tag)
		return nil
	})
	return id, err
}

// persist repeats a read until it succeeds, or ctx or the listening session ends. Nothing could be
// delivered in its place.
func (d *deliverer) persist(ctx context.Context, what string, read func(context.Context) error) error {
	logged := false
	for {
		// The session's context is a child of ctx.
		tryCtx, cancel := context.WithTimeout(d.session, 30*time.Second)
		err := read(tryCtx)
		cancel()
		if err == nil || errors.Is(err, trumpet.ErrPruned) || errors.Is(err, trumpet.ErrUnknownID) {
			return err
		}
		if d.session.Err() == nil && !logged {
			d.bus.log.Warn("cannot read the log, trying again", "what", what, "error", err)
			logged = true
		}
		if sleep(d.session, jitter(retryPause)) != nil {
			return cmp.Or(ctx.Err(), errSessionLost)
		}
	}
}

// catchUp reads the log until target was taken.
func (d *deliverer) catchUp(ctx context.Context, target int64) error {
	checked := false
	for d.last.Position < target || !checked {
		// The first read also proves that the log still has what was given last, even
		// where nothing newer is in it.
		checked = true
		var records []record
		err := d.persist(ctx, "catch up", func(ctx context.Context) error {
			var err error
			records, err = d.bus.readRecords(ctx, d.last, max(target, d.last.Position))
			return err
		})
		switch {
		case errors.Is(err, trumpet.ErrPruned) || errors.Is(err, trumpet.ErrUnknownID):
			if err := d.rewind(ctx, err); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case len(records) == 0:
			return nil
		}
		for i := range records {
			d.accept(&records[i])
		}
		d.collected.flush()
	}
	return nil
}

// rewind goes back to the newest record that this worker has in common with the log, which does not go
// on from where it was; or begins anew if there is none.
func (d *deliverer) rewind(ctx context.Context, reason error) error {
	positions, tags := d.history.columns()
	var common *int64
	err := d.persist(ctx, "find common position", func(ctx context.Context) error {
		conn, err := d.bus.acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		return conn.QueryRow(ctx, "select trumpet.common_position($1, $2)", positions, tags).Scan(&common)
	})
	if err != nil {
		return err
	}
	if common != nil {
		if to, ok := d.history.find(*common); ok && to != d.last {
			d.bus.log.Error("the log lost events that clients may have seen; they get a reset",
				"from", to.Position+1, "to", d.last.Position, "error", reason)
			d.bus.status.rewinds.Add(1)
			d.collected.drop()
			d.last = to
			d.history.rewind(to.Position)
			if d.heartbeat > to.Position {
				d.heartbeat = 0
			}
			d.bus.sink.Rewind(to)
			d.bus.liveAgain()
			d.bus.status.setHead(to)
			return nil
		}
	}
	d.bus.log.Error("the log does not go on from where this worker was; all clients get a reset", "position", d.last.Position, "error", reason)
	begin := d.recent
	if errors.Is(reason, errHole) {
		begin = d.head // the hole may be between the two
	}
	after, err := begin(ctx)
	if err != nil {
		return err
	}
	d.reset(after)
	return nil
}

func (d *deliverer) askHeadAndCatchUp(ctx context.Context) error {
	end, err := d.head(ctx)
	if err != nil {
		return err
	}
	return d.catchUp(ctx, end.Position)
}

// signed takes what the sequencer notified: lines, each a record, a stub, or a position up to
// which to read.
func (d *deliverer) signed(ctx context.Context, payload string) error {
	body, err := verify(*d.bus.secret.Load(), payload)
	if err != nil {
		d.bus.status.forged.Add(1)
		if !d.forged {
			d.forged = true
			d.bus.log.Warn("dropped a notification that no sequencer signed; further ones are only counted", "channel", channelEvents, "bytes", len(payload))
		}
		return nil
	}
	for line := range strings.Lines(body) {
		r, err := parseLine(bytes.TrimSuffix([]byte(line), []byte{'\n'}))
		switch {
		case err != nil:
			// A newer sequencer may write what this one cannot read; the log then says the same,
			// and the error comes up there.
			d.bus.status.malformed.Add(1)
			d.bus.log.Error("cannot read a line of the sequencer", "error", err)
			if err := d.askHeadAndCatchUp(ctx); err != nil {
				return err
			}
		case r.position <= d.last.Position:
			if known, ok := d.history.find(r.position); ok && known.Tag != r.tag && !r.upTo {
				if err := d.catchUp(ctx, r.position); err != nil { // another history
					return err
				}
			}
		case r.stub || r.upTo:
			if err := d.catchUp(ctx, r.position); err != nil {
				return err
			}
		case r.position > d.last.Position+1:
			d.bus.status.gaps.Add(1)
			if err := d.catchUp(ctx, r.position); err != nil {
				return err
			}
		default:
			d.accept(&r)
		}
	}
	return nil
}

// accept takes the next record in order.
func (d *deliverer) accept(r *record) {
	d.bus.noteMalformed(d.collected.add(r, d.last))
	d.last = r.lastID()
	d.history.add(d.last)
	if r.op == trumpet.OpBroadcast {
		d.bus.published.seenRecord(r.id, d.last)
	}
	if r.op == trumpet.OpResult && d.bus.live != nil {
		if about, err := r.result(); err == nil {
			d.bus.live.Result(r.topic, about.Version)
		}
	}
}

// raw takes a NOTIFY that somebody sent on one of the configured channels. A JSON object or
// array is given as such, any other text as a JSON string.
func (d *deliverer) raw(channel, payload string) {
	var data bytes.Buffer
	trimmed := strings.TrimLeft(payload, " \t\r\n")
	isJSON := trimmed != "" && (trimmed[0] == '{' || trimmed[0] == '[') && json.Compact(&data, []byte(payload)) == nil
	if !isJSON {
		quoted, err := json.Marshal(payload)
		if err != nil {
			d.bus.status.dropped.Add(1)
			return
		}
		data = *bytes.NewBuffer(quoted)
	}
	d.collected.flush()
	head := d.bus.Status().Head
	d.bus.status.events.Add(1)
	d.bus.sink.Append([]trumpet.Event{{Topic: channel, Op: trumpet.OpBroadcast, At: time.Now().UTC(), Data: data.Bytes()}}, head)
}
