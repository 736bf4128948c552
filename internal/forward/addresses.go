package forward

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// silenceKept is how long an address that did not answer is tried after the others: RFC 6555, section 4.2, which lets one
// client in that time find out whether it answers again.
const silenceKept = 10 * time.Minute

// addressOrder remembers which addresses of the backend did not answer, for all clients to come, and which one did where
// others had failed: localhost is two addresses, and most backends are at one of them only.
type addressOrder struct {
	mu       sync.Mutex
	choice   int                       // how many addresses there are
	silent   map[address]time.Duration // and since when, in loop time
	answered address                   // family 0: none, the first one serves
	since    time.Duration             // loop time of the first such answer
}

// sort returns the addresses with the one that answered first, and the silent ones last, the one that was so last at the very
// end.
func (o *addressOrder) sort(addresses []sockaddr, now time.Duration) []sockaddr {
	if len(addresses) < 2 {
		return addresses
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.choice = len(addresses)
	if now-o.since >= silenceKept {
		o.answered = address{}
	}
	if len(o.silent) == 0 && (o.answered.family == 0 || o.answered == addresses[0].address()) {
		return addresses
	}
	for addr := range o.silent {
		known := slices.ContainsFunc(addresses, func(sa sockaddr) bool { return sa.address() == addr })
		if !known || !o.isSilentLocked(addr, now) {
			delete(o.silent, addr)
		}
	}
	sorted := slices.Clone(addresses)
	slices.SortStableFunc(sorted, func(a, b sockaddr) int { return cmp.Compare(o.rankLocked(a.address()), o.rankLocked(b.address())) })
	return sorted
}

func (o *addressOrder) rankLocked(a address) time.Duration {
	if a == o.answered {
		return -1
	}
	return o.silent[a]
}

func (o *addressOrder) isSilent(a address, now time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.isSilentLocked(a, now)
}

func (o *addressOrder) isSilentLocked(a address, now time.Duration) bool {
	since, ok := o.silent[a]
	return ok && now-since < silenceKept
}

// setSilent reports whether this is news.
func (o *addressOrder) setSilent(a address, now time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.choice < 2 {
		return false
	}
	known := o.isSilentLocked(a, now)
	if o.silent == nil {
		o.silent = map[address]time.Duration{}
	}
	o.silent[a] = now
	return !known
}

// setAnswered reports whether it is news that the address is not silent. The first address of the order needs no better place.
func (o *addressOrder) setAnswered(a address, first bool, now time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !first && o.answered != a {
		o.answered, o.since = a, now
	}
	_, known := o.silent[a]
	delete(o.silent, a)
	return known
}

// setFailed takes an address its better place.
func (o *addressOrder) setFailed(a address) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.answered == a {
		o.answered = address{}
	}
}

func (p *Proxy) addressSilent(a address, now time.Duration) {
	if !p.oneAddress() && p.order.setSilent(a, now) {
		h := queuedEvent{kind: eventAddressSilent}
		h.record.address[backend] = a
		p.observers.add(h)
	}
}

func (p *Proxy) addressAnswered(a address, first bool, now time.Duration) {
	if !p.oneAddress() && p.order.setAnswered(a, first, now) {
		h := queuedEvent{kind: eventAddressAnswers}
		h.record.address[backend] = a
		p.observers.add(h)
	}
}

// budget is a number of things to share.
type budget struct{ left atomic.Int64 }

func (b *budget) take() bool {
	if b.left.Add(-1) >= 0 {
		return true
	}
	b.left.Add(1)
	return false
}

func (b *budget) giveBack() { b.left.Add(1) }
