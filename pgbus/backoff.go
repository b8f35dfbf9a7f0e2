package pgbus

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff gives the pauses between attempts: full jitter (a random part of a doubling
// limit), and from the start again after a spell in which all went well.
type backoff struct{ limit time.Duration }

const (
	backoffFirst   = 100 * time.Millisecond
	backoffLongest = 1500 * time.Millisecond // a worker is to be live again within 5 s of the fault's end
	backoffHealthy = 10 * time.Second
)

// next returns the pause after an attempt that lasted so long.
func (b *backoff) next(lasted time.Duration) time.Duration {
	if b.limit == 0 || lasted >= backoffHealthy {
		b.limit = backoffFirst
	}
	pause := time.Duration(rand.Int64N(int64(b.limit)))
	b.limit = min(2*b.limit, backoffLongest)
	return pause
}

// jitter spreads d by a tenth to either side, so that workers that started together do not
// ask together.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(rand.Int64N(int64(d/5)+1))
}

// sleep waits for d or for ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
