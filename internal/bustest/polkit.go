package bustest

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"github.com/godbus/dbus/v5"
)

// Answer is what polkit says to a request.
type Answer int

// The answers of polkit.
const (
	No        Answer = iota
	Yes              // authorised
	Challenge        // would be authorised after authentication, for which the caller did not allow to ask
	Dismissed        // the user closed the dialogue
	Failed           // a D-Bus error
	Silent           // nothing, until the request is cancelled, another answer is set, or polkit goes
)

// Request is a call of CheckAuthorization.
type Request struct {
	Sender         string // the unique name of who asks
	SubjectKind    string // "system-bus-name"
	SubjectName    string // the bus name in the subject
	Action         string
	Details        map[string]string
	Flags          uint32 // 1: the user may be asked
	CancellationID string
}

// Cancellation is a call of CancelCheckAuthorization.
type Cancellation struct {
	Sender         string
	CancellationID string
}

// Polkit is a polkit that answers what the test wants. Until it is told otherwise, its answer is No.
type Polkit struct {
	Requests      <-chan Request      // as they come; those beyond the first 4096 that nobody receives are lost
	Cancellations <-chan Cancellation // the same

	conn          *dbus.Conn
	requests      chan Request
	cancellations chan Cancellation

	mu      sync.Mutex
	answers map[string]Answer
	waiting map[Cancellation]context.CancelFunc
	changed chan struct{} // closed and replaced when answers change
}

// StartPolkit brings polkit onto the bus, until Close, or the end of the bus or of the test.
func StartPolkit(t testing.TB, b *Bus) *Polkit {
	t.Helper()
	p := &Polkit{
		conn:          b.Connect(t),
		requests:      make(chan Request, 4096),
		cancellations: make(chan Cancellation, 4096),
		answers:       map[string]Answer{},
		waiting:       map[Cancellation]context.CancelFunc{},
		changed:       make(chan struct{}),
	}
	p.Requests, p.Cancellations = p.requests, p.cancellations
	methods := map[string]any{
		"CheckAuthorization":       p.checkAuthorization,
		"CancelCheckAuthorization": p.cancelCheckAuthorization,
	}
	err := p.conn.ExportMethodTable(methods, "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority")
	if err != nil {
		t.Fatal(err)
	}
	reply, err := p.conn.RequestName("org.freedesktop.PolicyKit1", dbus.NameFlagDoNotQueue)
	if err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("no name for polkit: %v, %v", reply, err)
	}
	return p
}

// Close takes polkit off the bus.
func (p *Polkit) Close() { p.conn.Close() }

// Answer sets the answer to requests for an action, to those that wait for one too. The action "" stands for all that have no
// answer of their own.
func (p *Polkit) Answer(action string, a Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers[action] = a
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Polkit) answer(action string) (a Answer, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.answers[action]
	if !ok {
		a = p.answers[""]
	}
	return a, p.changed
}

type subject struct {
	Kind    string
	Details map[string]dbus.Variant
}

type result struct {
	IsAuthorized, IsChallenge bool
	Details                   map[string]string
}

func (p *Polkit) checkAuthorization(
	sender dbus.Sender, who subject, action string, details map[string]string, flags uint32, cancellationID string,
) (result, *dbus.Error) {
	ctx, cancel := context.WithCancel(p.conn.Context())
	defer cancel()
	if cancellationID != "" {
		key := Cancellation{string(sender), cancellationID}
		p.mu.Lock()
		_, taken := p.waiting[key]
		if !taken {
			p.waiting[key] = cancel
		}
		p.mu.Unlock()
		if taken {
			return result{}, failure("CancellationIdNotUnique", "%s is in use", cancellationID)
		}
		defer func() {
			p.mu.Lock()
			delete(p.waiting, key)
			p.mu.Unlock()
		}()
	}
	name, _ := who.Details["name"].Value().(string)
	offer(p.requests, Request{string(sender), who.Kind, name, action, details, flags, cancellationID})

	for {
		a, changed := p.answer(action)
		switch a {
		case Yes:
			return result{IsAuthorized: true, Details: map[string]string{}}, nil
		case Challenge:
			return result{IsChallenge: true, Details: map[string]string{}}, nil
		case Dismissed:
			return result{Details: map[string]string{"polkit.dismissed": "true"}}, nil
		case Failed:
			return result{}, failure("Failed", "polkit failed, as the test wants")
		case Silent:
			select {
			case <-changed:
			case <-ctx.Done():
				return result{}, failure("Cancelled", "the request was cancelled")
			}
		default:
			return result{Details: map[string]string{}}, nil
		}
	}
}

func (p *Polkit) cancelCheckAuthorization(sender dbus.Sender, cancellationID string) *dbus.Error {
	c := Cancellation{string(sender), cancellationID}
	offer(p.cancellations, c)
	p.mu.Lock()
	defer p.mu.Unlock()
	cancel, ok := p.waiting[c]
	if !ok {
		return failure("Failed", "no request %s of %s", cancellationID, sender)
	}
	cancel()
	return nil
}

func failure(name, format string, args ...any) *dbus.Error {
	return dbus.NewError("org.freedesktop.PolicyKit1.Error."+name, []any{fmt.Sprintf(format, args...)})
}

func offer[T any](ch chan<- T, v T) {
	select {
	case ch <- v:
	default:
	}
}

// Receive waits for what must come, such as a request to polkit.
func Receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	return proctest.Wait(t, fmt.Sprintf("a %T", *new(T)), ch)
}
