package pgbus

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// packetTimeout is how long packets may stay unacknowledged before the kernel gives a
	// connection up (TCP_USER_TIMEOUT). A server that is only slow acknowledges them.
	packetTimeout = 10 * time.Second
	// An idle connection is probed, so that one whose server is gone ends by itself.
	keepAliveIdle, keepAliveInterval, keepAliveCount = 5 * time.Second, 2 * time.Second, 3
	// connectTimeout bounds the whole making of a connection, for each host. An attempt that began
	// just before a dead path healed must not keep the worker from being live soon.
	connectTimeout = 3 * time.Second
	// cancelTimeout bounds a cancel request, for which pgx opens another connection when a query is
	// broken off. pgx allows it 15 s and keeps the pool's place so long.
	cancelTimeout = time.Second
)

// dialer makes all TCP connections to Postgres and can cut them: what goes over one path falls
// silent together, and a query that waits for an answer there would wait for minutes.
type dialer struct {
	net net.Dialer

	mu   sync.Mutex
	open map[*dialled]struct{}
}

func newDialer() *dialer {
	return &dialer{
		net: net.Dialer{
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount},
			Control: func(network, _ string, raw syscall.RawConn) error {
				if network == "unix" {
					return nil
				}
				return setPacketTimeout(raw, packetTimeout)
			},
		},
		open: make(map[*dialled]struct{}),
	}
}

// connection returns what dials for one connection, and what is called once that is made: pgx dials
// again only to send a cancel request.
func (d *dialer) connection() (dial pgconn.DialFunc, made func()) {
	var isMade atomic.Bool
	dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if !isMade.Load() {
			return d.dial(ctx, network, address)
		}
		ctx, cancel := context.WithTimeout(ctx, cancelTimeout)
		defer cancel()
		conn, err := d.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return conn, conn.SetDeadline(time.Now().Add(cancelTimeout))
	}
	return dial, func() { isMade.Store(true) }
}

func (d *dialer) dial(ctx context.Context, network, address string) (*dialled, error) {
	conn, err := d.net.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &dialled{Conn: conn, dialer: d}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open[c] = struct{}{}
	return c, nil
}

// connections returns what is open now.
func (d *dialer) connections() []*dialled {
	d.mu.Lock()
	defer d.mu.Unlock()
	open := make([]*dialled, 0, len(d.open))
	for c := range d.open {
		open = append(open, c)
	}
	return open
}

// cut closes connections. Whoever waits for one gets an error.
func cut(connections []*dialled) {
	for _, c := range connections {
		_ = c.Close()
	}
}

// dialled is a connection that its dialer knows until it is closed.
type dialled struct {
	net.Conn
	dialer *dialer
}

// Close closes the connection; closing it twice is harmless.
func (c *dialled) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.open, c)
	c.dialer.mu.Unlock()
	return c.Conn.Close()
}
