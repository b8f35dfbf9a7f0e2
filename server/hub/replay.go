package hub

import (
	"errors"
	"math/rand/v2"
	"os"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// turnTime is about how long a drainer keeps its turn while it writes a page.
const turnTime = 250 * time.Millisecond

// findPlace brings a client that resumes into the list: page after page from the log,
// until its id is one that the list knows.
func (d *drainer) findPlace() error {
	var patience time.Time // when to give up waiting
	read, verified := false, false
	epoch := d.hub.epoch.Load()
	if d.fresh && epoch == d.epoch {
		verified = true // its place was just read
	}
	for {
		if err := d.check(); err != nil {
			return err
		}
		changed := d.hub.list.change()
		at, what := d.hub.list.find(d.since)
		if what == foundHere {
			if !d.ready && !d.resumed && !d.fresh {
				from := fromRing
				if read {
					from = fromLog
				}
				d.hub.stats.resumes[from].Add(1)
			}
			d.cursor, d.placed, d.resumed = at, true, !d.fresh
			return nil
		}
		if now := d.hub.epoch.Load(); now != epoch {
			epoch, verified = now, false // the log may have lost the id since
		}
		if what == foundAhead && verified {
			// Another worker was ahead of this one; what is missing comes soon.
			if err := d.wait(&patience, changed); err != nil {
				return err
			}
			continue
		}
		page, from, err := d.page()
		switch {
		case err == nil:
		case errors.Is(err, trumpet.ErrPruned):
			return d.refuse(wire.ReasonPruned)
		case errors.Is(err, trumpet.ErrUnknownID):
			return d.refuse(wire.ReasonUnknown)
		default:
			if err := d.wait(&patience, nil); err != nil {
				return err
			}
			continue
		}
		read, verified = true, true
		before := d.since
		if err := d.givePage(page, from); err != nil {
			return err
		}
		if d.since != before {
			patience = time.Time{}
			continue
		}
		// Nothing newer in the log than what the list may already have.
		if err := d.wait(&patience, changed); err != nil {
			return err
		}
	}
}

// page returns the page of the log with what follows since, and where in it that is.
func (d *drainer) page() (*page, int, error) {
	key := d.key
	if key.IsZero() {
		key = d.since
	}
	began := time.Now()
	got, from, err := d.hub.pages.get(d.ctx, d.since, key)
	d.begun = d.begun.Add(time.Since(began))
	if err == nil {
		d.key = got.after
	}
	return got, from, err
}

// givePage gives a page from an index on, as much of it as the client takes in one turn, and
// gives the page back before it waits for the client.
func (d *drainer) givePage(p *page, from int) error {
	rest, err := d.givePart(p, from)
	d.hub.pages.put(p)
	if err != nil {
		return err
	}
	return d.write(rest)
}

func (d *drainer) givePart(p *page, from int) (rest []byte, err error) {
	out, err := d.turn()
	if err != nil {
		return nil, err
	}
	defer d.hub.turns.put(out)
	p.encode(d.reader.format)
	for began := time.Now(); time.Since(began) < turnTime; {
		whole := d.reader.each(&d.glance, p.entries, from, true, func(b []byte, index int) bool {
			if !out.takes(len(b)) {
				return false
			}
			out.add(b, &p.node, index)
			return true
		})
		if len(out.frames) == 0 && d.glance.gone {
			return nil, d.columnGone()
		}
		n := 0
		if b := out.bytes(); len(b) > 0 {
			n, err = d.try(b)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			index, rest := out.cut(n)
			_, d.since = out.frames[index].behind()
			d.hub.stats.deliveries.Add(uint64(index + 1))
			if len(rest) <= slabFrame {
				rest = append([]byte(nil), rest...) // not to keep the whole page
			}
			return rest, nil
		}
		d.hub.stats.deliveries.Add(uint64(len(out.frames)))
		if err != nil {
			return nil, err
		}
		if whole {
			// What comes next has a page of its own.
			d.since, d.key = newer(d.since, p.upTo), trumpet.EventID{}
			return nil, nil
		}
		from = out.frames[len(out.frames)-1].index + 1
		_, d.since = out.frames[len(out.frames)-1].behind()
		out.reset()
	}
	return nil, nil
}

// refuse leaves it to the shard to tell the client, once that is where the list is now.
func (d *drainer) refuse(reason wire.Reason) error {
	d.refused, d.placed = reason, true
	if tail := d.hub.list.tail.Load(); tail != nil {
		d.cursor = tail.end()
	}
	return errRefused
}

// wait waits a little, or for the list to grow; but all waiting together is bounded.
func (d *drainer) wait(until *time.Time, changed <-chan struct{}) error {
	began := time.Now()
	if until.IsZero() {
		*until = began.Add(d.hub.config.Patience)
	}
	if !began.Before(*until) {
		return &endError{trumpet.EndingUnavailable}
	}
	timer := time.NewTimer(100*time.Millisecond + rand.N(150*time.Millisecond))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-d.ctx.Done():
		return d.interrupted()
	}
	d.begun = d.begun.Add(time.Since(began)) // it was not the client that was waited for
	return nil
}
