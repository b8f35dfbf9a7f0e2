package pgbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/trumpet-realtime/trumpet/pgbus/wal"
)

const (
	// maxUnread bounds the transactions, in bytes, that were read from the WAL and not yet written to the
	// log. Past it nothing is read; what waits stays in the WAL.
	maxUnread = 16 << 20
	// startTimeout bounds the beginning of a stream.
	startTimeout = 10 * time.Second
	// lingerFor is how long reading pauses after a transaction for which nobody waits.
	lingerFor = time.Millisecond
	// silenceTimeout is how long the server may say nothing though it was asked. While it decodes what is not
	// for us it says something every half of senderTimeout.
	silenceTimeout = 8 * time.Second
	senderTimeout  = "10s"
)

// stream reads the WAL through the replication slot: one goroutine, run, receives and decodes;
// whoever has the duty takes the transactions and confirms them.
type stream struct {
	conn    *pgconn.PgConn
	decoder *wal.Decoder
	from    pglogrepl.LSN // transactions that end here or before are known
	wake    chan struct{} // told of transactions

	moved chan struct{} // one slot: reached is what is awaited, or reading has stopped
	room  chan struct{} // one slot: transactions were taken
	hurry chan struct{} // one slot: somebody waits for moved

	mu      sync.Mutex
	unread  []*wal.Transaction
	bytes   int           // of these
	reached pglogrepl.LSN // what was committed before is in unread, or was
	heard   time.Time     // when the server said something
	awaited pglogrepl.LSN // whoever waits for moved wants to get so far
	failure error

	sending   sync.Mutex
	confirmed pglogrepl.LSN
}

// openStream connects and starts reading at from, where the tables are watched like this.
func openStream(ctx context.Context, b *Bus, slot string, from pglogrepl.LSN, tables wal.Tables, wake chan struct{}) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	conn, err := b.connectReplication(ctx)
	if err != nil {
		return nil, err
	}
	// As trumpet.capture() has it: pgoutput writes values with the settings of its session.
	if _, err := conn.Exec(ctx, longLived+`set search_path = pg_catalog, pg_temp; set timezone = 'UTC'; set intervalstyle = 'postgres'; set datestyle = 'ISO, MDY';
		set bytea_output = 'hex'; set extra_float_digits = 1; set wal_sender_timeout = '`+senderTimeout+"'").ReadAll(); err != nil {
		closeConn(conn)
		return nil, fmt.Errorf("set up session: %w", err)
	}
	err = pglogrepl.StartReplication(ctx, conn, pgx.Identifier{slot}.Sanitize(), from, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'trumpet'", "messages 'true'"},
	})
	if err != nil {
		closeConn(conn)
		return nil, fmt.Errorf("start replication: %w", err)
	}
	return &stream{
		conn:      conn,
		decoder:   wal.NewDecoder(catalog{b}, tables),
		from:      from,
		wake:      wake,
		moved:     make(chan struct{}, 1),
		room:      make(chan struct{}, 1),
		hurry:     make(chan struct{}, 1),
		confirmed: from,
		heard:     time.Now(),
	}, nil
}

// connectReplication makes a connection that takes replication commands, and SQL.
func (b *Bus) connectReplication(ctx context.Context) (*pgconn.PgConn, error) {
	config := b.connConfig("wal", b.places.follow)
	config.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, &config.Config)
	if err != nil {
		return nil, fmt.Errorf("connect for replication: %w", err)
	}
	return conn, nil
}

// catalog asks the catalog on a session of the pool, for a decoder.
type catalog struct{ bus *Bus }

func (c catalog) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	pool := c.bus.pool.Load()
	if pool == nil {
		return nil, errNotRunning
	}
	return pool.Query(ctx, sql, args...)
}

// run receives until ctx ends or the stream fails, and closes the connection.
func (s *stream) run(ctx context.Context) {
	defer closeConn(s.conn)
	// Watching ctx at each message would cost more than reading it.
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Conn().Close() })
	defer stop()
	err := s.receive(ctx)
	s.mu.Lock()
	s.failure = err
	s.mu.Unlock()
	poke(s.moved)
	poke(s.wake)
}

func (s *stream) receive(ctx context.Context) error {
	for {
		message, err := s.conn.ReceiveMessage(context.Background())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		s.mu.Lock()
		s.heard = time.Now()
		s.mu.Unlock()
		switch m := message.(type) {
		case *pgproto3.CopyData:
			if err := s.take(ctx, m.Data); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(m)
		case *pgproto3.CopyDone:
			return errors.New("the server ended the stream")
		}
	}
}

// take handles one message of the stream (PostgreSQL manual, 55.4).
func (s *stream) take(ctx context.Context, data []byte) error {
	if len(data) == 0 {
		return errors.New("an empty message")
	}
	switch data[0] {
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return fmt.Errorf("read message: %w", err)
		}
		transaction, err := s.decoder.Decode(ctx, x.WALStart, x.WALData)
		if err != nil {
			return fmt.Errorf("decode: %w", err)
		}
		if transaction != nil {
			return s.put(ctx, transaction)
		}
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return fmt.Errorf("read keepalive: %w", err)
		}
		// It says up to where everything has been sent.
		s.reach(k.ServerWALEnd)
		if k.ReplyRequested {
			return s.report(false)
		}
	}
	return nil
}

// put adds a transaction, and waits while too many are unread.
func (s *stream) put(ctx context.Context, t *wal.Transaction) error {
	wanted := t.End > s.from && (len(t.Records) > 0 || t.Tables != nil)
	if wanted {
		s.mu.Lock()
		s.unread = append(s.unread, t)
		s.bytes += t.Bytes()
		s.mu.Unlock()
		defer poke(s.wake)
	}
	s.reach(t.End)
	for {
		s.mu.Lock()
		full, awaited := s.bytes > maxUnread, s.awaited > 0
		s.mu.Unlock()
		if !full {
			if awaited || !wanted {
				return nil
			}
			return s.linger(ctx)
		}
		poke(s.wake)
		poke(s.moved)
		select {
		case <-s.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// linger lets more come before the next read, while nobody waits for it: the server sends each message by itself,
// and to wake for each would cost more than to decode it.
func (s *stream) linger(ctx context.Context) error {
	timer := time.NewTimer(lingerFor)
	defer timer.Stop()
	select {
	case <-s.hurry:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (s *stream) reach(lsn pglogrepl.LSN) {
	s.mu.Lock()
	s.reached = max(s.reached, lsn)
	there := s.awaited > 0 && s.reached >= s.awaited
	s.mu.Unlock()
	if there {
		poke(s.moved)
	}
}

// await has moved told when so much was read.
func (s *stream) await(lsn pglogrepl.LSN) {
	s.mu.Lock()
	s.awaited = lsn
	s.mu.Unlock()
	if lsn > 0 {
		poke(s.hurry)
	}
}

// takeUnread takes what was read and says how far that is. An error means that the stream has ended.
func (s *stream) takeUnread() (transactions []*wal.Transaction, reached pglogrepl.LSN, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes > maxUnread {
		s.heard = time.Now() // nobody listened
	}
	transactions, s.unread, s.bytes = s.unread, nil, 0
	poke(s.room)
	return transactions, s.reached, s.failure
}

// errSilent is a server process that does not answer: it is frozen, or the way to it is dead.
var errSilent = errors.New("the server says nothing, though it was asked")

// state says how far was read, whether it is time to take what is unread, and whether the stream has ended, or
// is as good as that.
func (s *stream) state() (reached pglogrepl.LSN, full bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.failure
	if err == nil && s.bytes <= maxUnread && time.Since(s.heard) > silenceTimeout {
		err = errSilent
	}
	return s.reached, s.bytes > maxUnread, err
}

// idle reports whether something is unread, and how far was read.
func (s *stream) idle() (unread bool, reached pglogrepl.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unread) > 0, s.reached
}

// confirm notes that what was committed up to lsn is safe in the log. The server hears of it with the
// next report.
func (s *stream) confirm(lsn pglogrepl.LSN) {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.confirmed = max(s.confirmed, lsn)
}

// report tells the server what is confirmed. With ask it answers at once how far it has sent.
func (s *stream) report(ask bool) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	update := pglogrepl.StandbyStatusUpdate{WALWritePosition: s.confirmed, ReplyRequested: ask}
	if err := pglogrepl.SendStandbyStatusUpdate(context.Background(), s.conn, update); err != nil {
		return fmt.Errorf("report to the server: %w", err)
	}
	return nil
}
