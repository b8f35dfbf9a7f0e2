package server

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

var proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("10.1.0.0/16")}

func TestClientAddress(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		peer      string
		forwarded []string
		want      string // empty: unknown
	}{
		"no proxy":                        {"192.0.2.7:1234", nil, "192.0.2.7"},
		"no proxy, and a lie":             {"192.0.2.7:1234", []string{"198.51.100.1"}, "192.0.2.7"},
		"no proxy, v6":                    {"[2001:db8:1:2:3:4:5:6]:1234", nil, "2001:db8:1:2::"},
		"v4 in v6":                        {"[::ffff:192.0.2.7]:1234", nil, "192.0.2.7"},
		"link-local":                      {"[fe80::1%eth0]:1234", nil, "fe80::"},
		"on this machine":                 {"127.0.0.1:1234", nil, ""},
		"unix socket":                     {"@", nil, ""},
		"unix socket of a proxy":          {"@", []string{"192.0.2.7"}, "192.0.2.7"},
		"proxy":                           {"127.0.0.1:1234", []string{"192.0.2.7"}, "192.0.2.7"},
		"proxy, v6":                       {"[::1]:1234", []string{"2001:db8::1"}, "2001:db8::"},
		"proxy that adds the port":        {"127.0.0.1:1234", []string{"192.0.2.7:999"}, "192.0.2.7"},
		"proxy that adds the port, v6":    {"127.0.0.1:1234", []string{"[2001:db8::1]:999"}, "2001:db8::"},
		"proxy with brackets":             {"127.0.0.1:1234", []string{"[2001:db8::1]"}, "2001:db8::"},
		"client's own header is no proof": {"127.0.0.1:1234", []string{"198.51.100.1, 192.0.2.7"}, "192.0.2.7"},
		"two proxies":                     {"127.0.0.1:1234", []string{"198.51.100.1,192.0.2.7 , 10.1.2.3"}, "192.0.2.7"},
		"two proxies, two headers":        {"127.0.0.1:1234", []string{"198.51.100.1, 192.0.2.7", "10.1.2.3"}, "192.0.2.7"},
		"proxies alone":                   {"127.0.0.1:1234", []string{"10.1.2.3"}, ""},
		"nonsense":                        {"127.0.0.1:1234", []string{"unknown"}, ""},
		"nonsense after a lie":            {"127.0.0.1:1234", []string{"198.51.100.1, unknown"}, ""},
		"empty":                           {"127.0.0.1:1234", []string{""}, ""},
		"empty last":                      {"127.0.0.1:1234", []string{"192.0.2.7,"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &http.Request{RemoteAddr: test.peer, Header: http.Header{"X-Forwarded-For": test.forwarded}}
			var want netip.Addr
			if test.want != "" {
				want = netip.MustParseAddr(test.want)
			}
			if got := clientAddress(r, proxies); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// Whatever a client writes into the header, a client that comes through a proxy counts under what the
// proxy wrote behind it, and one that comes by itself under its own address.
func FuzzClientAddress(f *testing.F) {
	for _, seed := range []string{"", "192.0.2.7", "a,b", ",,,", "[::1]:5,127.0.0.1", "10.1.2.3", "::ffff:1.2.3.4", "fe80::1%x"} {
		f.Add(seed)
	}
	client := netip.MustParseAddr("203.0.113.9")
	f.Fuzz(func(t *testing.T, lie string) {
		through := &http.Request{RemoteAddr: "127.0.0.1:80", Header: http.Header{"X-Forwarded-For": {lie + ", " + client.String()}}}
		if got := clientAddress(through, proxies); got != client {
			t.Errorf("through a proxy: %v", got)
		}
		direct := &http.Request{RemoteAddr: client.String() + ":80", Header: http.Header{"X-Forwarded-For": {lie}}}
		if got := clientAddress(direct, proxies); got != client {
			t.Errorf("directly: %v", got)
		}
		alone := &http.Request{RemoteAddr: "127.0.0.1:80", Header: http.Header{"X-Forwarded-For": {lie}}}
		if got := clientAddress(alone, proxies); got.IsValid() && (contains(proxies, got) || got.Zone() != "" || !strings.ContainsAny(lie, ".:")) {
			t.Errorf("from nowhere: %v", got)
		}
	})
}

// Places are given up to the bounds, each freed one again, and nothing is remembered of who has left.
func TestPlaces(t *testing.T) {
	t.Parallel()
	a, b, unknown := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.Addr{}
	p := newPlaces(4, 2, 1)
	a1, refusal, _ := p.take(a)
	if refusal != nil {
		t.Fatal("refused the first")
	}
	a2, _, _ := p.take(a)
	a3, refusal, silent := p.take(a)
	if refusal != &endingAddress || silent {
		t.Errorf("third of an address: %v %v", refusal, silent)
	}
	if _, refusal, silent = p.take(a); refusal != &endingAddress || !silent {
		t.Errorf("fourth of an address, while the third is being told: %v %v", refusal, silent)
	} else {
		p.farewells--
	}
	a3.leave()
	b1, refusal, _ := p.take(b)
	u1, other, _ := p.take(unknown)
	if refusal != nil || other != nil {
		t.Errorf("others are refused: %v %v", refusal, other)
	}
	full, refusal, silent := p.take(b)
	if refusal != &endingFull || silent {
		t.Errorf("fifth: %v %v", refusal, silent)
	}
	full.leave()
	a1.leave()
	if a1, refusal, _ = p.take(a); refusal != nil {
		t.Errorf("the freed place is refused: %v", refusal)
	}
	for _, place := range []*place{a1, a2, b1, u1} {
		place.leave()
	}
	if p.taken != 0 || p.farewells != 0 || len(p.byAddress) != 0 || p.full.Load() != 1 || p.crowded.Load() != 2 {
		t.Errorf("at the end: %d taken, %d farewells, %v, %d full, %d crowded", p.taken, p.farewells, p.byAddress, p.full.Load(), p.crowded.Load())
	}
}
