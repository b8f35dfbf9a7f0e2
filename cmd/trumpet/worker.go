package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/julienschmidt/httprouter"
	"golang.org/x/sync/errgroup"

	"github.com/trumpet-realtime/trumpet/pgbus"
	"github.com/trumpet-realtime/trumpet/server"
	"github.com/trumpet-realtime/trumpet/server/hub"
)

// workerConfig is what a worker is made of.
type workerConfig struct {
	database       string
	name           string
	listener       net.Listener // closed by run
	channels       []string
	allowOrigins   []string
	drain          time.Duration
	maxDelay       time.Duration
	retention      time.Duration
	liveCheck      time.Duration // zero is the bus's default
	maxConnections int
	maxPerAddress  int // zero is no bound
	trustedProxies []netip.Prefix
	headroom       int                // TCP connections that are no clients; zero is the server's default
	notify         func(state string) // tells systemd; nil tells nobody
	logger         *slog.Logger
	routes         map[string]http.Handler // "GET /path", beside the server's own
}

// worker is one Trumpet worker: a bus, the hub that it fills, and the server of that hub.
type worker struct {
	listener net.Listener
	hub      *hub.Hub
	bus      *pgbus.Bus
	server   *server.Server
	notify   func(state string)
	logger   *slog.Logger
	ready    *readySink
}

// newWorker ties the rooms together, in the order of the data. Nothing is connected yet, but
// the hub has goroutines: run, or close, ends them.
func newWorker(c workerConfig) (*worker, error) {
	fanout, err := hub.New(hub.Config{Worker: c.name, Logger: c.logger, MaxDelay: c.maxDelay})
	if err != nil {
		return nil, err
	}
	w := &worker{
		listener: c.listener, hub: fanout, notify: c.notify, logger: c.logger,
		ready: &readySink{Hub: fanout, live: make(chan struct{})},
	}
	w.bus, err = pgbus.New(pgbus.Config{
		ConnString: c.database,
		Channels:   c.channels,
		Worker:     c.name,
		Retention:  c.retention,
		LiveCheck:  c.liveCheck,
		Logger:     c.logger,
		// Called while run runs, when the server is there.
		Answer: func() json.RawMessage { return w.server.Answer() },
	}, w.ready)
	if err != nil {
		fanout.Close()
		return nil, err
	}
	fanout.UseLog(w.bus)
	fanout.UseSnapshots(w.bus)
	w.server, err = server.New(server.Config{
		Worker:                   c.name,
		Version:                  versionText(),
		Hub:                      fanout,
		Publisher:                w.bus,
		Cluster:                  cluster{w.bus},
		Catalog:                  w.bus,
		Logger:                   c.logger,
		AllowedOrigins:           c.allowOrigins,
		MaxConnections:           c.maxConnections,
		MaxConnectionsPerAddress: c.maxPerAddress,
		TrustedProxies:           c.trustedProxies,
		Headroom:                 c.headroom,
		Drain:                    max(c.drain, 1), // zero would be the server's default
		Mount:                    mount(c.routes),
	})
	if err != nil {
		fanout.Close()
		return nil, err
	}
	return w, nil
}

// mount adds routes to the server's.
func mount(routes map[string]http.Handler) func(*httprouter.Router) {
	return func(router *httprouter.Router) {
		for route, handler := range routes {
			method, path, _ := strings.Cut(route, " ")
			router.Handler(method, path, handler)
		}
	}
}

// run works until ctx ends, then sends the clients away while the bus still delivers, and
// then ends the bus. It also ends when the bus finds what it cannot mend.
func (w *worker) run(ctx context.Context) error {
	defer w.hub.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The bus outlives ctx: who is not yet sent away still gets events.
	busCtx, stopBus := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBus()

	var group errgroup.Group
	group.Go(func() error {
		defer cancel()
		return w.bus.Run(busCtx)
	})
	group.Go(func() error {
		defer stopBus()
		return w.server.Serve(ctx, w.listener)
	})
	group.Go(func() error {
		w.tell(ctx)
		return nil
	})
	w.logger.Info("serving", "address", w.listener.Addr().String(), "version", versionText())
	err := group.Wait()
	w.logger.Info("stopped")
	return err
}

// tell tells systemd when the bus is live for the first time, and when ctx ends.
func (w *worker) tell(ctx context.Context) {
	if w.notify == nil {
		return
	}
	if w.waitReady(ctx) == nil {
		w.notify(daemon.SdNotifyReady)
	}
	<-ctx.Done()
	w.notify(daemon.SdNotifyStopping)
}

// close ends a worker that never ran.
func (w *worker) close() {
	w.listener.Close()
	w.hub.Close()
}

// waitReady waits until the bus has caught up.
func (w *worker) waitReady(ctx context.Context) error {
	select {
	case <-w.ready.live:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readySink is the hub, and tells when the bus is live for the first time.
type readySink struct {
	*hub.Hub
	once sync.Once
	live chan struct{}
}

// Live passes on.
func (s *readySink) Live() {
	s.Hub.Live()
	s.once.Do(func() { close(s.live) })
}

// cluster is how the server sees the bus.
type cluster struct{ bus *pgbus.Bus }

func (c cluster) Status() server.BusStatus {
	return server.BusStatus(c.bus.Status())
}

func (c cluster) Ask(ctx context.Context) ([]json.RawMessage, int, error) {
	return c.bus.Ask(ctx)
}
