package forward

import (
	"net/netip"
	"strings"
	"testing"

	"example.org/socketproxy/internal/printable"
)

func TestParseTargetAccepts(t *testing.T) {
	long := "/" + strings.Repeat("x", sunPathMax-1)
	for text, want := range map[string]string{ // the address to connect to, or "HOST PORT" to resolve
		"127.0.0.1:8080":         "127.0.0.1:8080",
		"127.0.0.1":              "127.0.0.1:80",
		"127.0.0.1:http":         "127.0.0.1:80",
		"127.0.0.1:65535":        "127.0.0.1:65535",
		"[::1]:8080":             "[::1]:8080",
		"[::1]":                  "[::1]:80",
		"[::1]:https":            "[::1]:443",
		"::1:8080":               "[::1]:8080", // split at the last colon, as systemd-socket-proxyd does
		"[::ffff:192.0.2.1]:80":  "192.0.2.1:80",
		"[fe80::1%1]:80":         "[fe80::1%1]:80",
		"[fe80::1%lo]:80":        "[fe80::1%1]:80",
		"localhost:8080":         "[::1]:8080 127.0.0.1:8080",
		"localhost":              "[::1]:80 127.0.0.1:80",
		"LocalHost.":             "[::1]:80 127.0.0.1:80",
		"app.localhost:1":        "[::1]:1 127.0.0.1:1",
		"notlocalhost:1":         "notlocalhost 1",
		"localhost.example:1":    "localhost.example 1",
		"db_1.example.org.:5432": "db_1.example.org. 5432",
		"xn--bcher-kva.example":  "xn--bcher-kva.example 80",
		"bücher.example:1":       "bücher.example 1",
		"/run/web.sock":          "/run/web.sock",
		"/run/a:80":              "/run/a:80",
		"@web":                   "@web",
		long:                     long,
	} {
		target, err := ParseTarget(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		equal(t, text+" as text", target.String(), text)
		equal(t, text, destination(target), want)
	}
}

// destination says where a target leads.
func destination(t Target) string {
	if t.host == "" {
		var texts []string
		for i := range t.fixed {
			texts = append(texts, t.fixed[i].String())
		}
		return strings.Join(texts, " ")
	}
	sa := inetSockaddr(netip.AddrPortFrom(netip.IPv4Unspecified(), t.port))
	return t.host + " " + strings.TrimPrefix(sa.String(), "0.0.0.0:")
}

func TestParseTargetRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "empty target",
		"224.0.0.1:80":                        "224.0.0.1 stands for many machines, and a TCP connection has one at its other end",
		"[ff02::1]:80":                        "ff02::1 stands for many machines, and a TCP connection has one at its other end",
		"255.255.255.255:1":                   "255.255.255.255 stands for many machines, and a TCP connection has one at its other end",
		"127.0.0.1:+80":                       `unknown service "+80"`,
		"/":                                   `"/" names no socket`,
		"@":                                   `"@" names no socket`,
		"/" + strings.Repeat("x", sunPathMax): "socket path of 108 bytes is longer than 107",
		"@" + strings.Repeat("x", sunPathMax): "socket path of 108 bytes is longer than 107",
		"/run/a\x00b":                         "socket path contains a NUL byte",
		":80":                                 "write 127.0.0.1:80 for a port of this machine; a port alone names no backend",
		"3000":                                "write 127.0.0.1:3000 for a port of this machine; a port alone names no backend",
		":":                                   "empty host",
		"unix:/run/x":                         "write /run/x for an AF_UNIX socket",
		"unix:///run/x":                       "write /run/x for an AF_UNIX socket",
		"UNIX-CONNECT:/run/x":                 "write /run/x for an AF_UNIX socket",
		"unix@/run/x":                         "write /run/x for an AF_UNIX socket",
		"unix:@x":                             "write @x for an AF_UNIX socket",
		"unix:/run/\n":                        "write /PATH for an AF_UNIX socket",
		"unix:run/x":                          "an AF_UNIX socket is written with its whole path, which begins with /",
		"run/x":                               "an AF_UNIX socket is written with its whole path, which begins with /",
		"./x":                                 "an AF_UNIX socket is written with its whole path, which begins with /",
		"tcp://h:1":                           "write h:1; a target is no URL",
		"tcp://[::1]:1":                       "write [::1]:1; a target is no URL",
		"http://h/":                           "write h:80; a target is no URL",
		"https://h/a?b":                       "write h:443; a target is no URL",
		"https://[::1]/":                      "write [::1]:443; a target is no URL",
		"http://a b/":                         "write HOST:PORT; a target is no URL",
		"h:1/":                                "write h:1; a target has no path",
		"h/":                                  "write h; a target has no path",
		"h:1/tcp":                             "write h:1; a target has no path",
		"2001:db8::1":                         "write [2001:db8::1]:PORT",
		"10.0.0.256:80":                       `"10.0.0.256" is not an IPv4 address of four numbers up to 255`,
		"127.1:80":                            `"127.1" is not an IPv4 address of four numbers up to 255`,
		"3000:80":                             `"3000" is not an IPv4 address of four numbers up to 255`,
		"[fe80::2]:80":                        "a link-local address needs its network interface; write [fe80::2%eth0]:80, with the right one for eth0",
		"fe80::2:80":                          "a link-local address needs its network interface; write [fe80::2%eth0]:80, with the right one for eth0",
		"host:":                               "empty port",
		"host:0":                              "port 0 cannot be connected to",
		"host:99999":                          "port 99999 is not between 1 and 65535",
		"host:99999999999999999999":           "port 99999999999999999999 is not between 1 and 65535",
		"host:-1":                             `unknown service "-1"`,
		"host:no-such-service":                `unknown service "no-such-service"`,
		"[::1":                                "not an IPv6 address in brackets",
		"[127.0.0.1]:80":                      "not an IPv6 address in brackets",
		"[host]:80":                           "not an IPv6 address in brackets",
		"[]:80":                               "not an IPv6 address in brackets",
		"[::1]80":                             "no colon after the bracket",
		"[::1]:":                              "empty port",
		"[fe80::1%nosuch]:80":                 `no network interface "nosuch"`,
		"two words:80":                        `"two words" is not a host name`,
		"-a:80":                               `"-a" is not a host name`,
		"a-.b:80":                             `"a-.b" is not a host name`,
		"a..b:80":                             `"a..b" is not a host name`,
		".:80":                                `"." is not a host name`,
		"a/b:80":                              "an AF_UNIX socket is written with its whole path, which begins with /",
		strings.Repeat("a", 64):               `"` + strings.Repeat("a", 64) + `" is not a host name`,
		strings.Repeat("a.", 127) + "a":       `"` + strings.Repeat("a.", 127) + `a" is not a host name`,
	} {
		_, err := ParseTarget(text)
		if err == nil {
			t.Errorf("%q is accepted", text)
			continue
		}
		equal(t, text, err.Error(), want)
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"127.0.0.1:80", "[::1]:http", "::1:80", "host", "/path", "@name", "[fe80::1%1]:1", "a:+1", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		target, err := ParseTarget(text)
		if strings.HasPrefix(text, "/") || strings.HasPrefix(text, "@") {
			equal(t, text+" is accepted", err == nil, len(text) > 1 && isUnixName(text))
		}
		// What Go's own parser takes is right, but for port 0 and the names of interfaces.
		if ap, no := netip.ParseAddrPort(text); no == nil && ap.Port() != 0 && ap.Addr().Zone() == "" && !isBareLinkLocal(ap.Addr()) {
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			equal(t, text, destination(target), netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String())
		}
		if err != nil {
			equal(t, "the error", printable.Line(err.Error()), err.Error())
			return
		}
		equal(t, "text", target.String(), text)
		if (target.host == "") != (len(target.fixed) > 0) {
			t.Errorf("%+v has neither addresses nor a name to look up", target)
		}
		if target.host != "" {
			if target.port == 0 {
				t.Errorf("%+v has no port", target)
			}
			return
		}
		for i := range target.fixed {
			addr := target.fixed[i].String()
			again, err := ParseTarget(addr)
			if err != nil || destination(again) != addr {
				t.Errorf("%s became %s, %v", addr, destination(again), err)
			}
		}
	})
}
