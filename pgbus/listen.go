package pgbus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/sql"
)

// head is where the log ends, whether committed records wait for a position, and how much of the
// notification queue is taken.
type head struct {
	id      trumpet.EventID
	pending bool
	queue   float64

	live     string // the state of live queries' definitions
	liveFree bool   // there are some, and nobody has the duty to run them

	wal walPulse
}

// crowded reports whether the sequencer does not notify: trumpet.sequence has the same bound.
func (h head) crowded() bool { return h.queue > 0.5 }

// errPooler is for a pooler that hides from sql.CheckSession.
var errPooler = fmt.Errorf("notifications do not arrive on the session that listens: %w", sql.ErrSharedSession)

// roleWorker is in the application_name of every listening session of a worker: Ask counts them.
const roleWorker = "listen"

// prepareTimeout bounds what is done between connecting and listening.
const prepareTimeout = 10 * time.Second

// echoTimeout is how long a notification may take to come back when a session starts.
const echoTimeout = 5 * time.Second

// listen keeps one listening session up until ctx ends.
func (b *Bus) listen(ctx context.Context) error {
	var pause backoff
	everUp := false
	failed, hopeless := false, false // the attempt before; hopeless: only a person can mend it
	for {
		began := time.Now()
		up, err := b.session(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if up {
			everUp = true
			b.inbox.put(arrival{disconnected: true})
			// The session that has the duty may have gone too, and would not know at rest. A server that shuts down
			// waits for the reader of the WAL, which ends with it.
			b.sequencer.lookNow()
			b.status.reconnects.Add(1)
			b.cutAfter(err)
		}
		mend := !mendable(err) || errors.Is(err, sql.ErrSchema) || errors.Is(err, sql.ErrSharedSession)
		if mend && !everUp {
			return fmt.Errorf("connect to Postgres: %w", err)
		}
		wait := pause.next(time.Since(began))
		switch {
		case up:
			b.log.Warn("listening session lost, connecting again", "error", err)
		case !failed || mend && !hopeless:
			b.log.Warn("cannot listen to Postgres, trying again", "error", err)
		default:
			b.log.Debug("cannot listen to Postgres, trying again", "error", err, "pause", wait)
		}
		failed, hopeless = !up, mend
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// cutAfter ends the worker's other connections too, unless it was the server that ended the
// listening one, and said so: what goes the same way is silent for the same reason.
func (b *Bus) cutAfter(err error) {
	var said *pgconn.PgError
	if errors.As(err, &said) {
		return
	}
	cut(b.dialer.connections())
	b.resetPools()
}

// connect makes the connection that listens. If it came to another server than the one before,
// all other connections are cut: they must come there too.
func (b *Bus) connect(ctx context.Context, onNotification pgconn.NotificationHandler) (*pgconn.PgConn, error) {
	role := roleWorker
	if b.config.Answer == nil {
		role = "follow"
	}
	var at place
	config := b.connConfig(role, func(ctx context.Context, conn *pgconn.PgConn) (err error) {
		at, err = b.places.arrive(ctx, conn)
		return err
	})
	config.OnNotification = onNotification
	var own net.Conn // the host's that was taken
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		own = conn
		return conn, err
	}
	// Not a pgx.Conn, which would keep notifications to itself. ConnectTimeout bounds the
	// attempt at each host.
	conn, err := pgconn.ConnectConfig(ctx, &config.Config)
	if err != nil {
		return nil, err
	}
	if b.places.settle(at) {
		cut(slices.DeleteFunc(b.dialer.connections(), func(c *dialled) bool { return c == own }))
		b.resetPools()
	}
	return conn, nil
}

// session connects, listens and reads until the session ends. up says whether it got so far
// that the deliverer heard of it.
func (b *Bus) session(ctx context.Context) (up bool, err error) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	echo := make(chan string, 8)
	conn, err := b.connect(ctx, func(_ *pgconn.PgConn, n *pgconn.Notification) { b.notified(n, echo) })
	if err != nil {
		return false, err
	}
	defer closeConn(conn)
	prepareCtx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	if err := b.prepareSession(prepareCtx, conn, echo); err != nil {
		return false, err
	}
	first, err := readHead(prepareCtx, conn)
	if err != nil {
		return false, err
	}
	b.inbox.put(arrival{connected: &connected{ctx: ctx, head: first}})
	b.sequencer.lookNow() // the duty may be free, if only because its session has gone too
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
	var restarted bool
	var queue float64
	row := pooled.QueryRow(ctx, "select secret, trumpet.verify_cluster(), pg_notification_queue_usage() from trumpet.cluster")
	if err := row.Scan(&secret, &restarted, &queue); err != nil {
		return fmt.Errorf("read trumpet.cluster: %w", err)
	}
	b.secret.Store(&secret)
	if restarted {
		b.log.Warn("this database came from another cluster: the log begins again, clients get a reset")
	}

	// LISTEN is committed with the batch.
	var setup strings.Builder
	setup.WriteString(longLived)
	for _, channel := range append([]string{channelEvents, channelWake, channelWorkers}, b.config.Channels...) {
		setup.WriteString("listen " + pgx.Identifier{channel}.Sanitize() + ";")
	}
	if err := conn.Exec(ctx, setup.String()).Close(); err != nil {
		return fmt.Errorf("listen: %w", err)
	}

	b.noteQueue(queue)
	if (head{queue: queue}).crowded() {
		// The echo could find no room, and then nobody would listen. Poolers were looked for at connecting.
		b.log.Warn("listening without a proof that notifications come back: their queue is more than half full")
		return nil
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
	var watched walWatch
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
		now, err := b.beat(ctx, conn)
		if err != nil {
			return fmt.Errorf("heartbeat: %w", err)
		}
		b.status.heard()
		b.noteQueue(now.queue)
		if b.places.passed() {
			return errors.New("another server has taken over as the primary")
		}
		b.inbox.put(arrival{heartbeat: &now})
		if now.pending {
			b.sequencer.lookNow()
		}
		b.watchWAL(&watched, now.wal)
		if b.live != nil {
			b.live.Heartbeat(now.live, now.liveFree)
		}
		next = time.Now().Add(jitter(b.config.Heartbeat))
	}
}

// beat asks for a heartbeat, and gives up when the answer is overdue, or when another connection is
// answered meanwhile.
func (b *Bus) beat(ctx context.Context, conn *pgconn.PgConn) (head, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var doubting sync.WaitGroup
	doubting.Go(func() {
		if b.othersAreAnswered(ctx) {
			stop(errDeadPath)
		}
	})
	now, err := readHead(ctx, conn)
	if errors.Is(context.Cause(ctx), errDeadPath) && err != nil {
		err = errDeadPath
	}
	cancel()
	doubting.Wait()
	return now, err
}

// errDeadPath is a session that is silent while its server is not: what was between the two has
// forgotten the connection, or the session's process is frozen. Waiting longer would help nobody.
var errDeadPath = errors.New("the session is silent, though Postgres answers on a new connection")

// othersAreAnswered waits a while, and then connects again and again until that succeeds or ctx ends:
// the heartbeat was answered, or is overdue.
func (b *Bus) othersAreAnswered(ctx context.Context) bool {
	for pause := doubtAfter; sleep(ctx, pause) == nil; pause = probePause {
		if b.probe(ctx) == nil {
			return sleep(ctx, probePause) == nil // an answer may have been on its way
		}
	}
	return false
}

// probe makes a connection, asks Postgres something, and ends it.
func (b *Bus) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	config := b.conn.Copy()
	config.RuntimeParams["application_name"] = "trumpet probe " + b.config.Worker
	config.DialFunc, _ = b.dialer.connection()
	conn, err := pgconn.ConnectConfig(ctx, &config.Config)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	_, err = askRow(ctx, conn, "select 1")
	return err
}

// noteQueue keeps how full the notification queue is, and warns before it matters to anybody.
func (b *Bus) noteQueue(usage float64) {
	before := math.Float64frombits(b.status.queue.Swap(math.Float64bits(usage)))
	switch {
	case usage > queueWarning && before <= queueWarning:
		b.log.Warn("the notification queue fills up: some session listens and sits in an open transaction", "usage", usage)
	case usage <= queueWarning && before > queueWarning:
		b.log.Info("the notification queue has room again", "usage", usage)
	}
}

// queueWarning is how much of the notification queue may be taken without a word.
const queueWarning = 0.1

// readHead asks a session for the log's head.
func readHead(ctx context.Context, conn *pgconn.PgConn) (head, error) {
	row, err := askRow(ctx, conn, "select position, last_ordinal, tag, pending, pg_notification_queue_usage(), "+
		"s.state, s.state not like '0:%' and pg_try_advisory_xact_lock_shared(1953656176, 6), "+
		"w.wanted, w.slot, w.confirmed, w.wal, w.retained, w.safe, w.status, case when w.wanted is not null then pg_try_advisory_xact_lock_shared(1953656176, 3) end "+
		"from trumpet.head(), trumpet.live_state() s(state) left join trumpet.wal_pulse() w on true")
	if err != nil {
		return head{}, fmt.Errorf("read head: %w", err)
	}
	position, errP := strconv.ParseInt(row[0], 10, 64)
	ordinal, errO := strconv.ParseInt(row[1], 10, 32)
	tag, errT := strconv.ParseInt(row[2], 10, 32)
	queue, errQ := strconv.ParseFloat(row[4], 64)
	pulse, errW := parsePulse(row[7:])
	if err := errors.Join(errP, errO, errT, errQ, errW); err != nil {
		return head{}, fmt.Errorf("read head: %w", err)
	}
	return head{
		id:      trumpet.EventID{Position: position, Ordinal: int32(ordinal), Tag: uint32(int32(tag))},
		pending: row[3] == "t",
		queue:   queue,

		live:     row[5],
		liveFree: row[6] == "t",

		wal: pulse,
	}, nil
}

// closeConn says goodbye for a moment, then closes the socket.
func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // nobody is left who could act on it
}
