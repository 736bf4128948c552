package api

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/testenv"
)

func TestAddressPatterns(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern  string
		matching []string
		other    []string
	}{
		{"192.0.2.1", []string{"192.0.2.1:80"}, []string{"192.0.2.10:80", "[::1]:80"}},
		{"192.0.2.1:80", []string{"192.0.2.1:80"}, []string{"192.0.2.1:8080"}},
		{"192.0.2.*", []string{"192.0.2.1:80", "192.0.2.255:1"}, []string{"192.0.20.1:80"}},
		{"192.0.2.0/24", []string{"192.0.2.1:80", "192.0.2.255:1"}, []string{"192.0.3.1:80", "[2001:db8::1]:80", "unix:pid=1,uid=0"}},
		{"192.0.2.7/24", []string{"192.0.2.1:80"}, []string{"192.0.3.1:80"}}, // host bits do not count
		{"::ffff:192.0.2.0/120", []string{"192.0.2.1:80"}, []string{"192.0.3.1:80"}},
		{"::ffff:192.0.2.1", []string{"192.0.2.1:80"}, []string{"192.0.2.2:80"}},
		{"[::ffff:192.0.2.1]:80", []string{"192.0.2.1:80"}, []string{"192.0.2.1:81"}},
		{"2001:db8::1", []string{"[2001:db8::1]:80"}, []string{"[2001:db8::10]:80"}},
		{"[2001:db8::1]", []string{"[2001:db8::1]:80"}, []string{"[2001:db8::10]:80"}},
		{"2001:0DB8::0:1", []string{"[2001:db8::1]:80"}, nil},
		{"[2001:db8:0::1]:80", []string{"[2001:db8::1]:80"}, []string{"[2001:db8::1]:81"}},
		{"2001:db8::/32", []string{"[2001:db8::1]:80"}, []string{"[2001:db9::1]:80", "192.0.2.1:80"}},
		{"fe80::/10", []string{"[fe80::1%eth0]:80"}, []string{"[2001:db8::1]:80"}},
		{"fe80::9", []string{"[fe80::9%v9]:80", "[fe80::9]:80"}, []string{"[fe80::8%v9]:80"}},
		{"fe80::9%v9", []string{"[fe80::9%v9]:80"}, []string{"[fe80::9%v8]:80", "[fe80::9]:80"}},
		{"[fe80::9]:80", []string{"[fe80::9%v9]:80"}, []string{"[fe80::9%v9]:81"}},
		{"[fe80::9%v9]:80", []string{"[fe80::9%v9]:80"}, []string{"[fe80::9%v8]:80"}},
		{"[2001:db8:*", []string{"[2001:db8:1::1]:80"}, []string{"[2001:db9::1]:80"}},
		{"/run/web", []string{"/run/web"}, []string{"/run/web.sock", "/run/db.sock"}},
		{"/run/web*", []string{"/run/web.sock", "/run/web"}, []string{"/run/db.sock"}},
		{"@web", []string{"@web"}, []string{"web", "@web2"}},
		{"@*", []string{"@web", "@web2"}, []string{"web"}},
		{"unix:", []string{"unix:pid=7,uid=0"}, []string{"/run/web", "192.0.2.1:80"}},
		{"unix:pid=7,uid=0", []string{"unix:pid=7,uid=0"}, []string{"unix:pid=7,uid=01"}},
		{"unix:pid=7,*", []string{"unix:pid=7,uid=0"}, []string{"unix:pid=77,uid=0"}},
		{"example.org:*", []string{"example.org:80"}, []string{"example.org"}},
		{"*", []string{"192.0.2.1:80", "@web"}, nil},
	} {
		matches, err := parseAddressPattern(test.pattern)
		testenv.Must(t, err)
		for _, address := range test.matching {
			testenv.Equal(t, test.pattern+" matches "+address, matches(address), true)
		}
		for _, address := range test.other {
			testenv.Equal(t, test.pattern+" matches "+address, matches(address), false)
		}
	}
}

func FuzzAddressPatterns(f *testing.F) {
	for _, seed := range []string{"", "192.0.2.1", "192.0.2.1:80", "::1", "[::1]:80", "10.0.0.0/8", "/run/web", "@web", "[", "1/1", "fe80::1%x", "fe80::1", "12*"} {
		f.Add(seed, "192.0.2.1:80")
		f.Add(seed, "[fe80::1%x]:80")
	}
	f.Fuzz(func(t *testing.T, pattern, address string) {
		matches, err := parseAddressPattern(pattern)
		ip, _, isNetwork := strings.Cut(pattern, "/")
		ofNetwork := isNetwork && net.ParseIP(ip) != nil
		_, network, noNetwork := net.ParseCIDR(pattern)
		// Package net knows no zones, but 10.0.0.0/08.
		if ofNetwork && !strings.HasSuffix(pattern, "*") && !strings.Contains(pattern, "%") && !strings.Contains(pattern, "/0") {
			testenv.Equal(t, pattern+" is refused", err != nil, noNetwork != nil)
		}
		if err != nil {
			testenv.Equal(t, "the error", printable.Line(err.Error()), err.Error())
			return
		}
		if pattern == address && endpointOf(address).IsValid() && !matches(address) {
			t.Errorf("%q does not match itself", pattern)
		}
		got := matches(address)
		endpoint, noEndpoint := netip.ParseAddrPort(address)
		if noEndpoint != nil || endpoint.Addr().Zone() != "" || endpoint.Addr().Is4In6() || strings.Contains(pattern, "%") {
			return // no address that a proxy writes, or one with a zone
		}
		client := net.ParseIP(endpoint.Addr().String())
		host, port, noHost := net.SplitHostPort(pattern)
		switch {
		case network != nil:
			testenv.Equal(t, pattern+" matches "+address, got, network.Contains(client))
		case strings.HasSuffix(pattern, "*"):
			testenv.Equal(t, pattern+" matches "+address, got, strings.HasPrefix(address, strings.TrimSuffix(pattern, "*")))
		case net.ParseIP(withoutBrackets(pattern)) != nil:
			testenv.Equal(t, pattern+" matches "+address, got, client.Equal(net.ParseIP(withoutBrackets(pattern))))
		case noHost == nil && net.ParseIP(host) != nil && port == fmt.Sprint(endpoint.Port()):
			testenv.Equal(t, pattern+" matches "+address, got, client.Equal(net.ParseIP(host)))
		}
	})
}
