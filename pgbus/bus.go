package pgbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/pgbus/live"
	"github.com/trumpet-realtime/trumpet/sql"
)

// Sink takes what the bus hears. All calls come from one goroutine, and none may block on
// a client. Events and slices are never changed after they were given.
type Sink interface {
	// Reset says that what follows comes after the given id, and that whatever was held
	// before is void. It is the first call, and comes again only when the log has nothing in
	// common with what was given.
	Reset(after trumpet.EventID)
	// Rewind says that the log lost what was given after this id: a fail-over to a standby
	// that was behind, a restored backup. What was given up to it stands, and what comes
	// next follows it; positions are given a second time, with other tags.
	Rewind(to trumpet.EventID)
	// Append gives the next events, whole transactions: the last one has More false. A
	// transaction of more than 16 MiB is given in pieces, as if it were several. Everything up
	// to head has then been given; head is newer than the last event where a record made none,
	// and stays where it was for raw notifications, whose events have no id.
	Append(events []trumpet.Event, head trumpet.EventID)
	// Retain gives the newest result of each live query as of now, before Live: it may be older than
	// what was appended, even than the log, and then has no id.
	Retain(results []trumpet.Event)
	// Live says that the bus hears Postgres and has caught up.
	Live()
	// Stale says that it does not hear Postgres any more. It reconnects by itself.
	Stale()
}

// Config is what a Bus needs to know. Zero values mean the defaults.
type Config struct {
	// ConnString is a URL or keyword/value string, as pgx takes it; libpq's PG* environment
	// variables fill in the rest. It must reach Postgres itself or a pooler in session mode.
	ConnString string
	// Channels are those on which a raw NOTIFY becomes an event without an id; the channel is
	// the topic. Default: dispatch.
	Channels []string
	// Worker names this worker in application_name and answers.
	Worker string
	// Heartbeat is how often the listening session is asked for the log's head. Default 2 s.
	Heartbeat time.Duration
	// Retention and RetentionBytes bound the log: records older than the one, or standing before
	// the newest of the other (in bytes as stored), are pruned. Defaults 24 h and 1 GiB.
	Retention      time.Duration
	RetentionBytes int64
	// Answer is what this worker answers when one asks all, at most 4 kB. Nil is for a bus that
	// only follows: it is not asked, and not counted as a worker.
	Answer func() json.RawMessage
	// LiveCheck is how often a live aggregate that changed is compared with its table, by the one worker
	// that keeps it. Default 5 min.
	LiveCheck time.Duration
	// Logger; default slog.Default().
	Logger *slog.Logger
}

const (
	defaultHeartbeat      = 2 * time.Second
	defaultRetention      = 24 * time.Hour
	defaultRetentionBytes = 1 << 30

	// answerTimeout is how long the listening session may take to answer a heartbeat, and
	// with it and the interval the time after which a silent connection is noticed.
	answerTimeout = 8 * time.Second
	// doubtAfter is how long it may take without another connection being tried, to see whether
	// only this one is dead; probeTimeout bounds such a try, and probePause stands between two.
	doubtAfter   = time.Second
	probeTimeout = time.Second
	probePause   = 250 * time.Millisecond
	// poolSize bounds the connections for log reads, publishing and answers.
	poolSize = 4
	// recentRecords is how far back a worker that starts reads.
	recentRecords = 1000
)

func (c Config) withDefaults() Config {
	if c.Channels == nil {
		c.Channels = []string{"dispatch"}
	}
	if c.Worker == "" {
		c.Worker = "worker"
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	if c.Retention == 0 {
		c.Retention = defaultRetention
	}
	if c.RetentionBytes == 0 {
		c.RetentionBytes = defaultRetentionBytes
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func (c Config) validate() error {
	for _, channel := range c.Channels {
		if len(channel) > 63 {
			return fmt.Errorf("channel %q: a channel's name has at most 63 bytes", channel)
		}
		if err := trumpet.ValidTopic(channel); err != nil {
			return fmt.Errorf("channel %q: its name is the topic of its events: %w", channel, err)
		}
		if channel == channelEvents || channel == channelWake || channel == channelWorkers {
			return fmt.Errorf("channel %q is Trumpet's own", channel)
		}
	}
	if c.Heartbeat < 100*time.Millisecond || c.Heartbeat > time.Minute {
		return fmt.Errorf("heartbeat %v: from 100ms to 1m", c.Heartbeat)
	}
	if c.Retention < time.Minute {
		return fmt.Errorf("retention %v: at least 1m, or clients that reconnect cannot go on", c.Retention)
	}
	if c.RetentionBytes < 1<<20 {
		return fmt.Errorf("retention of %d bytes: at least 1 MiB, or clients that reconnect cannot go on", c.RetentionBytes)
	}
	return nil
}

// The channels that every worker hears, beside the configured ones.
const (
	channelEvents  = "trumpet"         // what the sequencer notifies
	channelWake    = "trumpet_wake"    // what writers notify
	channelWorkers = "trumpet_workers" // questions and answers between workers
)

// Bus is the connection of one worker to the log. Make it with New, then Run it.
type Bus struct {
	config Config
	conn   *pgx.ConnConfig
	sink   Sink
	log    *slog.Logger

	dialer    *dialer
	places    places
	inbox     *inbox
	sequencer *sequencer
	answers   *answers
	published *published
	live      *live.Runner // nil for a bus that only follows
	cuts      *cuts
	tables    *tables

	pool    atomic.Pointer[pgxpool.Pool] // while Run runs
	cutPool atomic.Pointer[pgxpool.Pool] // while Run runs
	secret  atomic.Pointer[[]byte]       // signs notifications; read at each connect
	status  statusBoard
}

// New checks the configuration. It does not connect.
func New(config Config, sink Sink) (*Bus, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	conn, err := pgx.ParseConfig(config.ConnString)
	if err != nil {
		return nil, fmt.Errorf("read database URL: %w", err)
	}
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = connectTimeout
	}
	b := &Bus{config: config, conn: conn, sink: sink, log: config.Logger, dialer: newDialer()}
	b.inbox = newInbox()
	b.sequencer = newSequencer(b)
	b.answers = newAnswers(b)
	b.published = newPublished()
	if config.Answer != nil {
		b.live = live.New(liveBus{b}, live.Config{CheckInterval: config.LiveCheck, Logger: config.Logger})
	}
	b.cuts = newCuts()
	b.tables = newTables()
	return b, nil
}

// ownDefaults make a session independent of what the database's or the role's defaults are: a step
// of the sequencer needs READ COMMITTED, and writes. They are set here, not in the startup
// packet, because poolers refuse parameters there that they do not know.
const ownDefaults = "set default_transaction_isolation = 'read committed'; set default_transaction_read_only = off; "

// longLived is what the listening and the sequencing session set: no time-out ends them while they
// wait, and TCP's own time-outs let the server drop them when this process is frozen or gone without a
// word, before the notification queue fills.
//
// What the sequencer tells of must survive a crash, even where writers do not wait for their own
// commits to be on disk: its commit comes after theirs in the WAL, and is waited for.
const longLived = ownDefaults +
	"set tcp_user_timeout = '10s'; set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 3; set tcp_keepalives_count = 3; " +
	"set idle_session_timeout = 0; set statement_timeout = 0; " +
	"select set_config('synchronous_commit', 'local', false) where current_setting('synchronous_commit') = 'off'; "

// connConfig is what one connection is made with: under its own application_name, which begins with
// "trumpet" so that pg_stat_activity shows who is there. A connection to the wrong server is refused
// by validate, and the next host is tried.
func (b *Bus) connConfig(role string, validate pgconn.ValidateConnectFunc) *pgx.ConnConfig {
	c := b.conn.Copy()
	b.configure(c, role, validate)
	return c
}

func (b *Bus) configure(c *pgx.ConnConfig, role string, validate pgconn.ValidateConnectFunc) {
	c.RuntimeParams["application_name"] = "trumpet " + role + " " + b.config.Worker
	c.RuntimeParams["client_encoding"] = "UTF8"
	dial, made := b.dialer.connection()
	c.DialFunc = dial
	users := b.conn.ValidateConnect // target_session_attrs
	c.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if users != nil {
			if err := users(ctx, conn); err != nil {
				return err
			}
		}
		if err := validate(ctx, conn); err != nil {
			return err
		}
		// Before anything is set in a session that is not ours alone.
		err := sql.CheckSession(ctx, conn, func(ctx context.Context) (*pgconn.PgConn, error) {
			once := b.conn.Copy()
			once.RuntimeParams["application_name"] = "trumpet check " + b.config.Worker
			once.DialFunc, _ = b.dialer.connection()
			return pgconn.ConnectConfig(ctx, &once.Config)
		})
		if err == nil {
			made()
		}
		return err
	}
}

// Run connects and delivers until ctx ends, and then returns nil. It reconnects for ever; it
// returns an error only for what trying again cannot mend: a wrong password, no such
// database, a missing schema, a pooler that swallows notifications.
func (b *Bus) Run(ctx context.Context) error {
	for _, p := range []struct {
		role string
		size int32
		at   *atomic.Pointer[pgxpool.Pool]
	}{{"pool", poolSize, &b.pool}, {"snapshot", cutPoolSize, &b.cutPool}} {
		pool, err := b.openPool(ctx, p.role, p.size)
		if err != nil {
			return err
		}
		defer pool.Close()
		p.at.Store(pool)
		defer p.at.Store(nil)
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return b.listen(ctx) })
	group.Go(func() error { return newDeliverer(b).run(ctx) })
	group.Go(func() error { return b.sequencer.run(ctx) })
	group.Go(func() error { return b.answers.run(ctx) })
	if b.live != nil {
		group.Go(func() error { return b.live.Run(ctx) })
	}
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Status is what a bus knows of itself.
type Status struct {
	Connected  bool            // the listening session is up and has caught up
	Head       trumpet.EventID // everything up to here was given to the sink
	LastHeard  time.Time       // when the listening session last heard anything, heartbeats included
	Sequencing bool            // this worker has sequencer duty

	Reconnects int64 // of the listening session
	Events     int64 // given to the sink
	Steps      int64 // of the sequencer, by this worker
	Sequenced  int64 // records that this worker gave a position
	Gaps       int64 // times that positions were missing and were read from the log
	LogReads   int64 // pages read from the log
	Forged     int64 // notifications without a valid signature, dropped
	Rewinds    int64 // times that the log had lost what was given already
	Malformed  int64 // lines or rows that could not be understood; the log was read, or a bulk event given, instead
	Dropped    int64 // raw notifications that found the inbox full, or were no valid event
	Pruned     int64 // records that this worker pruned

	LiveRunning    bool  // this worker has the live duty
	LiveRuns       int64 // of live queries, and reads of live aggregates, by this worker
	LiveFailures   int64 // of these
	LivePublished  int64 // results
	LiveUnchanged  int64 // results that were what was published before
	LiveRecomputes int64 // live aggregates read anew, because what changed could not be followed
	LiveRepairs    int64 // live aggregates that were found to differ from their table

	// The replication slot of the WAL capture as of the last heartbeat.
	WALWanted   bool   // tables are watched by the WAL
	WALSlot     string // "": there is none
	WALState    string // pg_replication_slots.wal_status; "gone" if the server has no such slot
	WALRetained int64  // bytes of WAL that it keeps from being removed
	WALSafe     int64  // bytes that can be written until it is given up; -1: any number
	WALLag      int64  // bytes between the WAL's end and what is confirmed

	// QueueUsage is the part of Postgres's notification queue that is taken, from 0 to 1, as of
	// the last heartbeat.
	QueueUsage float64
}

// statusBoard is the Status that several goroutines write.
type statusBoard struct {
	mu        sync.Mutex
	head      trumpet.EventID
	connected atomic.Bool
	duty      atomic.Bool
	lastHeard atomic.Int64  // Unix nanoseconds
	queue     atomic.Uint64 // bits of a float64
	wal       atomic.Pointer[walPulse]

	reconnects, events, steps, sequenced, gaps, logReads, forged, rewinds, malformed, dropped, pruned atomic.Int64
}

func (s *statusBoard) setHead(head trumpet.EventID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head = head
}

func (s *statusBoard) heard() { s.lastHeard.Store(time.Now().UnixNano()) }

// Status returns the present state. It may be called at any time.
func (b *Bus) Status() Status {
	s := &b.status
	s.mu.Lock()
	head := s.head
	s.mu.Unlock()
	status := Status{
		Connected:  s.connected.Load(),
		Head:       head,
		Sequencing: s.duty.Load(),
		Reconnects: s.reconnects.Load(),
		Events:     s.events.Load(),
		Steps:      s.steps.Load(),
		Sequenced:  s.sequenced.Load(),
		Gaps:       s.gaps.Load(),
		LogReads:   s.logReads.Load(),
		Forged:     s.forged.Load(),
		Rewinds:    s.rewinds.Load(),
		Malformed:  s.malformed.Load(),
		Dropped:    s.dropped.Load(),
		Pruned:     s.pruned.Load(),
		QueueUsage: math.Float64frombits(s.queue.Load()),
	}
	if w := s.wal.Load(); w != nil {
		status.WALWanted, status.WALSlot, status.WALState, status.WALRetained, status.WALSafe = w.wanted, w.slot, w.status, w.retained, w.safe
		if w.slot != "" {
			status.WALLag = int64(w.end - w.confirmed)
		}
	}
	if b.live != nil {
		live := b.live.Status()
		status.LiveRunning, status.LiveRuns, status.LiveFailures = live.Running, live.Runs, live.Failures
		status.LivePublished, status.LiveUnchanged = live.Published, live.Unchanged
		status.LiveRecomputes, status.LiveRepairs = live.Recomputes, live.Repairs
	}
	if nanos := s.lastHeard.Load(); nanos != 0 {
		status.LastHeard = time.Unix(0, nanos)
	}
	return status
}

// mendable reports whether connecting again can help. It asks the SQLSTATE.
func mendable(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return true
	}
	switch pg.Code {
	case "28P01", "28000", // invalid password, invalid authorization
		"3D000", // no such database
		"42501": // insufficient privilege
		return false
	}
	return true
}
