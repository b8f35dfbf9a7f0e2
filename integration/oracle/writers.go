package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// writer writes random transactions, one after the other, and comes back when its session was lost.
type writer struct {
	run  *run
	name string
	rng  *rand.Rand
	conn *pgx.Conn
	made int // transactions begun
}

// transactionTimeout bounds a transaction; Postgres may be frozen for a part of it.
const transactionTimeout = 45 * time.Second

// write writes until the storm is over.
func (w *writer) write(ctx context.Context, storm context.Context) {
	defer w.hangUp()
	for storm.Err() == nil {
		if w.conn == nil || w.conn.IsClosed() {
			conn, err := w.run.db.connect(storm, "oracle writer")
			if err != nil {
				pause(storm, time.Duration(20+w.rng.IntN(200))*time.Millisecond)
				continue
			}
			if _, err := conn.Exec(storm, "set lock_timeout = '3s'"); err != nil {
				_ = conn.Close(ctx) // it has been lost already
				continue
			}
			w.conn = conn
		}
		w.made++
		bounded, cancel := context.WithTimeout(ctx, transactionTimeout)
		w.one(bounded, storm, fmt.Sprintf("%s-%d", w.name, w.made))
		cancel()
		pause(storm, time.Duration(w.rng.Int64N(int64(2*w.run.config.Pace)+1)))
	}
}

func (w *writer) hangUp() {
	if w.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = w.conn.Close(ctx) // it may have been lost
	}
}

// one makes one transaction of a random kind, and counts how it ended.
func (w *writer) one(ctx, storm context.Context, token string) {
	var err error
	switch n := w.rng.IntN(100); {
	case n < 4:
		err = w.post(ctx, token)
	case n < 7:
		err = w.prepared(ctx, storm, token)
	case n < 12:
		for i := range 10 + w.rng.IntN(40) { // many tiny ones
			if err = w.tiny(ctx, fmt.Sprintf("%s-%d", token, i)); err != nil {
				break
			}
			w.run.tally.committed.Add(1)
		}
	default:
		err = w.ordinary(ctx, storm, token)
	}
	tally := &w.run.tally
	var failure *pgconn.PgError
	switch {
	case err == nil:
		tally.committed.Add(1)
	case errors.Is(err, errAbort):
		tally.aborted.Add(1)
	case errors.As(err, &failure) && !strings.HasPrefix(failure.Code, "57") && !strings.HasPrefix(failure.Code, "08"):
		tally.aborted.Add(1)
		switch failure.Code {
		case "40001", "40P01", "55P03": // serialization, deadlock, lock timeout
		default:
			w.run.fail("", breaks(committed, "a writer's statement failed: %v", err))
		}
	default:
		tally.unknown.Add(1) // the session was lost: whether it committed, the table committed knows
		w.hangUp()
	}
}

// errAbort rolls a transaction, or a savepoint, back.
var errAbort = errors.New("roll back")

var levels = []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}

// ordinary is a transaction of some statements and savepoints, one of four rolled back.
func (w *writer) ordinary(ctx, storm context.Context, token string) error {
	long := w.rng.IntN(40) == 0
	return pgx.BeginTxFunc(ctx, w.conn, pgx.TxOptions{IsoLevel: levels[w.rng.IntN(len(levels))]}, func(tx pgx.Tx) error {
		did := newAccount(w.run.config.Capture)
		for i := range 1 + w.rng.IntN(4) {
			if long {
				pause(storm, time.Duration(w.rng.IntN(1000))*time.Millisecond)
			}
			// No two statements write the same, and what each wrote tells which it was.
			if err := w.step(ctx, tx, fmt.Sprintf("%s.%d", token, i), &did); err != nil {
				return err
			}
		}
		if w.rng.IntN(4) == 0 {
			return errAbort
		}
		return did.noteIn(ctx, tx, token)
	})
}

// step is a statement, or one in a savepoint.
func (w *writer) step(ctx context.Context, tx pgx.Tx, token string, did *account) error {
	if w.rng.IntN(4) > 0 {
		return w.statement(ctx, tx, token, did)
	}
	abort := w.rng.IntN(2) == 0
	if abort {
		token += rolledBack
	}
	before := did.clone()
	err := pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error {
		if err := w.statement(ctx, savepoint, token, did); err != nil {
			return err
		}
		if abort {
			return errAbort
		}
		return nil
	})
	if errors.Is(err, errAbort) {
		*did = before
		return nil
	}
	return err
}

// rolledBack marks what no client may ever see.
const rolledBack = " (rolled back)"

// tiny is one round trip: Postgres makes one transaction of it.
func (w *writer) tiny(ctx context.Context, token string) error {
	var batch pgx.Batch
	did := newAccount(w.run.config.Capture)
	if w.rng.IntN(2) == 0 {
		batch.Queue("insert into customers (name) values ($1)", token)
		did.ran(pgconn.NewCommandTag("INSERT 0 1"), "customers", 1, 1)
	} else {
		batch.Queue("select trumpet.broadcast('dispatch', to_jsonb($1::text))", token)
		did.events++
	}
	m := did.total()
	batch.Queue(note, token, m.events, m.byWAL, m.rows)
	return w.conn.SendBatch(ctx, &batch).Close()
}

// prepared commits in two phases. Postgres allows that without a NOTIFY only: trumpet.wake is off, and
// a heartbeat finds the records.
func (w *writer) prepared(ctx, storm context.Context, token string) error {
	tx, err := w.conn.Begin(ctx)
	if err != nil {
		return err
	}
	err = func() error {
		if _, err := tx.Exec(ctx, "set local trumpet.wake = off"); err != nil {
			return err
		}
		did := newAccount(w.run.config.Capture)
		if err := w.statement(ctx, tx, token, &did); err != nil {
			return err
		}
		return did.noteIn(ctx, tx, token)
	}()
	if err != nil {
		return errors.Join(err, tx.Rollback(ctx))
	}
	name := "'" + token + "'"
	if _, err := w.conn.Exec(ctx, "prepare transaction "+name); err != nil {
		return err
	}
	pause(storm, time.Duration(w.rng.IntN(300))*time.Millisecond)
	if w.rng.IntN(3) == 0 {
		if _, err := w.conn.Exec(ctx, "rollback prepared "+name); err != nil {
			return err
		}
		return errAbort
	}
	_, err = w.conn.Exec(ctx, "commit prepared "+name)
	return err
}

// post broadcasts over HTTP, by any worker.
func (w *writer) post(ctx context.Context, token string) error {
	station := w.run.stations[w.rng.IntN(len(w.run.stations))]
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	w.run.posts.note(token, false) // it may commit from here on
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, station.worker.URL("/api/topics/dispatch"),
		strings.NewReader(fmt.Sprintf(`{"post": %q}`, token)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("broadcast over HTTP: %w", err)
	}
	response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		w.run.posts.note(token, true)
		return nil
	case http.StatusServiceUnavailable:
		return fmt.Errorf("broadcast over HTTP: status %d", response.StatusCode)
	}
	w.run.fail("", breaks(delivered, "a broadcast over HTTP was answered with status %d", response.StatusCode))
	return nil
}

// posts are the broadcasts over HTTP, and whether each was confirmed.
type posts struct {
	mu     sync.Mutex
	tokens map[string]bool
}

func (p *posts) note(token string, confirmed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tokens == nil {
		p.tokens = map[string]bool{}
	}
	p.tokens[token] = confirmed
}
