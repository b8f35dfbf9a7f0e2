package pgbus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/sql"
)

// head is where the log ends, and whether committed records wait for a position.
type head struct {
	id      trumpet.EventID
	pending bool
}

// errPooler is what a start ends with when a pooler gives each statement another session.
var errPooler = errors.New("notifications do not arrive on the session that listens: " +
	"a pooler in transaction mode stands between; connect to Postgres itself, or to a pool in session mode")

// roleWorker is in the application_name of every listening session of a worker: Ask counts them.
const roleWorker = "listen"

// echoTimeout is how long a notification may take to come back when a session starts.
const echoTimeout = 5 * time.Second

// listen keeps one listening session up until ctx ends.
func (b *Bus) listen(ctx context.Context) error {
	var pause backoff
	everUp, failed := false, false // failed: the attempt before
	for {
		began := time.Now()
		up, err := b.session(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if up {
			everUp = true
			b.inbox.put(arrival{disconnected: true})
			b.status.reconnects.Add(1)
		}
		if !everUp && (!mendable(err) || errors.Is(err, sql.ErrSchema) || errors.Is(err, errPooler)) {
			return fmt.Errorf("connect to Postgres: %w", err)
		}
		wait := pause.next(time.Since(began))
		switch {
		case up:
			b.log.Warn("listening session lost, connecting again", "error", err)
		case !failed:
			b.log.Warn("cannot listen to Postgres, trying again", "error", err)
		default:
			b.log.Debug("cannot listen to Postgres, trying again", "error", err, "pause", wait)
		}
		failed = !up
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// session connects, listens and reads until the session ends. up says whether it got so far
// that the deliverer heard of it.
func (b *Bus) session(ctx context.Context) (up bool, err error) {
	role := roleWorker
	if b.config.Answer == nil {
		role = "follow"
	}
	config := b.connConfig(role)
	echo := make(chan string, 8)
	config.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) { b.notified(n, echo) }
	connectCtx, cancel := context.WithTimeout(ctx, config.ConnectTimeout)
	defer cancel()
	// pgx.Conn would keep notifications to itself; the schema's check is all it is used for.
	conn, err := pgconn.ConnectConfig(connectCtx, &config.Config)
	if err != nil {
		return false, err
	}
	defer closeConn(conn)
	if err := b.prepareSession(connectCtx, conn, echo); err != nil {
		return false, err
	}
	first, err := readHead(connectCtx, conn)
	if err != nil {
		return false, err
	}
	b.inbox.put(arrival{connected: &first})
	if first.pending || b.status.duty.Load() { // the duty's session may have gone too
		b.sequencer.lookNow()
	}
	b.log.Info("listening to Postgres", "position", first.id.Position)
	return true, b.receive(ctx, conn)
}

// prepareSession checks the schema, listens, and proves that notifications come back.
func (b *Bus) prepareSession(ctx context.Context, conn *pgconn.PgConn, echo <-chan string) error {
	pooled, err := b.acquire(ctx)
	if err != nil {
		return err
	}
	defer pooled.Release()
	if err := sql.Check(ctx, pooled); err != nil {
		return err
	}
	var secret []byte
	if err := pooled.QueryRow(ctx, "select secret from trumpet.cluster").Scan(&secret); err != nil {
		return fmt.Errorf("read trumpet.cluster: %w", err)
	}
	b.secret.Store(&secret)

	// LISTEN is committed with the batch.
	var setup strings.Builder
	setup.WriteString(longLived + "set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 3; set tcp_keepalives_count = 3;")
	for _, channel := range append([]string{channelEvents, channelWake, channelWorkers}, b.config.Channels...) {
		setup.WriteString("listen " + pgx.Identifier{channel}.Sanitize() + ";")
	}
	if err := conn.Exec(ctx, setup.String()).Close(); err != nil {
		return fmt.Errorf("listen: %w", err)
	}

	want := echoPrefix + rand.Text()
	if _, err := pooled.Exec(ctx, "select pg_notify($1, $2)", channelWorkers, want); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	waitCtx, cancel := context.WithTimeout(ctx, echoTimeout)
	defer cancel()
	for {
		err := conn.WaitForNotification(waitCtx)
		for len(echo) > 0 {
			if <-echo == want {
				return nil
			}
		}
		if err != nil {
			if pgconn.Timeout(err) && ctx.Err() == nil {
				return errPooler
			}
			return fmt.Errorf("wait for echo: %w", err)
		}
	}
}

// notified copies one notification to where it belongs. It runs on the listener's goroutine
// and never waits.
func (b *Bus) notified(n *pgconn.Notification, echo chan<- string) {
	b.status.heard()
	switch n.Channel {
	case channelWake:
		b.sequencer.lookSoon()
	case channelWorkers:
		if strings.HasPrefix(n.Payload, echoPrefix) {
			select {
			case echo <- n.Payload:
			default: // nobody starts a session; more than the last few cannot matter
			}
			return
		}
		b.answers.heard(n.Payload)
	case channelEvents:
		b.sequencer.steps.Add(1)
		b.inbox.put(arrival{channel: n.Channel, payload: n.Payload})
	default:
		if !b.inbox.put(arrival{channel: n.Channel, payload: n.Payload}) {
			b.status.dropped.Add(1)
		}
	}
}

// receive waits for notifications and asks for a heartbeat in between, until either fails. The
// heartbeat only reads. It proves that the session is alive, tells of records that no
// wake-up told of, and of positions that no notification brought.
func (b *Bus) receive(ctx context.Context, conn *pgconn.PgConn) error {
	next := time.Now().Add(b.config.Heartbeat)
	for {
		waitCtx, cancel := context.WithDeadline(ctx, next)
		err := conn.WaitForNotification(waitCtx)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && time.Now().Before(next):
			continue
		case err != nil && !pgconn.Timeout(err):
			return fmt.Errorf("wait for notification: %w", err)
		}
		askCtx, cancel := context.WithTimeout(ctx, answerTimeout)
		now, err := readHead(askCtx, conn)
		cancel()
		if err != nil {
			return fmt.Errorf("heartbeat: %w", err)
		}
		b.status.heard()
		b.inbox.put(arrival{heartbeat: &now})
		if now.pending {
			b.sequencer.lookNow()
		}
		next = time.Now().Add(jitter(b.config.Heartbeat))
	}
}

// readHead asks a session for the log's head.
func readHead(ctx context.Context, conn *pgconn.PgConn) (head, error) {
	results, err := conn.Exec(ctx, "select position, last_ordinal, tag, pending from trumpet.head()").ReadAll()
	if err != nil {
		return head{}, fmt.Errorf("read head: %w", err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 4 {
		return head{}, errors.New("read head: unexpected answer")
	}
	row := results[0].Rows[0]
	position, errP := strconv.ParseInt(string(row[0]), 10, 64)
	ordinal, errO := strconv.ParseInt(string(row[1]), 10, 32)
	tag, errT := strconv.ParseInt(string(row[2]), 10, 32)
	if err := errors.Join(errP, errO, errT); err != nil {
		return head{}, fmt.Errorf("read head: %w", err)
	}
	return head{
		id:      trumpet.EventID{Position: position, Ordinal: int32(ordinal), Tag: uint32(int32(tag))},
		pending: string(row[3]) == "t",
	}, nil
}

// closeConn says goodbye for a moment, then closes the socket.
func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nobody is left who could act on it
}
