package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// pruneLog prunes everything that was given a position. What goes is read before, in the same snapshot.
func pruneLog(ctx context.Context, r *run, _ *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var upTo int64
	err := pgx.BeginTxFunc(ctx, r.db.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if err := r.truth.read(ctx, tx); err != nil {
			return err
		}
		// From here on clients may be reset: said before it is committed, or one could be too early.
		r.truth.mu.Lock()
		upTo = r.truth.head()
		r.truth.pruned = max(r.truth.pruned, upTo)
		r.truth.mu.Unlock()
		_, err := tx.Exec(ctx, "select trumpet.prune('0', 0, 10000000)")
		return err
	})
	if err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	r.happens("the log is pruned up to position %d", upTo)
	return nil
}

// withSession runs f with a session of its own.
func (r *run) withSession(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := r.db.connect(ctx, "oracle fault")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(ctx, conn)
}

// burdenQueue listens in a session that then stays in a transaction: Postgres keeps all
// notifications for it.
func burdenQueue(ctx context.Context, r *run, rng *rand.Rand) error {
	return r.withSession(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, "listen trumpet; listen trumpet_wake; listen nobody; begin; select pg_current_xact_id()"); err != nil {
			return err
		}
		end := time.Now().Add(r.length(rng))
		return r.withSession(ctx, func(ctx context.Context, other *pgx.Conn) error {
			for time.Now().Before(end) {
				if _, err := other.Exec(ctx, "select pg_notify('nobody', repeat('x', 7900) || g) from generate_series(1, 20) g"); err != nil {
					return err
				}
				pause(ctx, 50*time.Millisecond)
			}
			return nil
		})
	})
}

// channels are those that workers listen to.
var channels = []string{"trumpet", "trumpet_wake", "trumpet_workers"}

// forge notifies what nobody but a worker may, and what is nothing at all.
func forge(ctx context.Context, r *run, rng *rand.Rand) error {
	return r.withSession(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		r.truth.mu.Lock()
		head := r.truth.head()
		r.truth.mu.Unlock()
		signature := strings.Repeat("0123456789abcdef", 2)
		for range 5 + rng.IntN(40) {
			position := head + int64(rng.IntN(2000)) - 500
			line := fmt.Sprintf("%d\t5f3a09c1\t1\t0\t0\t1700000000000000\tinsert\t\t1\t\"jobs\"\t[\"id\"]\t\t[{\"id\": 666, \"title\": \"forged%s\"}]\t\n", position, rolledBack)
			payload := []string{
				"", "{", "\n", "\t\t\t", "null", `{"v":99}`, strings.Repeat("x", 7990), line, signature + "\n" + line,
				signature + "\n" + fmt.Sprintf("%d\n", position), fmt.Sprintf("%d\n", position), signature + "\n", signature,
			}[rng.IntN(13)]
			if _, err := conn.Exec(ctx, "select pg_notify($1, $2)", channels[rng.IntN(len(channels))], payload); err != nil {
				return err
			}
		}
		return nil
	})
}

// replay listens for a moment, and then sends what it heard once more, in another order.
func replay(ctx context.Context, r *run, rng *rand.Rand) error {
	return r.withSession(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		for _, channel := range channels {
			if _, err := conn.Exec(ctx, "listen "+channel); err != nil {
				return err
			}
		}
		var heard [][2]string
		listening, cancel := context.WithTimeout(ctx, 500*time.Millisecond+r.length(rng)/4)
		defer cancel()
		for len(heard) < 200 {
			n, err := conn.WaitForNotification(listening)
			if err != nil {
				break // its time is over; if the session was lost, the next statement says so
			}
			heard = append(heard, [2]string{n.Channel, n.Payload})
		}
		if len(heard) == 0 {
			return errors.New("nothing was heard")
		}
		return r.withSession(ctx, func(ctx context.Context, other *pgx.Conn) error {
			for _, i := range rng.Perm(len(heard)) {
				if _, err := other.Exec(ctx, "select pg_notify($1, $2)", heard[i][0], heard[i][1]); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// noise is in what makeNoise notifies.
const noise = "noise"

// makeNoise notifies on the channel that any application may use.
func makeNoise(ctx context.Context, r *run, rng *rand.Rand) error {
	return r.withSession(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		for i := range 10 + rng.IntN(200) {
			payload := []string{noise, `{"noise": 1}`, noise + strings.Repeat("x", 7000), `["noise`, "noise\r\n\r\nid: 1.0-00000000\n\ndata: x"}[rng.IntN(5)]
			if _, err := conn.Exec(ctx, "select pg_notify('dispatch', $1)", payload+strings.Repeat(" ", i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// dropClients cuts a crowd at once.
func dropClients(_ context.Context, r *run, rng *rand.Rand) error {
	share := 1 + rng.IntN(3)
	for i, c := range r.clients {
		if i%share == 0 {
			c.cut("a crowd is dropped")
		}
	}
	return nil
}

// stallClients has some stop reading for so long that many are ended as slow.
func stallClients(ctx context.Context, r *run, rng *rand.Rand) error {
	length := r.length(rng) * 3
	first, step := rng.IntN(4), 2+rng.IntN(5)
	for i := first; i < len(r.clients); i += step {
		r.clients[i].stall(length)
	}
	return nil
}
