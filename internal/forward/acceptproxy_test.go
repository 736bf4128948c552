package forward

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

const signatureV2 = "\r\n\r\n\x00\r\nQUIT\n"

// What trusted proxies send of a client of 192.0.2.1 or 2001:db8::1, port 1000, that connected to port 80.
var (
	headerTCP4   = "PROXY TCP4 192.0.2.1 198.51.100.1 1000 80\r\n"
	headerTCP6   = headerFor(ProxyProtocolV2, "[2001:db8::1]:1000", "[2001:db8::2]:80")
	headerTLV    = headerV2(0x21, 0x11, "\xc0\x00\x02\x01\xc6\x33\x64\x01\x03\xe8\x00\x50"+"\x05\x00\x0dan identifier")
	headerSource = map[string]string{
		headerTCP4: "192.0.2.1:1000", headerTCP6: "[2001:db8::1]:1000", headerTLV: "192.0.2.1:1000",
	}
)

func headerV2(command, family byte, rest string) string {
	return signatureV2 + string([]byte{command, family, byte(len(rest) >> 8), byte(len(rest))}) + rest
}

// acceptProxy trusts the clients of a rig, but for those of other IPv4 addresses than 127.0.0.1.
func acceptProxy(c *Config) { c.AcceptProxy = sources("127.0.0.1", "unix") }

func sources(texts ...string) (list []Source) {
	for _, text := range texts {
		source, err := ParseSource(text)
		if err != nil {
			panic(err)
		}
		list = append(list, source)
	}
	return list
}

// headerTaken is how many bytes have come of all headers that are not complete.
func (p *Proxy) headerTaken() (n int) {
	for _, l := range p.loops {
		l.call(func() {
			for i := range l.headers {
				n += len(l.headers[i].taken)
			}
		})
	}
	return n
}

func TestAcceptProxyTakesAHeaderSplitAnywhere(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			r := newRig(t, network, "tcp", acceptProxy)
			for header, source := range headerSource {
				for split := range len(header) + 1 {
					client := r.dial()
					if split > 0 {
						streamtest.Send(t, client, header[:split])
					}
					if split < len(header) {
						proctest.Eventually(t, "the first part is taken", func() bool { return r.headerTaken() == split })
						streamtest.Send(t, client, header[split:]+"payload")
					} else {
						streamtest.Send(t, client, "payload")
					}
					server := r.accept()
					streamtest.Receive(t, server, "payload")
					equal(t, "client", r.connection().Client, source)
					streamtest.Send(t, server, "answer")
					streamtest.Finish(t, server)
					streamtest.ExpectLast(t, client, "answer", streamtest.End)
					client.Close()
					server.Close()
					proctest.Eventually(t, "the connection ends", func() bool { return r.NumConnections() == 0 })
				}
			}
		})
	}
}

// A header that comes byte by byte takes more room in an AF_UNIX socket than the socket has.
func TestAcceptProxyTakesALongHeaderByteByByte(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			r := newRig(t, network, "tcp", acceptProxy)
			client := r.dial()
			tlv := strings.Repeat("\xee\x00\x05value", (headerV2Max-headerV2Len-12)/8)
			header := headerV2(0x21, 0x11, "\xc0\x00\x02\x01\xc6\x33\x64\x01\x03\xe8\x00\x50"+tlv)
			for i := range len(header) {
				streamtest.Send(t, client, header[i:i+1])
			}
			streamtest.Send(t, client, "payload")
			streamtest.Receive(t, r.accept(), "payload")
			equal(t, "client", r.connection().Client, "192.0.2.1:1000")
		})
	}
}

func TestAcceptProxyNamesTheClient(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, version := range []ProxyProtocol{ProxyProtocolV1, ProxyProtocolV2} {
			t.Run(fmt.Sprintf("%s, passed on in version %d", network, version), func(t *testing.T) {
				r := newRig(t, network, "tcp", acceptProxy, func(c *Config) { c.ProxyProtocol = version })
				events := r.Subscribe(10, EventOpened, EventClosed)
				client := r.dial()
				proctest.Eventually(t, "the client waits", func() bool { return r.NumConnections() == 1 })
				proxy := r.connection().Client
				equal(t, "state", r.connection().State, ConnectionProxyHeader)
				equal(t, "accepted", r.Stats().Accepted, 0)
				streamtest.Send(t, client, headerTCP6+"question")
				server := r.accept()
				streamtest.Receive(t, server, headerFor(version, "[2001:db8::1]:1000", "[2001:db8::2]:80")+"question")
				c := r.connection()
				equal(t, "client", c.Client, "[2001:db8::1]:1000")
				equal(t, "proxy", c.Proxy, proxy)
				equal(t, "is AF_UNIX", c.IsUnix, false)
				equal(t, "state", c.State, ConnectionOpen)
				equal(t, "bytes", c.BytesToBackend, uint64(len("question")))
				client.Close()
				server.Close()
				equal(t, "client opened", proctest.Wait(t, "the event", events.C).Connection.Client, "[2001:db8::1]:1000")
				equal(t, "client closed", proctest.Wait(t, "the event", events.C).Connection.Client, "[2001:db8::1]:1000")
				equal(t, "stats", r.Stats(), Stats{Accepted: 1, BytesToBackend: 8})
			})
		}
	}
}

// A header may name an IPv4 client of an IPv6 socket: nginx does, in its own way.
func TestAcceptProxyPassesMixedFamiliesOn(t *testing.T) {
	for _, header := range []string{
		"PROXY TCP6 192.0.2.1 2001:db8::2 1000 80\r\n", "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1000 80\r\n",
	} {
		t.Run(header, func(t *testing.T) {
			r := newRig(t, "tcp", "tcp", acceptProxy, func(c *Config) { c.ProxyProtocol = ProxyProtocolV1 })
			streamtest.Send(t, r.dial(), header)
			streamtest.Receive(t, r.accept(), "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1000 80\r\n")
			equal(t, "client", r.connection().Client, "192.0.2.1:1000")
		})
	}
}

func TestAcceptProxyKeepsTheAddressOfAConnectionWithoutOne(t *testing.T) {
	for name, header := range map[string]string{
		"UNKNOWN":                "PROXY UNKNOWN\r\n",
		"UNKNOWN with addresses": "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
		"LOCAL":                  headerV2(0x20, 0x00, ""),
		"LOCAL with addresses":   headerV2(0x20, 0x11, "\xc0\x00\x02\x01\xc6\x33\x64\x01\x03\xe8\x00\x50"),
		"LOCAL with rubbish":     headerV2(0x20, 0x00, "rubbish"),
		"no family":              headerV2(0x21, 0x00, ""),
		"no family, with a TLV":  headerV2(0x21, 0x00, "\xee\x00\x01x"),
		"UDP":                    headerV2(0x21, 0x12, "\xc0\x00\x02\x01\xc6\x33\x64\x01\x03\xe8\x00\x50"),
		"AF_UNIX":                headerV2(0x21, 0x31, strings.Repeat("/a"+strings.Repeat("\x00", 106), 2)),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "tcp", "tcp", acceptProxy, func(c *Config) { c.ProxyProtocol = ProxyProtocolV1 })
			client := r.dial()
			streamtest.Send(t, client, header+"question")
			server := r.accept()
			want := headerFor(ProxyProtocolV1, client.LocalAddr().String(), r.address)
			streamtest.Receive(t, server, want+"question")
			equal(t, "client", r.connection().Client, client.LocalAddr().String())
			equal(t, "proxy", r.connection().Proxy, "")
		})
	}
}

func TestAcceptProxyBelievesNoOtherSource(t *testing.T) {
	r := newRig(t, "tcp", "tcp", acceptProxy)
	for _, header := range []string{headerTCP4, headerTCP6} {
		client := r.dialFrom(&net.TCPAddr{IP: streamtest.Loopback().AsSlice()})
		streamtest.Send(t, client, header+"payload")
		server := r.accept()
		streamtest.Receive(t, server, header+"payload")
		equal(t, "client", r.connection().Client, client.LocalAddr().String())
		client.Close()
		server.Close()
		proctest.Eventually(t, "the connection ends", func() bool { return r.NumConnections() == 0 })
	}
}

func TestAcceptProxyRefusesABadHeader(t *testing.T) {
	v4 := "\xc0\x00\x02\x01\xc6\x33\x64\x01\x03\xe8\x00\x50"
	for name, c := range map[string]struct {
		sent   string
		finish bool
		why    string
	}{
		"no header":        {"GET / HTTP/1.1\r\n", false, "it sent no PROXY header, as --accept-proxy= requires of it"},
		"almost a header":  {"PROXI TCP4", false, "it sent no PROXY header, as --accept-proxy= requires of it"},
		"almost version 2": {"\r\n\r\n\x00\r\nQUIZ\n", false, "it sent no PROXY header, as --accept-proxy= requires of it"},
		"a later version":  {headerV2(0x31, 0x11, v4), false, "its PROXY header is malformed: unsupported proxy protocol version and command"},
		"a wrong command":  {headerV2(0x22, 0x11, v4), false, "its PROXY header is malformed: unsupported proxy protocol version and command"},
		"a wrong family":   {headerV2(0x21, 0x41, v4), false, "its PROXY header is malformed: unsupported address family and protocol"},
		"too short":        {headerV2(0x21, 0x11, v4[1:]), false, "its PROXY header is malformed: invalid length"},
		"too long": {headerV2(0x21, 0x11, "")[:headerV2Len-2] + "\xff\xff", false,
			"its PROXY header has 65551 bytes, and 4112 is the limit"},
		"a wrong address":   {"PROXY TCP4 192.0.2.256 198.51.100.1 1000 80\r\n", false, "its PROXY header is malformed: invalid address"},
		"a line without CR": {"PROXY TCP4 192.0.2.1 198.51.100.1 1000 80\n", false, "its PROXY header is malformed: version 1 header is invalid, must end with"},
		"an endless line":   {"PROXY " + strings.Repeat("x", 101), false, "its PROXY header is malformed: no line of at most 107 bytes"},
		"nothing":           {"", true, "it closed the connection before its PROXY header was complete"},
		"half of version 1": {headerTCP4[:20], true, "it closed the connection before its PROXY header was complete"},
		"half of version 2": {headerTCP6[:20], true, "it closed the connection before its PROXY header was complete"},
	} {
		t.Run(name, func(t *testing.T) {
			log, buf := newTestLog(slog.LevelInfo)
			r := newRig(t, "tcp", "tcp", acceptProxy, func(c *Config) { c.Log = log })
			events := r.Subscribe(10, EventOpened, EventRefused, EventClosed)
			client := r.dial()
			streamtest.Send(t, client, c.sent)
			if c.finish {
				streamtest.Finish(t, client)
			}
			streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
			e := proctest.Wait(t, "the refusal", events.C)
			equal(t, "event", e.Kind, EventRefused)
			equal(t, "reason", e.Reason, ReasonProxyHeader)
			equal(t, "client", e.Connection.Client, client.LocalAddr().String())
			equal(t, "stats", r.Stats(), Stats{Refused: 1})
			r.Kill()
			proctest.Wait(t, "the Proxy ends", r.Done())
			equal(t, "events left", len(events.C), 0)
			want := fmt.Sprintf("Refused client %s: %s", client.LocalAddr(), c.why)
			if lines := strings.Count(buf.String(), "Refused client"); lines != 1 || !strings.Contains(buf.String(), want) {
				t.Errorf("%d lines of refusals, want %q: %s", lines, want, buf)
			}
		})
	}
}

func TestAcceptProxyRefusesAClientThatResets(t *testing.T) {
	r := newRig(t, "tcp", "tcp", acceptProxy)
	refused := r.Subscribe(10, EventRefused)
	client := r.dial()
	streamtest.Send(t, client, headerTCP4[:10])
	proctest.Eventually(t, "a part is taken", func() bool { return r.headerTaken() == 10 })
	streamtest.Reset(t, client)
	e := proctest.Wait(t, "the refusal", refused.C)
	equal(t, "reason", e.Reason, ReasonProxyHeader)
	equal(t, "error", e.Err.Error(), "its connection broke before its PROXY header was complete: connection reset by peer")
}

// HAProxy's check-send-proxy resets the connection as soon as it has sent its header. That is nothing to warn of.
func TestAcceptProxyTakesAHealthCheckThatResets(t *testing.T) {
	log, buf := newTestLog(slog.LevelInfo)
	r := newRig(t, "tcp", "tcp", acceptProxy, func(c *Config) { c.Log = log })
	events := r.Subscribe(10, EventOpened, EventClosed, EventRefused)
	thaw := r.freeze()
	check := r.dial()
	streamtest.Send(t, check, headerV2(0x20, 0x00, ""))
	proctest.Eventually(t, "the header has come", func() bool { return streamtest.Unsent(t, check) == 0 })
	streamtest.Reset(t, check)
	thaw()
	equal(t, "first event", proctest.Wait(t, "the connection", events.C).Kind, EventOpened)
	equal(t, "reason", proctest.Wait(t, "its end", events.C).Reason, ReasonClientReset)
	equal(t, "refused", r.Stats().Refused, 0)
	r.Kill()
	proctest.Wait(t, "the Proxy ends", r.Done())
	if strings.Contains(buf.String(), "WARN") {
		t.Errorf("the log has %s", buf)
	}
}

func TestAcceptProxyTimeoutIsExact(t *testing.T) {
	const span = 300 * time.Millisecond
	for sent, why := range map[string]string{
		"":              "it sent no PROXY header within 300ms, as --accept-proxy= requires of it",
		headerTCP6[:17]: "only 17 bytes of its PROXY header came within 300ms",
	} {
		t.Run(why, func(t *testing.T) {
			r := newRig(t, "tcp", "tcp", acceptProxy, func(c *Config) { c.AcceptProxyTimeout = span })
			refused := r.Subscribe(10, EventRefused)
			ordinary := r.dialFrom(&net.TCPAddr{IP: streamtest.Loopback().AsSlice()})
			since := time.Now()
			late := r.dial()
			streamtest.Send(t, late, sent)
			streamtest.ExpectEnding(t, late, streamtest.BrokenOff)
			if took := time.Since(since); took < span-10*time.Millisecond || took > span+time.Second {
				t.Errorf("it was refused after %v", took)
			}
			e := proctest.Wait(t, "the refusal", refused.C)
			equal(t, "reason", e.Reason, ReasonProxyHeader)
			equal(t, "error", e.Err.Error(), why)
			server := r.accept()
			streamtest.Send(t, ordinary, "others need none")
			streamtest.Receive(t, server, "others need none")
		})
	}
}

func TestAcceptProxyLeavesTheProcessorsAlone(t *testing.T) {
	r := newRig(t, "tcp", "tcp", acceptProxy)
	clients := []streamtest.Stream{r.dial(), r.dial()}
	streamtest.Send(t, clients[1], headerTCP6[:20])
	proctest.Eventually(t, "a part is taken", func() bool { return r.headerTaken() == 20 })
	atRest(t)
	for _, c := range clients {
		c.Close()
	}
}

// The proxy in front has as many connections as there are clients; those have their share.
func TestAcceptProxyCountsSourcesByTheTrueClient(t *testing.T) {
	const share = 2
	log, buf := newTestLog(slog.LevelInfo)
	r := newRig(t, "tcp", "tcp", acceptProxy, func(c *Config) { c.ConnectionsMaxPerSource, c.Log = share, log })
	refused := r.Subscribe(10, EventRefused)
	from := func(client string) streamtest.Stream {
		c := r.dial()
		streamtest.Send(t, c, headerFor(ProxyProtocolV2, client, "[2001:db8::ffff]:80"))
		return c
	}
	var open []io.Closer
	for n := range share {
		for _, host := range []string{"[2001:db8:0:1::%d]:1", "[2001:db8:0:2::%d]:1"} {
			open = append(open, from(fmt.Sprintf(host, n+1)), r.accept())
		}
	}
	streamtest.ExpectEnding(t, from("[2001:db8:0:1::9]:1"), streamtest.BrokenOff)
	e := proctest.Wait(t, "the refusal", refused.C)
	equal(t, "reason", e.Reason, ReasonSourceLimit)
	equal(t, "client", e.Connection.Client, "[2001:db8:0:1::9]:1")
	for _, c := range open[:2] {
		c.Close()
	}
	proctest.Eventually(t, "the connection ends", func() bool { return r.NumConnections() == 2*share-1 })
	from("[2001:db8:0:1::9]:1")
	open = append(open, r.accept())
	for _, c := range open[2:] {
		c.Close()
	}
	r.Kill()
	proctest.Wait(t, "the Proxy ends", r.Done())
	want := "Refused client [2001:db8:0:1::9]:1: the limit of --connections-max-per-source= is reached for 2001:db8:0:1::/64."
	if !strings.Contains(buf.String(), want) {
		t.Errorf("want %q: %s", want, buf)
	}
}

// Until its header is complete, a client takes a slot of all, and none of a source.
func TestAcceptProxyHoldsASlotMeanwhile(t *testing.T) {
	r := newRig(t, "tcp", "tcp", acceptProxy, func(c *Config) {
		c.ConnectionsMax, c.ConnectionsMaxPerSource, c.ExitIdleTime = 2, 1, 50*time.Millisecond
	})
	clients := []streamtest.Stream{r.dial(), r.dial()}
	proctest.Eventually(t, "both wait", func() bool { return r.NumConnections() == 2 })
	r.turnedAway()
	select {
	case <-r.Done():
		t.Fatal("the Proxy ended with clients whose headers are awaited")
	case <-time.After(150 * time.Millisecond):
	}
	for _, c := range clients {
		c.Close()
	}
	proctest.Wait(t, "the Proxy ends", r.Done())
}

func TestAcceptProxyClientsEndWithADrain(t *testing.T) {
	for name, c := range map[string]struct {
		end    func(*rig) error
		reason Reason
	}{
		"at its deadline": {func(r *rig) error { return r.Drain(DrainOptions{Timeout: 100 * time.Millisecond}) }, ReasonDeadline},
		"at a kill":       {func(r *rig) error { r.Kill(); return nil }, ReasonDeadline},
		"closed by id":    {func(r *rig) error { return r.CloseConnection(r.connection().ID) }, ReasonKilled},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "tcp", "tcp", acceptProxy)
			refused := r.Subscribe(10, EventRefused)
			client := r.dial()
			streamtest.Send(t, client, headerTCP4[:10])
			proctest.Eventually(t, "a part is taken", func() bool { return r.headerTaken() == 10 })
			if err := c.end(r); err != nil {
				t.Fatal(err)
			}
			streamtest.ExpectEnding(t, client, streamtest.BrokenOff)
			equal(t, "reason", proctest.Wait(t, "the refusal", refused.C).Reason, c.reason)
		})
	}
}

// A client that was accepted before the drain is served, if its header comes in time.
func TestDrainWaitsForAProxyHeader(t *testing.T) {
	r := newRig(t, "tcp", "tcp", acceptProxy)
	client := r.dial()
	streamtest.Send(t, client, headerTCP4[:10])
	proctest.Eventually(t, "a part is taken", func() bool { return r.headerTaken() == 10 })
	if err := r.Drain(DrainOptions{Exit: true}); err != nil {
		t.Fatal(err)
	}
	streamtest.Send(t, client, headerTCP4[10:]+"payload")
	streamtest.Receive(t, r.accept(), "payload")
}

func TestAcceptProxyOverAllLoops(t *testing.T) {
	r := newRig(t, "tcp", "tcp", acceptProxy, withLoops(4))
	r.backend.Serve(streamtest.Echo)
	streamtest.Together(t, 200, func(i int) error {
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(proctest.Patience))
		sent := fmt.Sprintf("client %d", i)
		if _, err := io.WriteString(c, headerTLV+sent); err != nil {
			return err
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != sent {
			return fmt.Errorf("%q came back of %q: %v", got, sent, err)
		}
		return nil
	})
}

func TestParseSource(t *testing.T) {
	for _, c := range []struct{ text, in, out string }{
		{"192.0.2.1", "192.0.2.1", "192.0.2.2"},
		{"192.0.2.0/24", "192.0.2.255", "192.0.3.0"},
		{"0.0.0.0/0", "255.255.255.255", "::1"},
		{"2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"},
		{"::/0", "fe80::1%7", "192.0.2.1"},
		{"::1", "::1", "::2"},
		{"::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2"},
		{"::ffff:192.0.2.0/120", "192.0.2.9", "192.0.3.9"},
		{"192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"},
		{"fe80::9", "fe80::9%9", "fe80::8%9"},
		{"fe80::9%1", "fe80::9%1", "fe80::9%2"},
		{"fe80::/10", "fe80::9%9", "fec0::%9"},
	} {
		s, err := ParseSource(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		in, out := addressOf(netip.AddrPortFrom(netip.MustParseAddr(c.in), 1)), addressOf(netip.AddrPortFrom(netip.MustParseAddr(c.out), 1))
		local := address{family: unix.AF_UNIX}
		equal(t, c.text, s.String(), c.text)
		equal(t, c.text+" contains "+c.in, s.contains(&in), true)
		equal(t, c.text+" contains "+c.out, s.contains(&out), false)
		equal(t, c.text+" contains AF_UNIX", s.contains(&local), false)
	}
	local, err := ParseSource("unix")
	any4, unnamed := addressOf(netip.MustParseAddrPort("0.0.0.0:0")), address{family: unix.AF_UNIX}
	equal(t, "error", err, nil)
	equal(t, "unix contains AF_UNIX", local.contains(&unnamed), true)
	equal(t, "unix contains TCP", local.contains(&any4), false)

	const neither = `neither an IP address, a prefix such as 192.0.2.0/24, nor "unix"`
	for text, want := range map[string]string{
		"":                    neither,
		"localhost":           neither,
		"192.0.2.1:80":        neither,
		"unix:":               neither,
		"all/8":               neither,
		"192.0.2.1/24":        "address bits are set after the prefix; write 192.0.2.0/24, or 192.0.2.1 for one address",
		"::ffff:192.0.2.1/97": "address bits are set after the prefix; write ::ffff:128.0.0.0/97, or ::ffff:192.0.2.1 for one address",
		"2001:db8::1/32":      "address bits are set after the prefix; write 2001:db8::/32, or 2001:db8::1 for one address",
		"192.0.2.0/33":        `"33" is not the length of a prefix of 192.0.2.0`,
		"192.0.2.0/":          `"" is not the length of a prefix of 192.0.2.0`,
		"fe80::9%none":        `no network interface "none"`,
	} {
		if _, err := ParseSource(text); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

// Whatever a header looks like, its size is the same however much of it and of the payload has come.
func FuzzAcceptProxyHeader(f *testing.F) {
	for header := range headerSource {
		f.Add([]byte(header + "payload"))
	}
	f.Add([]byte(headerV2(0x20, 0x00, "")))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		size, err := proxyHeaderSize(raw)
		if size > headerV2Max {
			t.Fatalf("a header of %d bytes", size)
		}
		for n := range min(len(raw), headerV2Max) {
			part, partErr := proxyHeaderSize(raw[:n])
			switch {
			case partErr != nil && (err == nil || partErr.Error() != err.Error()):
				t.Fatalf("%q is refused with %v, all of it with %v", raw[:n], partErr, err)
			case part != 0 && part != size:
				t.Fatalf("%q has %d bytes, all of it %d", raw[:n], part, size)
			}
		}
		if err != nil || size == 0 || size > len(raw) {
			return
		}
		source, destination, err := parseProxyHeader(raw[:size])
		if source.IsValid() != destination.IsValid() || err != nil && source.IsValid() || source.Addr().Is4In6() {
			t.Fatalf("%q names %v and %v, %v", raw, source, destination, err)
		}
		reader := strings.NewReader(string(raw))
		h, libraryErr := proxyproto.Read(bufio.NewReaderSize(reader, headerV2Max))
		if libraryErr != nil || err != nil {
			return // it differs in what the specification leaves open
		}
		if from, _, ok := h.TCPAddrs(); ok && h.Command.IsProxy() {
			equal(t, "source", source, unmapPort(from.AddrPort()))
		}
	})
}
