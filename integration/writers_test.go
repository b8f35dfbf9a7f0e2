package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// seed is printed, and taken from TRUMPET_SEED to repeat a run.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if given := os.Getenv("TRUMPET_SEED"); given != "" {
		var err error
		if n, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatalf("TRUMPET_SEED: %v", err)
		}
	}
	t.Logf("TRUMPET_SEED=%d repeats this run", n)
	return n
}

// writers write random transactions at once. Every statement marks the rows it writes with a
// token of its own, so that each event can be traced to a statement that was committed.
type writers struct {
	group     sync.WaitGroup
	stopping  atomic.Bool
	committed atomic.Int64 // transactions
	aborted   atomic.Int64

	mu     sync.Mutex
	tokens map[string]int // how many events each committed statement must give
}

// generations make the tokens of all writers different.
var generations atomic.Int64

// pace is between two transactions of a writer that goes on until it is stopped: a steady load,
// not all that the machine can do.
const pace = 10 * time.Millisecond

// startWriters starts writers of so many transactions each; 0 is: until stop, at a steady pace.
func startWriters(t *testing.T, url string, seed uint64, count, transactions int) *writers {
	t.Helper()
	w := &writers{tokens: map[string]int{}}
	name := generations.Add(1)
	for n := range count {
		conn := pgtest.Connect(t, url)
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		w.group.Go(func() {
			tick := time.NewTicker(pace)
			defer tick.Stop()
			for i := 0; (transactions == 0 || i < transactions) && !w.stopping.Load(); i++ {
				if err := w.transaction(t.Context(), conn, rng, fmt.Sprintf("g%d-w%d-%d", name, n, i)); err != nil {
					if t.Context().Err() == nil {
						t.Errorf("writer %d: %v", n, err)
					}
					return
				}
				if transactions == 0 {
					<-tick.C
				}
			}
		})
	}
	t.Cleanup(w.stop) // before the connections are closed
	return w
}

func (w *writers) wait() { w.group.Wait() }

func (w *writers) stop() {
	w.stopping.Store(true)
	w.group.Wait()
}

// errAbort rolls a transaction, or a savepoint, back.
var errAbort = errors.New("roll back")

func (w *writers) transaction(ctx context.Context, conn *pgx.Conn, rng *rand.Rand, name string) error {
	tokens := map[string]int{}
	level := []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.ReadCommitted, pgx.RepeatableRead}[rng.IntN(3)]
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error {
		for i := range 1 + rng.IntN(4) {
			step := fmt.Sprintf("%s-%d", name, i)
			if rng.IntN(4) > 0 {
				if err := statement(ctx, tx, rng, step, tokens); err != nil {
					return err
				}
				continue
			}
			inner := map[string]int{}
			err := pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error {
				if err := statement(ctx, savepoint, rng, step, inner); err != nil {
					return err
				}
				if rng.IntN(2) == 0 {
					return errAbort
				}
				return nil
			})
			if err != nil && !errors.Is(err, errAbort) {
				return err
			}
			if err == nil {
				for token, n := range inner {
					tokens[token] += n
				}
			}
		}
		if rng.IntN(4) == 0 {
			return errAbort
		}
		return nil
	})
	var failure *pgconn.PgError
	if errors.Is(err, errAbort) || errors.As(err, &failure) && failure.Code[:2] == "40" { // deadlock, serialization
		w.aborted.Add(1)
		return nil
	}
	if err != nil {
		return err
	}
	w.committed.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	for token, n := range tokens {
		w.tokens[token] += n
	}
	return nil
}

// statement does one thing, and notes in tokens what events it must give.
func statement(ctx context.Context, tx pgx.Tx, rng *rand.Rand, token string, tokens map[string]int) error {
	some := rng.IntN(20)
	var tag pgconn.CommandTag
	var err error
	var changed int
	switch rng.IntN(8) {
	case 0, 1:
		tag, err = tx.Exec(ctx, "insert into jobs (title) select $1 from generate_series(1, $2)", token, 1+rng.IntN(3))
	case 2, 3:
		tag, err = tx.Exec(ctx, "update jobs set title = $1, priority = $3 where id % 20 = $2", token, some, rng.IntN(3))
	case 4:
		// It writes many rows and changes some, or none: what did not change is no event.
		err = tx.QueryRow(ctx, `
			with written as (update jobs set title = case when id % 3 = 0 then $1 else title end where id % 20 = $2 returning id)
			select count(*) filter (where id % 3 = 0) from written`, token, some).Scan(&changed)
	case 5:
		tag, err = tx.Exec(ctx, "insert into customers (name) values ($1)", token)
	case 6:
		tag, err = tx.Exec(ctx, "select trumpet.broadcast('dispatch', to_jsonb($1::text))", token)
	case 7:
		rows, queryErr := tx.Query(ctx, "delete from jobs where id = (select min(id) from jobs where id % 20 = $1 and id > 20) returning id", some)
		if queryErr != nil {
			return queryErr
		}
		ids, collectErr := pgx.CollectRows(rows, pgx.RowTo[int64])
		for _, id := range ids {
			tokens[deleted(fmt.Sprintf(`{"id":%d}`, id))]++
		}
		return collectErr
	}
	if err != nil {
		return err
	}
	if n := int(tag.RowsAffected()) + changed; n > 0 {
		tokens[token] += n
	}
	return nil
}

func deleted(key string) string { return "delete of " + key }

// check fails unless the events are exactly those of what was committed.
func (w *writers) check(t *testing.T, name string, events []message) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	got := map[string]int{}
	for _, e := range events {
		switch e.Op {
		case "broadcast":
			if token, ok := decode(t, e.Data).(string); ok {
				got[token]++
			}
		case "delete":
			got[deleted(string(e.Key))]++
		default:
			row, _ := decode(t, e.New).(map[string]any)
			for _, column := range []string{"title", "name"} {
				if token, ok := row[column].(string); ok {
					got[token]++
				}
			}
		}
	}
	for token, n := range got {
		if want, ok := w.tokens[token]; !ok {
			t.Errorf("%s: %d events of %q, which was not committed", name, n, token)
			return
		} else if n != want {
			t.Errorf("%s: %d events of %q, want %d", name, n, token, want)
			return
		}
	}
	for token := range w.tokens {
		if got[token] == 0 {
			t.Errorf("%s: nothing came of %q, which was committed", name, token)
			return
		}
	}
}
