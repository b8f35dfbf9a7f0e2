package server

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/trumpet-realtime/trumpet"
)

// Endings of those for whom there is no place; both count as limit.
var (
	endingFull    = trumpet.EndingLimit
	endingAddress = trumpet.Ending{
		Code: trumpet.EndingLimit.Code, Name: trumpet.EndingLimit.Name,
		Message: "too many connections from this address; connect again later",
	}
)

// places are what clients may take: so many in all, and so many from one address.
//
// Those for whom there is no place are told so, at most mostFarewells at once. Beyond that a
// newcomer's connection is closed without a word, and it comes back as from any broken connection.
type places struct {
	most, mostPerAddress int
	mostFarewells        int
	full, crowded        atomic.Uint64 // refusals, by bound

	mu        sync.Mutex
	taken     int
	byAddress map[netip.Addr]int
	farewells int
}

func newPlaces(most, mostPerAddress, mostFarewells int) *places {
	return &places{most: most, mostPerAddress: mostPerAddress, mostFarewells: mostFarewells, byAddress: make(map[netip.Addr]int)}
}

// place is one client's, or a refused client's while it is told so.
type place struct {
	places  *places
	address netip.Addr
	refused bool
}

// take counts a client in, or says why it is sent away; silent: without a word. The caller
// calls leave in any case.
func (p *places) take(address netip.Addr) (taken *place, refusal *trumpet.Ending, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken = &place{places: p, address: address}
	switch {
	case p.taken >= p.most:
		p.full.Add(1)
		refusal = &endingFull
	case address.IsValid() && p.mostPerAddress > 0 && p.byAddress[address] >= p.mostPerAddress:
		p.crowded.Add(1)
		refusal = &endingAddress
	default:
		p.taken++
		if address.IsValid() {
			p.byAddress[address]++
		}
		return taken, nil, false
	}
	taken.refused = true
	p.farewells++
	return taken, refusal, p.farewells > p.mostFarewells
}

// leave frees the place.
func (t *place) leave() {
	p := t.places
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.refused {
		p.farewells--
		return
	}
	p.taken--
	if !t.address.IsValid() {
		return
	}
	if p.byAddress[t.address]--; p.byAddress[t.address] == 0 {
		delete(p.byAddress, t.address)
	}
}

// admission is a client's way in.
type admission struct {
	place   *place
	refusal *trumpet.Ending // nil: it is let in
	silent  bool            // there is not even room to say so
}

// admit counts a client in, or says why it is sent away: for want of a place, or by the ending that was
// found before, if any. The caller calls leave in any case.
func (s *Server) admit(from netip.Addr, ending *trumpet.Ending) admission {
	var a admission
	a.place, a.refusal, a.silent = s.places.take(from)
	if a.refusal == nil {
		a.refusal = ending
	}
	if a.refusal == nil && s.draining.Load() {
		a.refusal = &trumpet.EndingDraining
	}
	if a.refusal != nil {
		s.config.Hub.CountEnding(*a.refusal)
		if a.refusal == &endingAddress {
			s.warnAddress.Do(func() {
				s.config.Logger.Warn("an address has as many connections as it may; if it is a proxy, name it as a trusted one that says whom it speaks for; further ones are only counted",
					"address", from, "most", s.config.MaxConnectionsPerAddress)
			})
		}
	}
	return a
}

// clientAddress returns the address that a request's client counts under: the peer's, or, if that is a
// trusted proxy, the last address of X-Forwarded-For that is not one itself, because what stands before
// that could be the client's invention. The zero Addr says that it is not known: a program on a
// trusted machine, or a proxy that does not tell. IPv6 networks count as one, down to /64, which
// is what one customer has.
func clientAddress(r *http.Request, trusted []netip.Prefix) netip.Addr {
	peer, ok := parseAddress(r.RemoteAddr)
	if ok && !contains(trusted, peer) {
		return network(peer)
	}
	// A peer without an address came over a socket of this machine.
	forwarded := strings.Join(r.Header.Values("X-Forwarded-For"), ",")
	for forwarded != "" {
		last := forwarded
		forwarded = ""
		if i := strings.LastIndexByte(last, ','); i >= 0 {
			forwarded, last = last[:i], last[i+1:]
		}
		address, ok := parseAddress(strings.TrimSpace(last))
		if !ok {
			return netip.Addr{}
		}
		if !contains(trusted, address) {
			return network(address)
		}
	}
	return netip.Addr{}
}

// parseAddress reads an address with or without a port.
func parseAddress(text string) (netip.Addr, bool) {
	if host, _, err := net.SplitHostPort(text); err == nil {
		text = host
	}
	address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		return netip.Addr{}, false
	}
	return address.Unmap().WithZone(""), true
}

func contains(prefixes []netip.Prefix, address netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(address) })
}

// network returns what an address counts under.
func network(address netip.Addr) netip.Addr {
	if address.Is4() {
		return address
	}
	prefix, err := address.Prefix(64)
	if err != nil {
		return address // cannot be: it is IPv6
	}
	return prefix.Addr()
}
