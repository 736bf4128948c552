package soak

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
)

// A probe is what goes through a proxy beside a flood: a message that goes to and fro, and a stream of which every byte is
// hashed.
type probe struct {
	t       testing.TB
	stop    chan struct{}
	ended   sync.Once
	working sync.WaitGroup

	mu       sync.Mutex
	current  *phase
	lastRead time.Time
}

// phase is what a probe has seen in a part of its time.
type phase struct {
	latencies []time.Duration
	bytes     int64
	pause     time.Duration // the longest of the stream
	began     time.Time
	took      time.Duration
}

// What the stream of a probe sends, so often.
const (
	probeBytes    = 96 << 10
	probeInterval = 10 * time.Millisecond
	pingInterval  = time.Millisecond
)

func startProbe(t testing.TB, listener streamtest.Address) *probe {
	t.Helper()
	p := &probe{t: t, stop: make(chan struct{})}
	ping, bulk := dialProbe(t, listener), dialProbe(t, listener)
	t.Cleanup(func() { // for a test that ends before
		p.ended.Do(func() { close(p.stop) })
		for _, c := range []streamtest.Stream{ping, bulk} {
			_ = c.SetDeadline(time.Now()) // fails where it is closed, as it should be
		}
		p.working.Wait()
	})
	p.working.Go(func() { p.check(p.pings(ping)) })
	sent, got := sha256.New(), sha256.New()
	p.working.Go(func() { p.check(p.send(bulk, sent)) })
	p.working.Go(func() {
		err := p.receive(bulk, got)
		p.check(err)
		if err == nil && !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			t.Error("the probe received other bytes than it sent")
		}
	})
	return p
}

func dialProbe(t testing.TB, listener streamtest.Address) streamtest.Stream {
	t.Helper()
	c := streamtest.Dial(t, listener)
	must(t, c.SetDeadline(time.Time{})) // it goes on as long as the flood; a stall is measured
	streamtest.Send(t, c, string(bulkEcho))
	return c
}

func (p *probe) check(err error) {
	if err != nil {
		p.t.Errorf("the probe: %v", err)
	}
}

// phase begins another part of the time.
func (p *probe) phase() *phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.current != nil {
		p.current.took = now.Sub(p.current.began)
	}
	p.current, p.lastRead = &phase{began: now}, now
	return p.current
}

// goesOn returns after a time, once some messages have come back in it.
func (p *probe) goesOn(span time.Duration) {
	p.t.Helper()
	<-time.After(span)
	proctest.Eventually(p.t, "the probe goes on", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.current.latencies) >= 20
	})
}

// end closes the probe, once all it has sent has come back.
func (p *probe) end() {
	p.phase()
	p.ended.Do(func() { close(p.stop) })
	p.working.Wait()
}

func (p *probe) pings(c streamtest.Stream) error {
	defer c.Close()
	message, answer := make([]byte, shortMessage), make([]byte, shortMessage)
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	for n := uint64(0); ; n++ {
		select {
		case <-p.stop:
			return nil
		case <-ticker.C:
		}
		binary.LittleEndian.PutUint64(message, n)
		began := time.Now()
		if _, err := c.Write(message); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, answer); err != nil {
			return err
		}
		if !bytes.Equal(message, answer) {
			return fmt.Errorf("message %d came back as %q", n, answer)
		}
		took := time.Since(began)
		p.mu.Lock()
		if p.current != nil {
			p.current.latencies = append(p.current.latencies, took)
		}
		p.mu.Unlock()
	}
}

func (p *probe) send(c streamtest.Stream, sent hash.Hash) error {
	pattern := stream(1, 1)
	buf := make([]byte, probeBytes)
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-p.stop:
			return c.CloseWrite()
		case <-ticker.C:
		}
		_, _ = pattern.Read(buf) // never fails
		sent.Write(buf)
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
}

func (p *probe) receive(c net.Conn, got hash.Hash) error {
	defer c.Close()
	buf := make([]byte, probeBytes)
	for {
		n, err := c.Read(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		got.Write(buf[:n])
		p.mu.Lock()
		if p.current != nil {
			p.current.bytes += int64(n)
			now := time.Now()
			p.current.pause = max(p.current.pause, now.Sub(p.lastRead))
			p.lastRead = now
		}
		p.mu.Unlock()
	}
}

// percentile of the latencies, of a phase that is over.
func (f *phase) percentile(n int) time.Duration {
	if len(f.latencies) == 0 {
		return 0
	}
	slices.Sort(f.latencies)
	return f.latencies[min(len(f.latencies)*n/100, len(f.latencies)-1)]
}

// throughput in MB a second.
func (f *phase) throughput() float64 { return float64(f.bytes) / 1e6 / f.took.Seconds() }
