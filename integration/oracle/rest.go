package oracle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
)

// settle waits until everybody has everything, and compares.
func (r *run) settle(ctx context.Context, last bool) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := r.endTransactions(ctx); err != nil {
		return err
	}
	answers := r.awaitAnswers(ctx)
	present := r.present()
	n, err := r.gather(ctx, present)
	if err != nil {
		return err
	}
	r.happens("at rest, %d clients have marker %d", len(present), n)
	if r.config.AtRest != nil {
		if err := r.withConn(ctx, func(conn *pgx.Conn) error { return r.config.AtRest(ctx, conn) }); err != nil {
			return err
		}
	}
	if err := r.readTruth(ctx); err != nil {
		return err
	}
	r.truth.mu.Lock()
	until := r.truth.marker(n)
	broken := r.truth.checkCommitted(r.checked, r.transactions, r.posts.tokens)
	r.truth.mu.Unlock()
	if broken != nil {
		r.fail("the log", broken)
	}
	r.checked = until
	tables := map[string]table{}
	for name := range maxRows {
		if tables[name], err = r.db.table(ctx, name); err != nil {
			return err
		}
	}
	for _, c := range present {
		c.compare(&r.truth, until, tables, answers)
	}
	if err := r.explain(ctx); err != nil {
		return err
	}
	r.truth.forget(r.oldest())
	for _, s := range r.stations {
		r.inspect(ctx, s)
	}
	r.happens("the rest is over")
	r.tally.rests.Add(1)
	return ctx.Err()
}

// endTransactions sees to it that no writer's transaction goes on: sessions that were given up are
// ended, and what was prepared is committed or rolled back.
func (r *run) endTransactions(ctx context.Context) error {
	err := insistently(ctx, 10*time.Second, func(ctx context.Context) error {
		var left int
		if err := r.db.pool.QueryRow(ctx, `select count(*) from (select pg_terminate_backend(pid) from pg_stat_activity
			where application_name = 'oracle writer') gone`).Scan(&left); err != nil {
			return err
		}
		if left > 0 {
			return fmt.Errorf("%d sessions of writers are left", left)
		}
		rows, err := r.db.pool.Query(ctx, "select gid from pg_prepared_xacts order by gid")
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, name := range names {
			how := "commit"
			if len(name)%2 == 0 {
				how = "rollback"
			}
			if _, err := r.db.pool.Exec(ctx, how+" prepared '"+name+"'"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("end transactions: %w", err)
	}
	return nil
}

// present is who takes part in a rest. Who goes away for long from here on does so after it.
func (r *run) present() (present []*client) {
	for _, c := range r.clients {
		c.mu.Lock()
		if !c.away {
			present = append(present, c)
		}
		c.mu.Unlock()
	}
	return present
}

// gather sends markers until everybody present has the newest one, and has fetched what it must.
func (r *run) gather(ctx context.Context, present []*client) (n int64, err error) {
	patience, cancel := context.WithTimeout(ctx, r.config.Patience)
	defer cancel()
	for {
		disturbed := map[*client]int64{}
		for _, c := range present {
			disturbed[c] = c.disturbed.Load()
		}
		if n, err = r.mark(ctx); err != nil {
			return 0, fmt.Errorf("commit a marker: %w", err)
		}
		anew := false // some began behind the marker, and need another one
		// Who does not get this one may get the next: then the comparison says what it lacks.
		some, enough := context.WithTimeout(patience, r.config.Patience/6)
		missing := r.await(some, n, present, func(*client, time.Time) {}, func(c *client) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.board != nil && c.disturbed.Load() != disturbed[c] {
				anew = true
				return false
			}
			return !c.spoiled
		})
		enough()
		if (anew || len(missing) > 0) && patience.Err() == nil {
			continue
		}
		for _, c := range missing {
			c.mu.Lock()
			c.fail(breaks(delivered, "at rest, marker %d did not come within %v; it had %d", n, r.config.Patience, c.reached.Load()))
			c.mu.Unlock()
		}
		pause(patience, 50*time.Millisecond) // it fetches after it was seen to have the marker
		if patience.Err() != nil || !r.anyDirty(present) {
			return n, nil
		}
	}
}

func (r *run) anyDirty(clients []*client) bool {
	for _, c := range clients {
		c.mu.Lock()
		if !c.settled() && !c.spoiled {
			c.mu.Unlock()
			return true
		}
		for _, dirty := range c.dirty {
			if dirty && !c.spoiled {
				c.mu.Unlock()
				return true
			}
		}
		c.mu.Unlock()
	}
	return false
}

func (r *run) withConn(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := r.db.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return f(conn.Conn())
}

// readTruth reads what the log has gained, and what was committed, in one snapshot.
func (r *run) readTruth(ctx context.Context) error {
	return pgx.BeginTxFunc(ctx, r.db.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if err := r.truth.read(ctx, tx); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "delete from committed returning xid::text, token, events, by_wal, bulk_rows")
		if err != nil {
			return err
		}
		var xid, token string
		var m made
		_, err = pgx.ForEachRow(rows, []any{&xid, &token, &m.events, &m.byWAL, &m.rows}, func() error {
			isSlot := strings.HasPrefix(token, slotToken)
			if isSlot {
				// Between two slots changes are lost, and the bulk events with which one begins say so.
				r.truth.slotLost = r.truth.slotLost || r.tally.slots.Load() > 0
				r.tally.slots.Add(1)
				r.happens("%s began", token)
			}
			r.transactions[xid] = transaction{token, m, isSlot || strings.HasPrefix(token, "marker ")}
			return nil
		})
		return err
	})
}

// marker is where a marker stands in the log.
func (t *truth) marker(n int64) trumpet.EventID {
	want := sumOf(fmt.Append(nil, n))
	for i := len(t.events) - 1; i >= 0; i-- {
		if t.events[i].topic == markers && t.events[i].sum == want {
			return t.events[i].id
		}
	}
	return trumpet.EventID{}
}

// compare compares what the client got since it was compared last with the log, and its views with the
// tables.
func (c *client) compare(t *truth, until trumpet.EventID, tables map[string]table, answers map[string]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.spoiled {
		return
	}
	for _, s := range c.former {
		if b := t.check(s, trumpet.EventID{}); b != nil {
			c.fail(b)
			return
		}
	}
	if b := t.check(c.stretch, until); b != nil {
		c.fail(b)
		return
	}
	if !c.settled() {
		c.fail(breaks(delivered, "at rest, it waits for a snapshot or an answer: loose %v, asked %+v", c.board.loose, c.board.wish))
		return
	}
	if b := c.compareResults(answers); b != nil {
		c.fail(b)
		return
	}
	for topic, v := range c.views {
		if difference := v.differs(tables[topic].seen(c.interest[topic])); difference != "" {
			c.fail(breaks(equal, "its view of %s differs: %s", topic, difference))
			return
		}
	}
	c.run.tally.compared.Add(int64(len(c.stretch.got)))
	c.former, c.stretch = nil, &stretch{after: c.stretch.newest(), follows: c.stretch.follows}
}

// oldest is the id after which some client has not been compared yet.
func (r *run) oldest() trumpet.EventID {
	oldest := r.checked
	for _, c := range r.clients {
		c.mu.Lock()
		for _, s := range slices.Concat(c.former, []*stretch{c.stretch}) {
			if s != nil && !c.spoiled && s.begins().Compare(oldest) < 0 {
				oldest = s.begins()
			}
		}
		c.mu.Unlock()
	}
	return oldest
}

// inspect looks at a worker until it is as it should be, or for too long: what vanished is let go
// after a while only.
func (r *run) inspect(ctx context.Context, s *station) {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	for {
		b := s.inspect(ctx)
		if b == nil {
			return
		}
		if b.invariant == counted || !pause(ctx, 500*time.Millisecond) {
			r.fail(s.worker.Name, b)
			return
		}
	}
}
