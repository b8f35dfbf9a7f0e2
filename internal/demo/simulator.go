package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// How full the board may get.
const (
	comfortableOpen = 28 // fewer open jobs than that, and calls come often
	mostOpen        = 36
	mostDone        = 48
	mostCancelled   = 6
	mostCustomers   = 90
)

// stepTimeout bounds one change.
const stepTimeout = 5 * time.Second

// Run plays the company's day, one change every second or two, until ctx ends.
func (a *App) Run(ctx context.Context) error {
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	failing := false
	for {
		if err := a.wait(ctx, time.Second+time.Duration(rng.IntN(1000))*time.Millisecond); err != nil {
			return nil //nolint:nilerr // ctx has ended, as it should
		}
		stepCtx, cancel := context.WithTimeout(ctx, stepTimeout)
		err := a.Step(stepCtx, rng)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			a.log.Warn("the simulator cannot change anything, trying on", "error", err)
		case err == nil && failing:
			a.log.Info("the simulator goes on")
		}
		failing = err != nil
	}
}

// wait waits for d, and then for as long as the simulator is paused.
func (a *App) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	passed := false
	for !passed || a.isPaused() {
		select {
		case <-timer.C:
			passed = true
		case <-a.changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// action is one thing that may happen. did is false if there was nothing to do it to.
type action struct {
	weight func(board) int
	do     func(ctx context.Context, tx pgx.Tx, rng *rand.Rand) (did bool, err error)
}

// board is how many jobs there are by status, and how many customers.
type board struct {
	jobs      map[string]int
	customers int
}

func (b board) open() int {
	return b.jobs["new"] + b.jobs["scheduled"] + b.jobs["en_route"] + b.jobs["on_site"]
}

var actions = []action{
	{weightOfCall, call},
	{func(b board) int { return 3 * b.jobs["new"] }, assign},
	{func(b board) int { return max(0, 5-b.jobs["en_route"]) * min(b.jobs["scheduled"], 4) }, depart},
	{func(b board) int { return 6 * b.jobs["en_route"] }, arrive},
	{func(b board) int { return 4 * b.jobs["on_site"] }, finish},
	{func(b board) int { return b.jobs["scheduled"] / 2 }, reschedule},
	{func(b board) int { return 2 }, escalate},
	{func(b board) int { return max(1, b.open()-comfortableOpen) }, cancel},
	{func(b board) int { return when(b.customers < mostCustomers && b.open() < mostOpen, 2) }, welcome},
	{func(b board) int { return 1 }, sick},
	{func(b board) int { return 1 }, correct},
	{func(b board) int { return 1 }, void},
	{func(b board) int { return 1 }, announce},
	{func(b board) int { return 20 * max(0, b.jobs["done"]-mostDone) }, archive("done")},
	{func(b board) int { return 10 * max(0, b.jobs["cancelled"]-mostCancelled) }, archive("cancelled")},
}

func weightOfCall(b board) int {
	switch open := b.open(); {
	case open < comfortableOpen:
		return 24
	case open < mostOpen:
		return 10
	}
	return 0
}

func when(yes bool, weight int) int {
	if yes {
		return weight
	}
	return 0
}

// Step does one change, in one transaction.
func (a *App) Step(ctx context.Context, rng *rand.Rand) error {
	return pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
		// Somebody may hold rows in psql, to see what happens: that must not stop the day.
		if _, err := tx.Exec(ctx, "set local lock_timeout = '1s'"); err != nil {
			return err
		}
		now, err := look(ctx, tx)
		if err != nil {
			return err
		}
		for range 20 { // what was chosen may find nothing to do
			did, err := choose(now, rng).do(ctx, tx, rng)
			if err != nil || did {
				return err
			}
		}
		return nil
	})
}

func look(ctx context.Context, tx pgx.Tx) (board, error) {
	b := board{jobs: make(map[string]int)}
	rows, err := tx.Query(ctx, "select status, count(*) from jobs group by status union all select '', count(*) from customers")
	if err != nil {
		return board{}, fmt.Errorf("count jobs: %w", err)
	}
	var (
		status string
		n      int
	)
	_, err = pgx.ForEachRow(rows, []any{&status, &n}, func() error {
		if status == "" {
			b.customers = n
			return nil
		}
		b.jobs[status] = n
		return nil
	})
	if err != nil {
		return board{}, fmt.Errorf("count jobs: %w", err)
	}
	return b, nil
}

func choose(b board, rng *rand.Rand) action {
	total := 0
	for _, a := range actions {
		total += a.weight(b)
	}
	n := rng.IntN(total)
	for _, a := range actions {
		if n -= a.weight(b); n < 0 {
			return a
		}
	}
	panic("weights that do not add up")
}

// one picks a row that nobody else holds, and reports whether there is one.
func one(ctx context.Context, tx pgx.Tx, query string, into ...any) (bool, error) {
	err := tx.QueryRow(ctx, query+" limit 1 for update skip locked").Scan(into...)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

func exec(ctx context.Context, tx pgx.Tx, statement string, args ...any) (bool, error) {
	tag, err := tx.Exec(ctx, statement, args...)
	return err == nil && tag.RowsAffected() > 0, err
}
