package compare

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
)

// backendName is the name that a nameServer knows.
const backendName = "backend.test"

// nameServer is a DNS server that knows the IPv4 addresses of one name, in the form of RFC 1035, section 4, for a second.
type nameServer struct {
	t         testing.TB
	ip        netip.Addr // it has port 53, as resolv.conf(5) wants
	mu        sync.Mutex
	silent    bool
	losing    bool
	addresses []netip.Addr
	asked     int
}

// newNameServer is a server that is not there yet.
func newNameServer(t testing.TB) *nameServer {
	return &nameServer{t: t, ip: streamtest.Loopback()}
}

// start has it listen.
func (s *nameServer) start() {
	s.t.Helper()
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.ip, 53)))
	if err != nil {
		testenv.Without(s.t, "cannot listen on port 53: %v", err)
	}
	ended := make(chan struct{})
	s.t.Cleanup(func() {
		socket.Close()
		<-ended
	})
	go func() {
		defer close(ended)
		for query := make([]byte, 512); ; {
			n, client, err := socket.ReadFromUDPAddrPort(query)
			if err != nil {
				return // the case is over
			}
			if reply := s.reply(query[:n]); reply != nil {
				_, _ = socket.WriteToUDPAddrPort(reply, client) // who asked may be gone
			}
		}
	}()
}

// knows sets the addresses of the name. Without any the name does not exist.
func (s *nameServer) knows(addresses ...netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses, s.silent = addresses, false
}

// silence lets it hear queries and answer none.
func (s *nameServer) silence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = true
}

// loseOne lets it answer all queries for the name but the next.
func (s *nameServer) loseOne() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.losing = true
}

// queries is how often it was asked for the name.
func (s *nameServer) queries() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *nameServer) reply(query []byte) []byte {
	const header = 12
	var name []byte
	for label := range strings.SplitSeq(backendName, ".") {
		name = append(append(name, byte(len(label))), label...)
	}
	name = append(name, 0)                                                      // the root
	end := header + bytes.IndexByte(query[min(header, len(query)):], 0) + 1 + 4 // and then type and class, of two bytes each
	if len(query) < end || end < header+5 {
		return nil
	}
	question := query[header:end]
	known := bytes.EqualFold(question[:len(question)-4], name)

	s.mu.Lock()
	defer s.mu.Unlock()
	if known {
		s.asked++
	}
	lost := s.losing && known
	s.losing = s.losing && !known
	if s.silent || lost {
		return nil
	}
	var answers []netip.Addr
	if bytes.Equal(question[len(question)-4:], []byte{0, 1, 0, 1}) { // A, IN
		answers = s.addresses
	}
	flags := byte(0x80) // recursion is available
	if !known || len(s.addresses) == 0 {
		flags |= 3 // NXDOMAIN
		answers = nil
	}
	reply := append([]byte{}, query[:2]...)                                     // the id of the query
	reply = append(reply, 0x85, flags, 0, 1, 0, byte(len(answers)), 0, 0, 0, 0) // an answer with authority
	reply = append(reply, question...)
	for _, a := range answers {
		reply = append(reply, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4) // the same name, A, IN, 1 s, 4 bytes
		reply = append(reply, a.AsSlice()...)
	}
	return reply
}
