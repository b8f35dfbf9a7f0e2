package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/sql"
)

// serveFlags are the configuration of one worker.
type serveFlags struct {
	database       databaseFlags
	listen         string
	listenGiven    bool
	auth           oneOf
	insecure       bool
	worker         string
	channels       channelFlag
	allowOrigins   []string
	drain          time.Duration
	maxDelay       time.Duration
	retention      time.Duration
	liveCheck      time.Duration
	maxConnections int
	maxPerAddress  int
	trustedProxies prefixFlag
	logs           logFlags
}

func newServe(io streams) *cobra.Command {
	var f serveFlags
	command := &cobra.Command{
		Use:   "serve",
		Short: "Run a worker: WebSocket, SSE and the pages over HTTP",
		Long: `Run a worker: WebSocket, SSE and the pages over HTTP. Run as many as you like against one
database; none is special.

SIGTERM or Ctrl-C drains: clients are sent to other workers over the time of --drain. A second
one ends it at once.

Started by systemd with a socket, it serves that one; --listen, if it is given, must be the same.
It tells systemd when it is ready and when it drains (Type=notify).`,
		Example: `  trumpet serve --database-url postgres://trumpet_worker@/app
  TRUMPET_LISTEN=127.0.0.1:8767 trumpet serve`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f.listenGiven = c.Flags().Changed("listen")
			if err := f.check(); err != nil {
				return usageError{err}
			}
			if _, err := f.database.parse(); err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				tuneCollector()
			}
			return f.serve(c.Context(), f.logs.logger(io.err))
		},
	}
	flags := command.Flags()
	f.database.add(flags)
	flags.StringVarP(&f.listen, "listen", "l", "127.0.0.1:8766", "listen on this `host:port`; port 0 lets the kernel choose")
	f.auth = oneOf{"none", []string{"none", "jwt"}}
	flags.Var(&f.auth, "auth", "who may connect; none, everybody, is for loopback addresses behind a proxy; jwt comes in a later version")
	flags.BoolVar(&f.insecure, "insecure", false, "let --auth none listen on an address that others can reach")
	flags.StringVar(&f.worker, "worker", "", "this worker's `name` in status and logs (default this machine's name and the port)")
	f.channels.add(flags)
	flags.StringSliceVar(&f.allowOrigins, "allow-origin", nil, "let pages of this `origin`, such as https://app.example.com, connect too; may be repeated (default the worker's own)")
	flags.DurationVar(&f.drain, "drain", 5*time.Second, "at the end, send clients away spread over this time")
	flags.DurationVar(&f.maxDelay, "max-delay", 0, "let events wait this long for others, so that several go into one write; at most 10s")
	flags.DurationVar(&f.retention, "retention", 24*time.Hour, "keep the log this long for clients that come back")
	flags.DurationVar(&f.liveCheck, "live-check", 5*time.Minute, "compare a live aggregate with its table this long after a change")
	flags.IntVar(&f.maxConnections, "max-connections", 20000, "refuse more than `n` clients")
	flags.IntVar(&f.maxPerAddress, "max-connections-per-address", 1000, "refuse more than `n` clients from one address; 0 is no bound")
	f.trustedProxies.add(flags)
	f.logs.add(flags, "info")
	withTwin(flags, "listen", "auth", "insecure", "worker", "allow-origin", "drain", "max-delay", "retention", "live-check", "max-connections", "max-connections-per-address")
	return command
}

// check refuses what is wrong or unsafe, and says what to do.
func (f *serveFlags) check() error {
	host, _, err := net.SplitHostPort(f.listen)
	if err != nil {
		return fmt.Errorf("--listen %q: it is host:port, such as 127.0.0.1:8766 (%s)", f.listen, addressReason(err))
	}
	if f.auth.value == "jwt" {
		return fmt.Errorf("--auth jwt is not in this version yet; listen on loopback with --auth none, behind a proxy that knows who may connect")
	}
	if err := f.checkHost(host, f.listen); err != nil {
		return err
	}
	switch {
	case f.drain < 0:
		return fmt.Errorf("--drain %v: it cannot be negative", f.drain)
	case f.maxDelay < 0 || f.maxDelay > 10*time.Second:
		return fmt.Errorf("--max-delay %v: from 0 to 10s", f.maxDelay)
	case f.liveCheck < time.Second:
		return fmt.Errorf("--live-check %v: at least 1s: it reads the whole table", f.liveCheck)
	case f.retention < time.Minute:
		return fmt.Errorf("--retention %v: at least 1m, or clients that reconnect cannot go on", f.retention)
	case f.maxConnections < 1:
		return fmt.Errorf("--max-connections %d: at least 1", f.maxConnections)
	case f.maxPerAddress < 0:
		return fmt.Errorf("--max-connections-per-address %d: at least 1, or 0 for no bound", f.maxPerAddress)
	}
	return nil
}

// checkHost refuses to serve everybody by mistake.
func (f *serveFlags) checkHost(host, address string) error {
	if isLoopback(host) || f.insecure {
		return nil
	}
	return fmt.Errorf("--auth none on %s would let everybody who reaches it read and broadcast; "+
		"listen on 127.0.0.1 behind a proxy, or add --insecure if that network is yours alone", address)
}

func addressReason(err error) string {
	if addr, ok := err.(*net.AddrError); ok { //nolint:errorlint // SplitHostPort gives it as it is
		return addr.Err
	}
	return err.Error()
}

// isLoopback reports whether only this machine can reach a host to listen on.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

func (f *serveFlags) serve(ctx context.Context, logger *slog.Logger) error {
	listener, err := f.listener(ctx)
	if err != nil {
		return err
	}
	name := f.worker
	if name == "" {
		name = defaultName(listener.Addr())
	}
	clients, headroom := fitDescriptors(f.maxConnections, logger)
	w, err := newWorker(workerConfig{
		database:       f.database.url,
		name:           name,
		listener:       listener,
		channels:       f.channels.names,
		allowOrigins:   f.allowOrigins,
		drain:          f.drain,
		maxDelay:       f.maxDelay,
		retention:      f.retention,
		liveCheck:      f.liveCheck,
		maxConnections: clients,
		headroom:       headroom,
		maxPerAddress:  f.maxPerAddress,
		trustedProxies: f.trustedProxies.prefixes,
		notify:         systemdNotify(logger),
		logger:         logger.With("worker", name),
	})
	if err != nil {
		listener.Close()
		return usageError{err} // nothing was begun: a setting is wrong
	}
	if err := f.checkDatabase(ctx, logger); err != nil {
		w.close()
		return interrupted(ctx, err)
	}
	return w.run(ctx)
}

// checkDatabase says in plain words what only a person can mend: the bus would say it in the
// words of the driver. A Postgres that is out of reach is waited for by the bus.
func (f *serveFlags) checkDatabase(ctx context.Context, logger *slog.Logger) error {
	conn, err := f.database.connect(ctx, "serve")
	var unreachable unreachableError
	if errors.As(err, &unreachable) {
		logger.Warn("postgres is out of reach, waiting for it", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	return sql.Check(ctx, conn)
}

// defaultName is the machine's name with the port: the address itself is 127.0.0.1 everywhere.
func defaultName(address net.Addr) string {
	_, port, err := net.SplitHostPort(address.String())
	if err != nil {
		return address.String()
	}
	host, err := os.Hostname()
	if err != nil {
		return address.String()
	}
	return net.JoinHostPort(host, port)
}

// listener is systemd's socket if there is one, else a new one.
func (f *serveFlags) listener(ctx context.Context) (net.Listener, error) {
	listener, err := inherited(activation.Files(true))
	if err != nil {
		return nil, usageError{err}
	}
	if listener == nil {
		return listen(ctx, f.listen)
	}
	if err := f.checkInherited(listener.Addr()); err != nil {
		listener.Close()
		return nil, usageError{err}
	}
	return listener, nil
}

// listen opens a TCP port, or says what to do.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, innermost(err))
	}
	return listener, nil
}

// prefixFlag are networks whose X-Forwarded-For is believed.
type prefixFlag struct{ prefixes []netip.Prefix }

func (p *prefixFlag) add(flags *pflag.FlagSet) {
	p.prefixes = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	flags.Var(p, "trusted-proxies", "believe X-Forwarded-For of proxies in these networks, 10.0.0.5,10.1.0.0/16; an empty list believes none")
	withTwin(flags, "trusted-proxies")
}

func (p *prefixFlag) String() string {
	texts := make([]string, len(p.prefixes))
	for i, prefix := range p.prefixes {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ",")
}

func (p *prefixFlag) Type() string { return "networks" }
func (p *prefixFlag) Set(value string) error {
	p.prefixes = nil
	if strings.TrimSpace(value) == "" {
		return nil
	}
	for text := range strings.SplitSeq(value, ",") {
		prefix, err := parseNetwork(strings.TrimSpace(text))
		if err != nil {
			return err
		}
		p.prefixes = append(p.prefixes, prefix)
	}
	return nil
}

// parseNetwork reads a network, or an address as the network of that one.
func parseNetwork(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil {
		address = address.Unmap().WithZone("")
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no network; write 10.0.0.5 or 10.1.0.0/16", text)
	}
	if prefix.Masked() != prefix {
		return netip.Prefix{}, fmt.Errorf("%s has bits set beyond its length; is %s meant?", prefix, prefix.Masked())
	}
	return prefix, nil
}

// channelFlag are the channels on which a raw NOTIFY is heard.
type channelFlag struct{ names []string }

func (c *channelFlag) add(flags *pflag.FlagSet) {
	c.names = []string{"dispatch"}
	flags.Var(c, "channels", "hear raw NOTIFY on these channels, a,b; the channel is the topic; an empty list hears none")
	withTwin(flags, "channels")
}

func (c *channelFlag) String() string { return strings.Join(c.names, ",") }
func (c *channelFlag) Type() string   { return "names" }
func (c *channelFlag) Set(value string) error {
	if strings.TrimSpace(value) == "" {
		c.names = []string{}
		return nil
	}
	names, err := trumpet.ParseTopics(value)
	if err != nil {
		return err
	}
	c.names = names
	return nil
}
