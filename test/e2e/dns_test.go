package e2e

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"example.org/socketproxy/internal/streamtest"
)

// The two share the file that they are about.
func TestNamesAreLookedUpAsResolvConfSays(t *testing.T) {
	m := onMachine(t)
	m.namesAreLookedUpInDNS(t)
	m.resolvConfOutsideTheSandboxIsNamed(t)
}

func (m *machine) namesAreLookedUpInDNS(t *testing.T) {
	m.serveDNS(t, "127.0.0.54:53", "backend.example.test", net.IPv4(127, 0, 0, 55))
	m.write(t, "/etc/resolv.conf", "nameserver 127.0.0.54\n")
	port := freePort()
	m.listen(t, "tcp", "127.0.0.55:"+port).Serve(streamtest.Echo)
	address := m.proxy(t, instance{name: "dns", target: "backend.example.test:" + port, options: "--connect-retry=0"})
	if err := m.ask("tcp", address); err != nil {
		t.Error(err)
	}
}

// Without a file to read, the name server of this machine would be asked, and the log would tell of that one.
func (m *machine) resolvConfOutsideTheSandboxIsNamed(t *testing.T) {
	m.run(t, "rm", "--force", "/etc/resolv.conf")
	m.run(t, "ln", "--symbolic", "/mnt/wsl/resolv.conf", "/etc/resolv.conf")
	i := instance{name: "unresolved", target: "backend.example.test:80", options: "--connect-retry=0"}
	address := m.proxy(t, i)
	if err := m.ask("tcp", address); err == nil {
		t.Fatal("a name was resolved")
	}
	const want = "cannot resolve backend.example.test: cannot read /etc/resolv.conf: no such file or directory; " +
		"it is a link to /mnt/wsl/resolv.conf, which BindReadOnlyPaths=/mnt/wsl shows to a unit with a sandbox"
	if message := m.entry(t, "_SYSTEMD_UNIT="+i.unit(), "PRIORITY=4")["MESSAGE"]; !strings.Contains(message, want) {
		t.Errorf("the log has %q", message)
	}
}

// serveDNS knows the IPv4 address of one name, in the form of RFC 1035, section 4.
func (m *machine) serveDNS(t *testing.T, address, name string, ip net.IP) {
	t.Helper()
	var socket net.PacketConn
	err := m.inNetwork(func() (err error) {
		socket, err = net.ListenPacket("udp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		socket.Close()
		<-ended
	})
	var labels []byte
	for label := range strings.SplitSeq(name, ".") {
		labels = append(append(labels, byte(len(label))), label...)
	}
	labels = append(labels, 0) // the root
	go func() {
		defer close(ended)
		for query := make([]byte, 512); ; {
			n, client, err := socket.ReadFrom(query)
			if err != nil {
				return // the test is over
			}
			const header = 12
			question := header + len(labels) // and then type and class, of two bytes each
			if n < question+4 || !bytes.Equal(query[header:question], labels) {
				continue
			}
			answers := byte(0)
			if bytes.Equal(query[question:question+4], []byte{0, 1, 0, 1}) { // A, IN
				answers = 1
			}
			reply := append([]byte{}, query[:2]...)                      // the id of the query
			reply = append(reply, 0x84, 0, 0, 1, 0, answers, 0, 0, 0, 0) // authoritative, one question
			reply = append(reply, query[header:question+4]...)
			if answers > 0 {
				reply = append(reply, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4) // the same name, A, IN, 60 s, 4 bytes
				reply = append(reply, ip.To4()...)
			}
			_, _ = socket.WriteTo(reply, client)
		}
	}()
}
