package pgbus

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// pruner removes what is past retention, on the session that has sequencer duty. It
// sleeps while nothing is sequenced and nothing grows old: at rest nothing is asked.
type pruner struct {
	bus  *Bus
	conn *pgx.Conn
	due  bool // the timer is running
}

const (
	pruneInterval = time.Minute // between looks, while records come
	pruneBatch    = 5000        // records in one transaction
	prunePause    = 50 * time.Millisecond
)

// sequenced notes that records came, so that there may be something to prune in a while.
func (p *pruner) sequenced(timer *time.Timer) {
	if !p.due {
		timer.Reset(pruneInterval)
		p.due = true
	}
}

// run prunes one batch and sets the timer for the next.
func (p *pruner) run(ctx context.Context, timer *time.Timer) error {
	p.due = false
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	var (
		pruned int64
		oldest *time.Time
	)
	row := p.conn.QueryRow(ctx, "select pruned, oldest from trumpet.prune($1::interval, $2, $3::int)",
		p.bus.config.Retention.String(), p.bus.config.RetentionBytes, pruneBatch)
	if err := row.Scan(&pruned, &oldest); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	p.bus.status.pruned.Add(pruned)
	switch {
	case pruned > 0:
		timer.Reset(prunePause)
		p.due = true
	case oldest != nil:
		timer.Reset(max(pruneInterval, time.Until(oldest.Add(p.bus.config.Retention))))
		p.due = true
	}
	return nil
}
