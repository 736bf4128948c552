package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	resolveTimeout = 10 * time.Second
	resolveKeep    = 5 * time.Second // how long an answer is used
	resolvePause   = 2 * time.Second // at least, between two look-ups: each asks for IPv4 and for IPv6
)

// resolver looks the target's name up, away from the loops: once for all connections that wait, and not again for a few
// seconds, however it ends. It asks what resolv.conf(5) and hosts(5) name, as Go's own resolver does.
type resolver struct {
	host   string
	port   uint16
	pause  time.Duration
	places []place // where the proxy itself listens
	lookIP func(ctx context.Context, network, host string) ([]netip.Addr, error)

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	waiting   []func([]sockaddr, error)
	asked     time.Time // when the last look-up began
	addresses []sockaddr
	err       error
	expires   time.Time // of addresses or err
}

func newResolver(t Target, places []place) *resolver {
	ctx, cancel := context.WithCancel(context.Background())
	return &resolver{host: t.host, port: t.port, places: places, pause: resolvePause, lookIP: goResolver.LookupNetIP, ctx: ctx, cancel: cancel}
}

// lookup returns the outcome of the last look-up where that is recent; else it calls done with that of the next one later, from
// another goroutine.
func (r *resolver) lookup(done func([]sockaddr, error)) (addresses []sockaddr, err error, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.expires) {
		return r.addresses, r.err, true
	}
	r.waiting = append(r.waiting, done)
	if len(r.waiting) == 1 {
		r.asked = time.Now()
		r.wg.Go(r.resolve)
	}
	return nil, nil, false
}

func (r *resolver) resolve() {
	ctx, cancel := context.WithTimeout(r.ctx, resolveTimeout)
	defer cancel()
	ips, err := r.lookIP(ctx, "ip", r.host)
	if err == nil && len(ips) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		err = fmt.Errorf("cannot resolve %s: %w", r.host, explain(r.host, err))
	}
	addresses := allAddresses(ips, r.port)
	if err == nil {
		addresses, err = r.leaveOutLoops(addresses)
	}

	r.mu.Lock()
	r.addresses, r.err, r.expires = addresses, err, time.Now().Add(resolveKeep)
	if err != nil {
		r.forgetLocked()
	}
	waiting := r.waiting
	r.waiting = nil
	r.mu.Unlock()

	for _, done := range waiting {
		done(addresses, err)
	}
}

// leaveOutLoops takes the addresses out at which the proxy itself listens. One that has no other is a mistake.
func (r *resolver) leaveOutLoops(addresses []sockaddr) (others []sockaddr, err error) {
	for i := range addresses {
		if slices.ContainsFunc(r.places, func(p place) bool { return p.takes(&addresses[i]) }) {
			err = fmt.Errorf("cannot resolve %s: its address %s is where the proxy itself listens", r.host, addresses[i].String())
			continue
		}
		others = append(others, addresses[i])
	}
	if len(others) > 0 {
		return others, nil
	}
	return nil, err
}

// forget has the name looked up again as soon as that may be.
func (r *resolver) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetLocked()
}

func (r *resolver) forgetLocked() {
	if soon := r.asked.Add(r.pause); soon.Before(r.expires) {
		r.expires = soon
	}
}

// close ends a look-up that is under way.
func (r *resolver) close() {
	r.cancel()
	r.wg.Wait()
}

const resolvConf = "/etc/resolv.conf"

// goResolver asks no name server where resolv.conf(5) cannot be read. Go would ask the one of this machine, which is right
// only where that file does not exist.
var goResolver = &net.Resolver{
	PreferGo: true,
	Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := checkResolvConf(resolvConf); err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	},
}

// checkResolvConf finds what keeps the file from being read: most often it is a link out of the unit's sandbox.
func checkResolvConf(path string) error {
	file, err := os.Open(path)
	if err == nil {
		return file.Close()
	}
	err = fmt.Errorf("cannot read %s: %w", path, errors.Unwrap(err))
	link, noLink := os.Readlink(path)
	switch {
	case noLink == nil:
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(path), link)
		}
		return fmt.Errorf("%w; it is a link to %s, which BindReadOnlyPaths=%s shows to a unit with a sandbox", err, link, filepath.Dir(link))
	case errors.Is(err, os.ErrNotExist):
		return nil
	}
	return err
}

// explain says why a look-up failed, and for names that DNS does not have what does it.
func explain(host string, err error) error {
	if unreadable := checkResolvConf(resolvConf); unreadable != nil {
		return unreadable
	}
	var dns *net.DNSError
	if !errors.As(err, &dns) {
		return err
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	switch {
	case dns.IsNotFound && (!strings.Contains(name, ".") || strings.HasSuffix(name, ".local")):
		return fmt.Errorf("%s; only hosts(5) and DNS are asked, not the other sources of nsswitch.conf(5): "+
			"give an address, add the name to hosts(5), or name systemd-resolved, 127.0.0.53, in resolv.conf(5)", dns.Err)
	case dns.Server != "":
		return fmt.Errorf("%s, asked %s", dns.Err, dns.Server)
	}
	return errors.New(dns.Err)
}
