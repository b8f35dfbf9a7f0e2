package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
)

// inherited makes a listener of what systemd listens on for this process; nil if that is nothing.
// To close it closes it here only: systemd has the socket too, so that those who come while the
// process is replaced wait in the kernel's queue for the next one. It closes the files.
func inherited(files []*os.File) (net.Listener, error) {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	switch len(files) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, fmt.Errorf("systemd passes %d sockets and a worker serves one; give its .socket unit one ListenStream", len(files))
	}
	listener, err := net.FileListener(files[0])
	if err != nil {
		return nil, fmt.Errorf("cannot listen on what systemd passes: %w", innermost(err))
	}
	if _, ok := listener.(*net.TCPListener); !ok {
		err := fmt.Errorf("systemd passes %s, which is no TCP socket; write ListenStream=127.0.0.1:8766, say, into its .socket unit", listener.Addr())
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// checkInherited holds an inherited socket to the same rules as --listen, which must not
// contradict it.
func (f *serveFlags) checkInherited(address net.Addr) error {
	if f.listenGiven && !sameAddress(f.listen, address.String()) {
		return fmt.Errorf("--listen %s: systemd listens on %s for this worker; leave --listen out, or change ListenStream in the .socket unit", f.listen, address)
	}
	host, _, err := net.SplitHostPort(address.String())
	if err != nil {
		return fmt.Errorf("read address of the inherited socket: %w", err)
	}
	return f.checkHost(host, address.String())
}

// sameAddress reports whether a --listen means the address of a socket.
func sameAddress(listen, socket string) bool {
	is, err := netip.ParseAddrPort(socket)
	if err != nil {
		return false
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil || port != fmt.Sprint(is.Port()) {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return is.Addr().Unmap().IsLoopback()
	}
	if host == "" {
		return is.Addr().IsUnspecified()
	}
	named, err := netip.ParseAddr(host)
	return err == nil && named.Unmap() == is.Addr().Unmap()
}

// systemdNotify tells systemd of a worker's state, if systemd wants to know.
func systemdNotify(logger *slog.Logger) func(state string) {
	return func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			logger.Warn("cannot tell systemd", "state", state, "error", err)
		}
	}
}
