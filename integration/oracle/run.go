package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// Config says what a run is. Zero values mean the defaults.
type Config struct {
	// Seed is what all choices come from.
	Seed uint64
	// Binary is the worker's, as trumpettest.Build made it.
	Binary string
	// Duration is how long storms last, together; default 20 s. Each is at most Round long, by default
	// 45 s, and ends in a rest, at which everything is compared.
	Duration, Round time.Duration
	// Capture is how tables are watched: triggers, which is the default; wal; or mixed: jobs by the WAL,
	// and customers by triggers.
	Capture string
	// Workers, Clients, Boards and Writers: how many; default 2, 20, 10 and 3. Boards are clients with
	// filters and snapshots.
	Workers, Clients, Boards, Writers int
	// Pace is how long a writer waits between two transactions, on average; default 40 ms.
	Pace time.Duration
	// Calm is how long nothing is broken between two faults, at the most; default 3 s. A fault that
	// has a length is at most Longest long; default 12 s.
	Calm, Longest time.Duration
	// Faults are the kinds to choose from; default all that the capture can have. Empty but not nil: none.
	Faults []string
	// LiveWithin is the bound of I8; default 5 s.
	LiveWithin time.Duration
	// Patience is how long all clients may take to have everything when nothing happens any
	// more; default 60 s.
	Patience time.Duration
	// Restless is how long a client that is not steady goes on as it is, at the most; default 8 s.
	Restless time.Duration
	// Progress hears of the run after each rest.
	Progress func(Report)

	// Tamper makes what stands between a client's wire and the checks.
	Tamper func(client int) Tamper
	// AtRest is called before the comparison; it may corrupt what was committed.
	AtRest func(context.Context, *pgx.Conn) error

	manner func(client int) manner // default mannerOf
}

// Tamper corrupts what a client says and hears: tests of the oracle itself must see that it finds out.
type Tamper struct {
	Since   func(since string) string
	Receive func(trumpettest.Frame) []trumpettest.Frame
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	number := func(n *int, value int) {
		if *n == 0 {
			*n = value
		}
	}
	def(&c.Duration, 20*time.Second)
	def(&c.Round, 45*time.Second)
	def(&c.Pace, 40*time.Millisecond)
	def(&c.Calm, 3*time.Second)
	def(&c.Longest, 12*time.Second)
	def(&c.LiveWithin, 5*time.Second)
	def(&c.Restless, 8*time.Second)
	def(&c.Patience, time.Minute)
	number(&c.Workers, 2)
	number(&c.Clients, 20)
	number(&c.Boards, 10)
	number(&c.Writers, 3)
	if c.manner == nil {
		c.manner = mannerOf
	}
	if c.Capture == "" {
		c.Capture = Captures()[0]
	}
	if c.Faults == nil {
		c.Faults = Kinds(c.Capture)
	}
	return c
}

func (c Config) validate() error {
	if c.Binary == "" {
		return errors.New("configure oracle: a binary is required")
	}
	if c.Duration < 0 || c.Round < 0 || c.Pace < 0 || c.Workers < 0 || c.Clients < 0 || c.Boards < 0 || c.Writers < 0 {
		return errors.New("configure oracle: nothing can be negative")
	}
	if byWAL[c.Capture] == nil {
		return fmt.Errorf("configure oracle: no capture is called %q", c.Capture)
	}
	for _, kind := range c.Faults {
		if _, ok := faults[kind]; !ok {
			return fmt.Errorf("configure oracle: no fault is called %q", kind)
		}
		if !slices.Contains(Kinds(c.Capture), kind) {
			return fmt.Errorf("configure oracle: %s needs tables that are watched by the WAL", kind)
		}
	}
	return nil
}

// run is one run of the oracle.
type run struct {
	config   Config
	begun    time.Time
	db       *database
	fetcher  *fetcher
	stations []*station
	clients  []*client
	writers  []*writer
	truth    truth
	posts    posts
	tally    tally
	marked   bell
	markers  atomic.Int64
	lastRest chan struct{} // closed when the last rest begins: who is away comes back

	mu         sync.Mutex
	storm      bool
	rest       chan struct{} // closed when the storm ends
	abandoned  []*connection
	happenings story
	violations []Violation

	// Of the rests alone:
	checked      trumpet.EventID        // the log was compared with what was committed up to here
	transactions map[string]transaction // by xid: committed, and not found in the log yet
}

// rng is a source of choices of its own for each that makes any, all from the seed.
func (r *run) rng(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(r.config.Seed, stream)) }

// Run runs storms and rests until the configured time is over, or an invariant was broken. The error is
// for what has nothing to do with invariants, such as a Postgres that cannot be started.
func Run(ctx context.Context, config Config) (Report, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return Report{}, err
	}
	r := &run{config: config, begun: time.Now(), lastRest: make(chan struct{}), rest: make(chan struct{})}
	r.marked.changed = make(chan struct{})
	r.transactions = map[string]transaction{}
	err := r.all(ctx)
	return r.report(), err
}

func (r *run) all(ctx context.Context) (err error) {
	if r.db, err = openDatabase(ctx, r.config.Capture); err != nil {
		return err
	}
	r.fetcher = newFetcher(r.db)
	following, leave := context.WithCancel(ctx)
	var clients errgroup.Group
	defer func() {
		leave()
		_ = clients.Wait() // clients give no errors
		r.fetcher.group.Wait()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, r.close(closing))
	}()
	for i := range r.config.Workers {
		s, err := newStation(ctx, r, i)
		if err != nil {
			return err
		}
		r.stations = append(r.stations, s)
	}
	if err := r.awaitCapture(ctx); err != nil {
		return err
	}
	for i := range r.config.Writers {
		r.writers = append(r.writers, &writer{run: r, name: fmt.Sprintf("w%d", i), rng: r.rng(10 + uint64(i))})
	}
	for i := range r.config.Clients + r.config.Boards {
		c := newClient(r, i)
		r.clients = append(r.clients, c)
	}
	for _, c := range r.clients {
		clients.Go(func() error {
			c.live(following)
			return nil
		})
	}
	weather := r.rng(1)
	for end := time.Now().Add(r.config.Duration); ; {
		length := min(r.config.Round, time.Until(end))
		if err := r.blow(ctx, length, weather); err != nil {
			return err
		}
		last := time.Until(end) <= 0
		if last {
			close(r.lastRest)
		}
		if err := r.settle(ctx, last); err != nil {
			return err
		}
		if r.config.Progress != nil {
			r.config.Progress(r.report())
		}
		if r.failed() {
			return nil
		}
		if last {
			leave()
			_ = clients.Wait()
			r.farewell(ctx)
			return nil
		}
	}
}

// farewell sees whether workers let go of everything. Those WebSockets that vanished answer no ping; a
// vanished stream whose machine still takes bytes is like one that is quiet, and stays.
func (r *run) farewell(ctx context.Context) {
	r.mu.Lock()
	abandoned := r.abandoned
	r.mu.Unlock()
	for _, conn := range abandoned {
		if conn.Stream() || r.config.Duration < time.Minute {
			conn.Cut()
		}
	}
	for _, s := range r.stations {
		if b := s.letGo(ctx); b != nil {
			r.fail(s.worker.Name, b)
		}
	}
}

// blow lets a storm rage: writers write, clients behave as they do, faults come and go.
func (r *run) blow(ctx context.Context, length time.Duration, weather *rand.Rand) error {
	storm, over := context.WithTimeout(ctx, length)
	defer over()
	r.mu.Lock()
	r.storm, r.rest = true, make(chan struct{})
	r.mu.Unlock()
	r.truth.slotLost = false
	r.happens("a storm begins")
	var writing sync.WaitGroup
	for _, w := range r.writers {
		writing.Go(func() { w.write(ctx, storm) })
	}
	r.breakThings(ctx, storm, weather) // it ends what it broke before it returns
	<-storm.Done()
	writing.Wait()
	r.happens("the storm is over")
	r.mu.Lock()
	r.storm = false
	close(r.rest)
	r.mu.Unlock()
	return ctx.Err()
}

// storming reports whether a storm rages, and when it will have ended.
func (r *run) storming() (bool, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.storm, r.rest
}

// mark broadcasts the next marker, insistently, and returns its number.
func (r *run) mark(ctx context.Context) (n int64, err error) {
	err = insistently(ctx, 2*time.Second, func(ctx context.Context) error {
		n = r.markers.Add(1)
		var batch pgx.Batch
		batch.Queue("select trumpet.broadcast($1, to_jsonb($2::bigint))", markers, n)
		batch.Queue(note, fmt.Sprintf("marker %d", n), 1, 0, 0)
		err := r.db.pool.SendBatch(ctx, &batch).Close()
		if err != nil {
			r.db.pool.Reset() // the others may be as dead as this one
		}
		return err
	})
	return n, err
}

// await waits until each of these clients has a marker, or is not waited for any more.
func (r *run) await(ctx context.Context, n int64, clients []*client, arrived func(*client, time.Time), waitFor func(*client) bool) (missing []*client) {
	for {
		changed := r.marked.listen()
		missing = nil
		for _, c := range clients {
			switch {
			case c.reached.Load() >= n:
				arrived(c, time.Now())
			case waitFor(c):
				missing = append(missing, c)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		clients = missing
		select {
		case <-changed:
		case <-time.After(200 * time.Millisecond): // who is not waited for any more makes no sound
		case <-ctx.Done():
			return missing
		}
	}
}

// bell wakes those who listen.
type bell struct {
	mu      sync.Mutex
	changed chan struct{}
}

func (b *bell) listen() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *bell) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.changed)
	b.changed = make(chan struct{})
}

// happens notes something for the tale of a violation.
func (r *run) happens(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.happenings.add(format, args...)
}

// mayReset reports whether there is a reason for a reset: the log was pruned beyond what the client
// had. No log is lost or replaced here, and no client gives an id that is none.
func (r *run) mayReset(reason wire.Reason, newest trumpet.EventID) bool {
	r.truth.mu.Lock()
	defer r.truth.mu.Unlock()
	switch reason {
	case "pruned", "lost":
		return newest.Position <= r.truth.pruned
	}
	return false
}

// abandon keeps a connection open that nobody reads any more.
func (r *run) abandon(conn *connection) {
	r.mu.Lock()
	r.abandoned = append(r.abandoned, conn)
	var closing []*connection
	if extra := len(r.abandoned) - maxAbandoned; extra > 0 {
		closing, r.abandoned = r.abandoned[:extra:extra], r.abandoned[extra:]
	}
	r.mu.Unlock()
	r.tally.vanished.Add(1)
	for _, conn := range closing {
		conn.Cut()
	}
}

// maxAbandoned bounds the descriptors that vanished clients take.
const maxAbandoned = 200

// fail notes that an invariant does not hold.
func (r *run) fail(who string, b *broken) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violations = append(r.violations, Violation{Invariant: string(b.invariant), Client: -1, Who: who, What: b.what, Faults: append(story(nil), r.happenings...)})
}

// failClient does, for a client. Its mu is held.
func (r *run) failClient(c *client, b *broken) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violations = append(r.violations, Violation{
		Invariant: string(b.invariant), Client: c.index, Who: c.name, What: b.what,
		Story: append(story(nil), c.story...), Faults: append(story(nil), r.happenings...),
	})
}

func (r *run) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.violations) > 0
}

func (r *run) close(ctx context.Context) error {
	r.mu.Lock()
	abandoned := r.abandoned
	r.mu.Unlock()
	for _, conn := range abandoned {
		conn.Cut()
	}
	var errs []error
	for _, s := range r.stations {
		errs = append(errs, s.close(ctx))
	}
	return errors.Join(append(errs, r.db.close(ctx))...)
}
