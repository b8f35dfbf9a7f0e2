package pgbus

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// packetTimeout is how long packets may stay unacknowledged before the kernel gives a
	// connection up (TCP_USER_TIMEOUT). A server that is only slow acknowledges them.
	packetTimeout = 10 * time.Second
	// An idle connection is probed, so that one whose server is gone ends by itself.
	keepAliveIdle, keepAliveInterval, keepAliveCount = 5 * time.Second, 2 * time.Second, 3
	// connectTimeout bounds the whole making of a connection, for each host.
	connectTimeout = 5 * time.Second
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

// dial is a pgconn.DialFunc.
func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
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
