package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	resolveTimeout = 10 * time.Second
	resolveKeep    = 5 * time.Second
)

// resolver looks the target's name up, away from the loops: once for all connections that wait, and not again for a few
// seconds. It asks what resolv.conf(5) and hosts(5) name, as Go's own resolver does.
type resolver struct {
	host   string
	port   uint16
	lookIP func(ctx context.Context, network, host string) ([]netip.Addr, error)

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	waiting   []func([]sockaddr, error)
	addresses []sockaddr
	expires   time.Time
}

func newResolver(t Target) *resolver {
	ctx, cancel := context.WithCancel(context.Background())
	return &resolver{host: t.host, port: t.port, lookIP: net.DefaultResolver.LookupNetIP, ctx: ctx, cancel: cancel}
}

// lookup returns the addresses where they are known; else it calls done with them later, from another goroutine.
func (r *resolver) lookup(done func([]sockaddr, error)) (addresses []sockaddr, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.expires) {
		return r.addresses, true
	}
	r.waiting = append(r.waiting, done)
	if len(r.waiting) == 1 {
		r.wg.Go(r.resolve)
	}
	return nil, false
}

func (r *resolver) resolve() {
	ctx, cancel := context.WithTimeout(r.ctx, resolveTimeout)
	defer cancel()
	ips, err := r.lookIP(ctx, "ip", r.host)
	if err == nil && len(ips) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		err = fmt.Errorf("cannot resolve %s: %w", r.host, err)
	}
	addresses := allAddresses(ips, r.port)

	r.mu.Lock()
	if err == nil {
		r.addresses, r.expires = addresses, time.Now().Add(resolveKeep)
	}
	waiting := r.waiting
	r.waiting = nil
	r.mu.Unlock()

	for _, done := range waiting {
		done(addresses, err)
	}
}

// forget has the next look-up ask again.
func (r *resolver) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expires = time.Time{}
}

// close ends a look-up that is under way.
func (r *resolver) close() {
	r.cancel()
	r.wg.Wait()
}
