package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
)

// keeper keeps one aggregate up: it reads the table once, in a cut, and then applies each change that comes
// after that. What cannot be followed has it read the table anew: a bulk event, events that were too many to wait
// for their turn, a column that went, a log that lost events. Its state is one goroutine's.
type keeper struct {
	holder *holder
	query  *query
	feed   *feed

	plan     *plan // nil: the table is to be read
	groups   groups
	at       int64  // what groups are true of; but for extremes that were read as of later
	ahead    int64  // the newest position that an extreme was read as of
	changed  bool   // since the newest result was given on
	torn     bool   // at is inside of a transaction
	anew     string // why the table is read again
	failures int

	notBefore time.Time // of the next result
	readAfter time.Time // of the next read
	failedAt  time.Time
	checkAt   time.Time // when to compare with the table; zero while nothing changed
	check     *check

	row  trumpet.Row
	old  contribution
	next contribution
}

// kept is what a keeper has for its holder to publish.
type kept struct {
	query *query
	value []byte
	asOf  int64
	err   error
}

// keep has an aggregate kept. Its goroutine begins when its feed is fed.
func (h *holder) keep(q *query, feeds map[string][]*feed) {
	topic := q.DependsOn[0]
	if q.keeper == nil {
		q.keeper = &keeper{holder: h, query: q, feed: newFeed(topic)}
	}
	feeds[topic] = append(feeds[topic], q.keeper.feed)
}

// run keeps the aggregate until ctx ends.
func (k *keeper) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer func() {
		if k.check != nil {
			k.check.end()
		}
	}()
	for ctx.Err() == nil {
		var checked <-chan checkResult
		if k.check != nil && k.check.result == nil {
			checked = k.check.done
		}
		select {
		case <-ctx.Done():
			return
		case <-k.feed.wake:
		case <-timer.C:
		case result := <-checked:
			k.check.result = &result
			k.judge()
		}
		if next := k.step(ctx); !next.IsZero() {
			timer.Reset(time.Until(next))
		} else {
			timer.Stop()
		}
	}
}

// step does what is to be done now, and returns when to do more; zero for when something changes.
func (k *keeper) step(ctx context.Context) (next time.Time) {
	now := k.feed.take()
	if now.lost && k.plan != nil {
		k.void("changes were too many, or void, while they waited")
	}
	if k.plan == nil {
		// What was fed up to here, the table shows.
		wait := k.readAfter
		if retry := k.failedAt.Add(k.query.MinInterval); k.failures > 0 && len(now.events) > 0 && retry.Before(wait) {
			wait = retry
			k.readAfter = wait
		}
		if time.Now().Before(wait) {
			return wait
		}
		if !k.read(ctx) {
			return k.readAfter
		}
		now = k.feed.take()
		if now.lost {
			k.void("changes were too many, or void, while the table was read")
			return k.readAfter
		}
	}
	for i := range now.events {
		e := &now.events[i]
		if e.ID.Position <= k.at {
			continue
		}
		k.passing(e.ID.Position)
		if err := k.apply(e); err != nil {
			if errors.Is(err, errGone) {
				k.void(fmt.Sprintf("%s %v cannot be followed", e.Op, e.ID))
			} else {
				k.fail(ctx, err)
			}
			return k.readAfter
		}
		k.changed = true
	}
	if now.head > k.at {
		k.passing(now.head + 1)
		k.at, k.torn = now.head, !now.whole
	}
	if k.anew != "" { // a check found a difference
		k.void(k.anew)
		k.feed.poke()
		return time.Time{}
	}
	return k.give(ctx)
}

// give gives the result on if it may have changed, and it is time.
func (k *keeper) give(ctx context.Context) (next time.Time) {
	if k.changed && k.checkAt.IsZero() {
		k.checkAt = time.Now().Add(k.holder.config.CheckInterval)
	}
	if k.changed && k.torn {
		k.feed.await(k.at + 1)
	}
	if k.changed && !k.torn {
		if time.Now().Before(k.notBefore) {
			return k.notBefore
		}
		if !k.reread(ctx) {
			return k.readAfter
		}
		if k.at < k.ahead {
			k.feed.await(k.ahead)
			return time.Time{}
		}
		value := k.plan.result(k.groups)
		if len(value) > maxResultBytes {
			k.fail(ctx, errTooLarge)
			return k.readAfter
		}
		k.changed = false
		k.notBefore = time.Now().Add(k.query.MinInterval)
		k.post(ctx, kept{query: k.query, value: value, asOf: k.at})
	}
	if !k.checkAt.IsZero() && k.check == nil {
		if time.Now().Before(k.checkAt) {
			return k.checkAt
		}
		k.checkAt = time.Time{}
		k.begin(ctx)
	}
	return time.Time{}
}

func (k *keeper) post(ctx context.Context, result kept) {
	select {
	case k.holder.kept <- result:
	case <-ctx.Done():
	}
}

// void has the table read anew.
func (k *keeper) void(why string) {
	k.plan, k.groups, k.anew = nil, nil, why
}

// fail tells of a failure. The table is read again after a pause, or at the next change.
func (k *keeper) fail(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	k.void("it failed before")
	k.failedAt = time.Now()
	k.readAfter = k.failedAt.Add(jitter(min(retryFirst<<min(k.failures, 20), retryLongest)))
	k.failures++
	k.post(ctx, kept{query: k.query, err: err})
}

// pause is how long to wait after a read, so that reading takes half of the time at most.
func (k *keeper) pause(began time.Time) {
	end := time.Now()
	k.readAfter = end.Add(max(k.query.MinInterval-end.Sub(began), end.Sub(began)))
}

// inCut reads in a cut. One aggregate of all reads at a time, beside the queries.
func (k *keeper) inCut(ctx context.Context, read func(ctx context.Context, tx pgx.Tx, at int64) error) error {
	select {
	case k.holder.reading <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-k.holder.reading }()
	k.holder.runs.Add(1)
	return k.query.inCut(ctx, k.holder.bus, func(ctx context.Context, tx pgx.Tx, at trumpet.EventID) error {
		return read(ctx, tx, at.Position)
	})
}

// read reads the state from the table.
func (k *keeper) read(ctx context.Context) bool {
	began := time.Now()
	if k.anew != "" {
		k.holder.recomputes.Add(1)
		k.holder.log.Debug("reading live aggregate anew", "name", k.query.Name, "why", k.anew)
	}
	table, found, err := k.holder.bus.Table(ctx, k.feed.topic)
	if err == nil && !found {
		err = trumpet.Refuse(errGone, "topic %s is no watched table any more", k.feed.topic)
	}
	var p *plan
	if err == nil {
		p, err = newPlan(&k.query.definition, table)
	}
	var all groups
	var asOf int64
	if err == nil {
		err = k.inCut(ctx, func(ctx context.Context, tx pgx.Tx, at int64) (err error) {
			if err := p.readTable(ctx, tx); err != nil {
				return err
			}
			asOf = at
			all, err = p.readGroups(ctx, k.holder.bus, tx)
			return err
		})
	}
	if err != nil {
		k.fail(ctx, err)
		return false
	}
	k.plan, k.groups, k.at, k.ahead = p, all, asOf, asOf
	k.changed, k.torn, k.anew, k.failures = false, false, "", 0
	k.pause(began)
	k.notBefore = time.Now().Add(k.query.MinInterval)
	value := p.result(all)
	if len(value) > maxResultBytes {
		k.fail(ctx, errTooLarge)
		return false
	}
	k.post(ctx, kept{query: k.query, value: value, asOf: asOf})
	if k.checkAt.IsZero() {
		k.checkAt = time.Now().Add(k.holder.config.CheckInterval)
	}
	return true
}

// apply applies one change.
func (k *keeper) apply(e *trumpet.Event) error {
	p, at := k.plan, e.ID.Position
	switch e.Op {
	case trumpet.OpInsert, trumpet.OpDelete:
		row, n := e.New, int64(1)
		if e.Op == trumpet.OpDelete {
			row, n = e.Old, -1
		}
		if k.row.Parse(row) != nil {
			return errGone
		}
		if err := p.contributionOf(&k.row, &k.next); err != nil || !k.next.counts {
			return err
		}
		return k.change(&k.next, n, at)
	case trumpet.OpUpdate:
		if e.Known != nil && k.row.Parse(e.Known) != nil || e.Known == nil && k.row.ParseOver(e.New, e.Old) != nil {
			return errGone
		}
		if err := p.contributionOf(&k.row, &k.old); err != nil {
			return err
		}
		if k.row.Parse(e.New) != nil {
			return errGone
		}
		if err := p.contributionOf(&k.row, &k.next); err != nil {
			return err
		}
		if k.old.equal(&k.next) {
			return nil
		}
		// The new row first: so a value that grew is the greatest before the former one goes.
		if k.next.counts {
			if err := k.change(&k.next, 1, at); err != nil {
				return err
			}
		}
		if k.old.counts {
			return k.change(&k.old, -1, at)
		}
		return nil
	case trumpet.OpTruncate:
		if at <= k.ahead {
			return errGone // an extreme was read as of later
		}
		k.groups = p.none()
		return nil
	case trumpet.OpBulk:
		return errGone
	}
	return nil
}

func (k *keeper) change(c *contribution, n, at int64) error {
	if err := k.plan.apply(k.groups, c, n, at); err != nil {
		return err
	}
	if !k.plan.settle(k.groups, c.key) {
		return errGone
	}
	return nil
}

// reread reads the extremes that were lost. It reports false if that failed, or has to wait.
func (k *keeper) reread(ctx context.Context) bool {
	var lost []*group
	for _, g := range k.groups {
		for i := range g.cells {
			if g.cells[i].lost {
				lost = append(lost, g)
				break
			}
		}
	}
	switch {
	case len(lost) == 0:
		return true
	case len(lost) > maxReread:
		k.void("too many groups lost an extreme")
		return k.read(ctx)
	}
	began := time.Now()
	if began.Before(k.readAfter) {
		return false
	}
	var (
		found [][]string
		asOf  int64
	)
	err := k.inCut(ctx, func(ctx context.Context, tx pgx.Tx, at int64) error { // a cut may call it again
		asOf, found = at, nil
		for _, g := range lost {
			texts, err := k.plan.readExtremes(ctx, k.holder.bus, tx, g)
			if err != nil {
				return err
			}
			found = append(found, texts)
		}
		return nil
	})
	for i := 0; err == nil && i < len(lost); i++ {
		err = k.plan.find(lost[i], found[i], asOf)
	}
	k.ahead = max(k.ahead, asOf)
	if err != nil {
		k.fail(ctx, err)
		return false
	}
	k.pause(began)
	return true
}
