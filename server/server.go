// Package server serves the hub over HTTP: WebSockets, server-sent events, broadcasts,
// status, metrics and the pages. It knows nothing of Postgres.
//
// [Server.Serve] owns the HTTP server, a poller, and one reading goroutine for each hijacked
// connection on which something has come, and returns when all have ended. The hub is not the server's:
// who made it closes it afterwards.
package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/julienschmidt/httprouter"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/hub"
	"github.com/trumpet-realtime/trumpet/server/socket"
)

const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = time.Minute
	maxHeaderBytes    = 16 << 10
	// drainGrace is how much longer than Config.Drain a client may take to hang up.
	drainGrace = 3 * time.Second
)

// Publisher commits broadcasts.
type Publisher interface {
	// Publish returns when the broadcast is committed. A zero id means that its place in
	// the log is not known yet.
	Publish(ctx context.Context, topic string, data json.RawMessage) (trumpet.EventID, error)
}

// BusStatus is what a worker knows of its bus.
type BusStatus struct {
	Connected  bool            // it hears Postgres and has caught up
	Head       trumpet.EventID // everything up to here was given to the hub
	LastHeard  time.Time
	Sequencing bool

	Reconnects int64
	Events     int64
	Steps      int64
	Sequenced  int64
	Gaps       int64
	LogReads   int64
	Forged     int64
	Rewinds    int64
	Malformed  int64
	Dropped    int64
	Pruned     int64

	LiveRunning    bool // this worker has the live duty
	LiveRuns       int64
	LiveFailures   int64
	LivePublished  int64
	LiveUnchanged  int64
	LiveRecomputes int64
	LiveRepairs    int64

	WALWanted   bool   // tables are watched by the WAL
	WALSlot     string // the replication slot; "": there is none
	WALState    string // as Postgres has it: reserved, extended, unreserved, lost; or gone
	WALRetained int64  // bytes of WAL that it keeps from being removed
	WALSafe     int64  // bytes that can be written until it is given up; -1: any number
	WALLag      int64  // bytes of WAL that are not confirmed

	QueueUsage float64 // of Postgres's notification queue, from 0 to 1
}

// Cluster knows this worker's bus and asks the other workers.
type Cluster interface {
	Status() BusStatus
	// Ask returns the answers of all workers, this one too, and how many there are.
	Ask(ctx context.Context) (answers []json.RawMessage, alive int, err error)
}

// Config says what a server serves. Hub, Publisher and Cluster are required.
type Config struct {
	// Worker is this worker's name; Version the program's.
	Worker  string
	Version string

	Hub       *hub.Hub
	Publisher Publisher
	Cluster   Cluster
	// Catalog knows the watched tables; without it no topic can be filtered.
	Catalog Catalog
	Logger  *slog.Logger

	// AllowedOrigins are the origins, such as https://app.example.com, beside the
	// server's own, whose pages may connect and publish.
	AllowedOrigins []string
	// MaxConnections bounds WebSockets and streams together; default 20,000.
	MaxConnections int
	// MaxConnectionsPerAddress bounds those of one address; zero is no bound.
	MaxConnectionsPerAddress int
	// TrustedProxies are believed what they say in X-Forwarded-For.
	TrustedProxies []netip.Prefix
	// Headroom bounds TCP connections that are no clients: requests, newcomers, and, for a quarter of
	// it, those who are told that there is no place for them; at least 2, default 1,024.
	Headroom int
	// Drain is over how long clients are sent away at the end; default 5 s.
	Drain time.Duration
	// Mount adds routes, for the demo.
	Mount func(*httprouter.Router)
}

func (c Config) withDefaults() Config {
	c.Worker = cmp.Or(c.Worker, "worker")
	c.Version = cmp.Or(c.Version, "devel")
	c.MaxConnections = cmp.Or(c.MaxConnections, 20_000)
	c.Headroom = cmp.Or(c.Headroom, 1024)
	c.Drain = cmp.Or(c.Drain, 5*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	if c.Hub == nil || c.Publisher == nil || c.Cluster == nil {
		return errors.New("configure server: hub, publisher and cluster are required")
	}
	if c.MaxConnections < 0 || c.MaxConnectionsPerAddress < 0 || c.Headroom < 2 || c.Drain < 0 {
		return errors.New("configure server: max connections and drain cannot be negative, and headroom is at least 2")
	}
	for _, origin := range c.AllowedOrigins {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin {
			return fmt.Errorf("configure server: allowed origin %q does not look like https://app.example.com", origin)
		}
	}
	return nil
}

// Server is one worker's HTTP side.
type Server struct {
	config  Config
	handler http.Handler
	posts   *http.CrossOriginProtection
	census  census

	draining    atomic.Bool
	places      *places
	gate        atomic.Pointer[gate] // once Serve was called
	warnAddress sync.Once
	blind       atomic.Bool // Postgres could not be asked for the columns of a filter, and that is logged
	readers     sync.WaitGroup
	poller      atomic.Pointer[socket.Poller] // while Serve runs, where there is one

	mu      sync.Mutex
	sockets map[*socket.Conn]struct{} // what readers read from
	ended   bool
}

// New returns a server; Serve starts it.
func New(config Config) (*Server, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	s := &Server{
		config:  config,
		places:  newPlaces(config.MaxConnections, config.MaxConnectionsPerAddress, config.Headroom/4),
		posts:   http.NewCrossOriginProtection(),
		sockets: make(map[*socket.Conn]struct{}),
	}
	for _, origin := range config.AllowedOrigins {
		if err := s.posts.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("configure server: allow origin %q: %w", origin, err)
		}
	}
	s.handler = s.routes()
	return s, nil
}

// Handler returns what Serve serves, for those who have an HTTP server already. Without
// Serve nobody sends clients away at the end.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve serves until ctx ends; then it sends all clients away, spread over Config.Drain,
// and returns when everything has ended.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	gate := newGate(listener, s.config.Headroom-s.config.Headroom/4, s.config.Logger)
	s.gate.Store(gate)
	httpServer := &http.Server{
		ConnState:         gate.note,
		Handler:           s.handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// What clients do wrong on the wire is their business, and could fill a disk.
		ErrorLog: slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelDebug),
	}
	poller, err := socket.NewPoller()
	if err != nil {
		return fmt.Errorf("make poller: %w", err)
	}
	polled := make(chan error, 1)
	go func() { polled <- poller.Run() }()
	s.poller.Store(poller)
	served := make(chan error, 1)
	go func() { served <- httpServer.Serve(gate) }()

	var failed error
	select {
	case <-ctx.Done():
	case err := <-served:
		failed = fmt.Errorf("serve http: %w", err)
		served <- nil
	case err := <-polled:
		failed = fmt.Errorf("poll connections: %w", err)
		polled <- nil
	}

	s.draining.Store(true)
	s.config.Logger.Info("draining", "websockets", s.config.Hub.Stats().WebSockets, "streams", s.config.Hub.Stats().Streams, "over", s.config.Drain)
	// ctx has ended, and what follows has its own bound.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Drain+drainGrace)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() {
		// Closes the listener at once and waits for requests; it ignores what is hijacked.
		if err := httpServer.Shutdown(ending); err != nil {
			_ = httpServer.Close()
		}
	})
	if err := s.config.Hub.Drain(ending, s.config.Drain); err != nil {
		s.config.Logger.Warn("clients did not hang up in time", "error", err)
	}
	work.Wait()
	s.cutReaders()
	s.readers.Wait()
	<-served
	return errors.Join(failed, poller.Close(), <-polled)
}

// cutReaders closes what is still open after the drain; nothing is opened any more.
func (s *Server) cutReaders() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for conn := range s.sockets {
		_ = conn.Close()
	}
}
