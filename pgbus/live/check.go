package live

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// check compares a kept state with its table, while changes go on being applied: the table is read in
// a cut, and the state is copied when it comes to the cut's position.
type check struct {
	cancel context.CancelFunc
	done   chan checkResult
	plan   *plan
	at     int64
	copied groups       // the state at at; nil: it has not come there
	result *checkResult // what was read; nil: not yet
}

type checkResult struct {
	read groups
	err  error
}

func (c *check) end() {
	c.cancel()
	for range c.done { // until it is closed
	}
}

// errAnotherCut is a check whose table was truncated or rewritten while it was read.
var errAnotherCut = errors.New("the table was rewritten")

// begin begins a check. It waits until the cut is made, so that the state is not beyond it yet.
func (k *keeper) begin(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	c := &check{cancel: cancel, done: make(chan checkResult, 1), plan: k.plan}
	made := make(chan int64, 1)
	k.holder.group.Go(func() {
		defer close(c.done)
		var result checkResult
		called := false
		result.err = k.inCut(ctx, func(ctx context.Context, tx pgx.Tx, at int64) (err error) {
			if called { // in another cut, and the state may be beyond it
				return errAnotherCut
			}
			called = true
			made <- at
			result.read, err = c.plan.readGroups(ctx, k.holder.bus, tx)
			return err
		})
		close(made)
		c.done <- result
	})
	at, ok := <-made
	if !ok {
		result := <-c.done
		c.result = &result
	}
	c.at, k.check = at, c
	if !ok {
		k.judge()
		return
	}
	k.passing(k.at + 1)
}

// passing copies the state for a check before it goes beyond the check's position. Nothing between
// the state's position and next changes it.
func (k *keeper) passing(next int64) {
	if c := k.check; c != nil && c.plan == k.plan && c.copied == nil && next > c.at {
		c.copied = k.groups.clone()
		if c.result != nil {
			k.judge()
		}
	}
}

// judge compares what a check read with what was kept, once both are there.
func (k *keeper) judge() {
	c := k.check
	switch {
	case c.result.err != nil:
		if errors.Is(c.result.err, errAnotherCut) {
			k.checkAt = time.Now().Add(k.holder.config.CheckInterval)
		} else if !errors.Is(c.result.err, context.Canceled) {
			k.holder.failures.Add(1)
			k.holder.log.Warn("cannot compare live aggregate with its table", "name", k.query.Name, "error", c.result.err)
		}
	case c.plan != k.plan: // it was read anew meanwhile
	case c.copied == nil:
		k.feed.await(c.at) // reading was faster than delivery
		return
	default:
		if what, differs := k.plan.differ(c.copied, c.result.read, c.at); differs {
			k.holder.repairs.Add(1)
			k.holder.log.Error("live aggregate differed from its table, and is read anew", "name", k.query.Name, "as_of", c.at, "difference", what)
			k.anew = "it differed from its table"
			k.readAfter = time.Time{}
		}
	}
	c.end()
	k.check = nil
}
