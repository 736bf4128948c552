package forward

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// noise is what the streams of the tests are cut from.
var noise = func() []byte {
	p := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(p)
	return p
}()

// digest is what was sent or received: its size and its SHA-256.
type digest struct {
	size int
	sum  [sha256.Size]byte
}

// pace makes a pause, now and then, between two pieces of a stream; nil: never.
type pace func()

// lazily pauses for a moment before every eighth piece or so.
func lazily(rng *rand.Rand) pace {
	return func() {
		if rng.IntN(8) == 0 {
			time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
		}
	}
}

// sendStream sends size bytes in pieces of random sizes, and a FIN.
func sendStream(c streamtest.Stream, size int, rng *rand.Rand, pause pace) (digest, error) {
	hash := sha256.New()
	for left := size; left > 0; {
		n := min(left, 1<<rng.IntN(19)+rng.IntN(100))
		at := rng.IntN(len(noise) - n)
		hash.Write(noise[at : at+n])
		if _, err := c.Write(noise[at : at+n]); err != nil {
			return digest{}, fmt.Errorf("with %d of %d bytes to send: %w", left, size, err)
		}
		left -= n
		if pause != nil {
			pause()
		}
	}
	return digest{size, [sha256.Size]byte(hash.Sum(nil))}, c.CloseWrite()
}

// receiveStream reads pieces of random sizes until the end of the stream.
func receiveStream(r io.Reader, rng *rand.Rand, pause pace) (digest, error) {
	hash, size := sha256.New(), 0
	for buf := make([]byte, 256<<10); ; {
		n, err := r.Read(buf[:1<<rng.IntN(19)])
		hash.Write(buf[:n])
		size += n
		if err == io.EOF {
			return digest{size, [sha256.Size]byte(hash.Sum(nil))}, nil
		}
		if err != nil {
			return digest{}, fmt.Errorf("after %d bytes received: %w", size, err)
		}
		if pause != nil {
			pause()
		}
	}
}

// newRand makes random numbers that can be had again: the seed is in the log of a test that fails.
func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// exchange has both ends of a connection send and receive at once. far is where to read what server gets.
func exchange(t *testing.T, client, server streamtest.Stream, far io.Reader, toServer, toClient int, seed uint64) {
	var sent, got [2]digest
	var wg sync.WaitGroup
	run := func(what string, into *digest, f func(*rand.Rand) (digest, error)) {
		seed++
		rng := rand.New(rand.NewPCG(seed, 0))
		wg.Go(func() {
			var err error
			if *into, err = f(rng); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	paceOf := func(rng *rand.Rand) pace {
		if rng.IntN(3) == 0 {
			return lazily(rng)
		}
		return nil
	}
	run("client sends", &sent[0], func(rng *rand.Rand) (digest, error) { return sendStream(client, toServer, rng, paceOf(rng)) })
	run("server receives", &got[0], func(rng *rand.Rand) (digest, error) { return receiveStream(far, rng, paceOf(rng)) })
	run("server sends", &sent[1], func(rng *rand.Rand) (digest, error) { return sendStream(server, toClient, rng, paceOf(rng)) })
	run("client receives", &got[1], func(rng *rand.Rand) (digest, error) { return receiveStream(client, rng, paceOf(rng)) })
	wg.Wait()
	if got != sent {
		t.Errorf("%d bytes to the server and %d to the client became %d and %d, or other bytes",
			toServer, toClient, got[0].size, got[1].size)
	}
}

func TestStreamsArriveByteExactBothWaysAtOnce(t *testing.T) {
	variants := []struct {
		name   string
		loops  int
		header ProxyProtocol
		large  int // bytes of the largest stream
	}{
		{"one loop", 1, ProxyProtocolOff, 24 << 20},
		{"three loops", 3, ProxyProtocolOff, 8 << 20},
		{"PROXY v1", 1, ProxyProtocolV1, 2 << 20},
		{"PROXY v2", 3, ProxyProtocolV2, 2 << 20},
	}
	networks(t, func(t *testing.T, clients, backend string) {
		for _, v := range variants {
			t.Run(v.name, func(t *testing.T) {
				rng := newRand(t)
				r := newRig(t, clients, backend, withLoops(v.loops), func(c *Config) { c.ProxyProtocol = v.header })
				var wg sync.WaitGroup
				for _, size := range [][2]int{
					{0, 0}, {1, 0}, {0, 1}, {1, 1}, {copySize - 1, copySize + 1}, {copySize, 2 * copySize},
					{0, v.large / 2}, {v.large / 4, 1}, {v.large, v.large},
				} {
					client, server := r.pair()
					far := io.Reader(server)
					if v.header != ProxyProtocolOff {
						far = readHeader(t, server, client)
					}
					seed := rng.Uint64()
					wg.Go(func() { exchange(t, client, server, far, size[0], size[1], seed) })
				}
				wg.Wait()
			})
		}
	})
}

// readHeader takes the PROXY header off a stream, which must name the client.
func readHeader(t *testing.T, server, client streamtest.Stream) io.Reader {
	t.Helper()
	reader := bufio.NewReader(server)
	header, err := proxyproto.Read(reader)
	if err != nil {
		t.Fatal(err)
	}
	if client.LocalAddr().Network() == "tcp" {
		equal(t, "client in the header", header.SourceAddr.String(), client.LocalAddr().String())
		equal(t, "proxy in the header", header.DestinationAddr.String(), client.RemoteAddr().String())
	}
	return reader
}

func TestEachDirectionEndsByItself(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		t.Run("the answer follows the end of the request", func(t *testing.T) {
			r := newRig(t, clients, backend)
			client, server := r.pair()
			streamtest.Send(t, client, "request")
			streamtest.Finish(t, client)
			streamtest.Receive(t, server, "request")
			streamtest.ExpectEnding(t, server, streamtest.End)
			streamtest.Send(t, server, "answer")
			streamtest.Receive(t, client, "answer")
			streamtest.Finish(t, server)
			streamtest.ExpectEnding(t, client, streamtest.End)
		})
		t.Run("the request goes on after the end of the answer", func(t *testing.T) {
			r := newRig(t, clients, backend)
			client, server := r.pair()
			streamtest.Send(t, server, "answer")
			streamtest.Finish(t, server)
			streamtest.Receive(t, client, "answer")
			streamtest.ExpectEnding(t, client, streamtest.End)
			streamtest.Send(t, client, "request")
			streamtest.Receive(t, server, "request")
			streamtest.Finish(t, client)
			streamtest.ExpectEnding(t, server, streamtest.End)
		})
		t.Run("both end at once", func(t *testing.T) {
			r := newRig(t, clients, backend)
			client, server := r.pair()
			streamtest.Send(t, client, "request")
			streamtest.Send(t, server, "answer")
			streamtest.Finish(t, client)
			streamtest.Finish(t, server)
			streamtest.Receive(t, client, "answer")
			streamtest.ExpectEnding(t, client, streamtest.End)
			streamtest.Receive(t, server, "request")
			streamtest.ExpectEnding(t, server, streamtest.End)
		})
		t.Run("without a byte", func(t *testing.T) {
			r := newRig(t, clients, backend)
			client, server := r.pair()
			streamtest.Finish(t, client)
			streamtest.ExpectEnding(t, server, streamtest.End)
			streamtest.Finish(t, server)
			streamtest.ExpectEnding(t, client, streamtest.End)
		})
	})
}

func TestAMessageWaitsForNoOther(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		r := newRig(t, clients, backend)
		client, server := r.pair()
		for i := range 200 {
			text := strings.Repeat("x", 1+i*i)
			streamtest.Send(t, client, text)
			streamtest.Receive(t, server, text)
			streamtest.Send(t, server, text)
			streamtest.Receive(t, client, text)
		}
	})
}

// The end of a burst must arrive though nothing follows it, whether the relay copies or splices at that moment.
func TestBurstsArriveWhole(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		rng := newRand(t)
		r := newRig(t, clients, backend)
		client, server := r.pair()
		var bursts []string
		for range 50 {
			bursts = append(bursts, string(noise[:1+rng.IntN(1<<rng.IntN(21))]))
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			for _, burst := range bursts {
				receiveText(t, server, burst)
				if _, err := io.WriteString(server, "ok"); err != nil {
					t.Error(err)
				}
			}
		}()
		for _, burst := range bursts {
			streamtest.Send(t, client, burst)
			streamtest.Receive(t, client, "ok")
		}
		<-answered
	})
}

// torrent writes noise until it is told to stop or the size is reached, and counts what the kernel has taken.
type torrent struct {
	count atomic.Int64
	done  chan digest
}

func newTorrent(t *testing.T, c streamtest.Stream, size int) *torrent {
	w := &torrent{done: make(chan digest, 1)}
	go func() {
		hash := sha256.New()
		for sent := 0; sent < size; {
			n, err := c.Write(noise[:min(size-sent, copySize)])
			hash.Write(noise[:n])
			sent += n
			w.count.Add(int64(n))
			if err != nil {
				t.Errorf("after %d bytes: %v", sent, err)
				break
			}
		}
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
		w.done <- digest{int(w.count.Load()), [sha256.Size]byte(hash.Sum(nil))}
	}()
	return w
}

// stalls waits until the writer has got nothing more rid of for a while, and returns how much it has.
func (w *torrent) stalls(t *testing.T) int64 {
	t.Helper()
	last, since := int64(-1), 0
	proctest.Eventually(t, "the writer is stopped", func() bool {
		if n := w.count.Load(); n != last {
			last, since = n, 0
		}
		since++
		return since > 20
	})
	return last
}

// limitBuffers keeps the kernel from holding many megabytes for a socket.
func limitBuffers(fd int32) error {
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 128<<10); err != nil {
			return err
		}
	}
	return nil
}

func TestAStalledReaderStopsTheWriter(t *testing.T) {
	const (
		size  = 8 << 20
		bound = 4 << 20 // what the sockets on the way can hold, and the Proxy
	)
	networks(t, func(t *testing.T, clients, backend string) {
		rng := newRand(t)
		r := newRig(t, clients, backend)
		client, server := r.pair()
		for _, c := range []streamtest.Stream{client, server} {
			streamtest.Control(t, c, func(fd int) error { return limitBuffers(int32(fd)) })
		}
		r.inspect(1, func(_ *loop, c *conn) {
			for s := range c.end {
				equal(t, "error", limitBuffers(c.end[s].fd), nil)
			}
		})
		toServer, toClient := newTorrent(t, client, size), newTorrent(t, server, size)
		for _, w := range []*torrent{toServer, toClient} {
			if n := w.stalls(t); n > bound {
				t.Errorf("the writer was stopped after %d bytes only", n)
			}
		}
		id := r.connection().ID
		for _, from := range []side{0, 1} {
			if n := r.held(id, from); n == 0 || n > pipeLarge {
				t.Errorf("the Proxy holds %d bytes", n)
			}
		}
		if clients == backend {
			atRest(t)
		}
		back := make(chan digest)
		go func() {
			got, err := receiveStream(client, rand.New(rand.NewPCG(1, 1)), nil)
			if err != nil {
				t.Errorf("client: %v", err)
			}
			back <- got
		}()
		got, err := receiveStream(server, rng, nil)
		if err != nil {
			t.Errorf("server: %v", err)
		}
		if sent := proctest.Wait(t, "the client has sent all", toServer.done); got != sent {
			t.Errorf("%d bytes became %d, or others", sent.size, got.size)
		}
		if got, sent := proctest.Wait(t, "the client has all", back), proctest.Wait(t, "the server has sent all", toClient.done); got != sent {
			t.Errorf("%d bytes became %d, or others", sent.size, got.size)
		}
	})
}

// limitPipes leaves so many bytes for pipes. To be called before the first client comes.
func (p *Proxy) limitPipes(total int64) {
	p.pipes.total = total
	p.pipes.left.Store(total)
	p.freeze()() // the loops see it
}

// Streams that get no pipe are copied, and a stalled one that holds the last pipe is in nobody's way.
func TestStreamsGoOnWithoutPipes(t *testing.T) {
	for name, budget := range map[string]int64{"none": 0, "one": pipeSmall, "two": 2 * pipeSmall} {
		t.Run(name, func(t *testing.T) {
			rng := newRand(t)
			r := newRig(t, "tcp", "unix", withLoops(2))
			r.limitPipes(budget)
			stalled, _ := r.pair()
			r.fill(1, 0, stalled)
			var wg sync.WaitGroup
			for range 5 {
				client, server := r.pair()
				seed := rng.Uint64()
				wg.Go(func() { exchange(t, client, server, server, 2<<20, 3<<20, seed) })
			}
			wg.Wait()
		})
	}
}

// A relay that stops though there is more to do, because the others must have their turn, gets no event for it.
func TestAStreamGoesOnAfterItsTurn(t *testing.T) {
	const size = 3*streamBytes + 1
	r := newRig(t, "unix", "unix", withLoops(1))
	client, server := r.pair()
	makeRoom := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4*size) }
	testenv.NeedRoot(t, "make so large a buffer")
	streamtest.Control(t, client, makeRoom)
	other, otherServer := r.pair()
	r.inspect(1, func(_ *loop, c *conn) { equal(t, "error", makeRoom(int(c.end[1].fd)), nil) })
	thaw := r.freeze()
	for range size / len(noise) {
		streamtest.Send(t, client, string(noise))
	}
	streamtest.Send(t, client, string(noise[:size%len(noise)]))
	streamtest.Finish(t, client)
	streamtest.Send(t, other, "message")
	thaw()
	streamtest.Receive(t, otherServer, "message")
	proctest.Eventually(t, "all is with the backend's socket", func() bool { return r.Stats().BytesToBackend == size+7 })
	got, err := receiveStream(server, newRand(t), nil)
	if err != nil || got != repeatedNoise(size) {
		t.Errorf("%d bytes became %d, or others: %v", size, got.size, err)
	}
	streamtest.Finish(t, server)
}

// sendMessage sends like sendmsg(2), with flags and control data.
func sendMessage(t *testing.T, c streamtest.Stream, text string, control []byte, flags int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		_, sent = unix.SendmsgN(int(fd), []byte(text), control, nil, flags)
		return sent != unix.EAGAIN
	})
	if err != nil || sent != nil {
		t.Fatal(err, sent)
	}
}

// Urgent data is no part of the stream, and not passed on: neither splice(2) nor read(2) gives it. What comes before and
// after it must arrive, whether the relay copies or splices at that moment.
func TestUrgentDataHangsNothing(t *testing.T) {
	networks(t, func(t *testing.T, clients, backend string) {
		r := newRig(t, clients, backend)
		client, server := r.pair()
		for _, way := range []struct{ from, to streamtest.Stream }{{client, server}, {server, client}} {
			for _, size := range []int{1, 100, 4 << 20, 3, 200_000, 200_000, 200_000, 4 << 20} {
				text := string(noise[:size%len(noise)]) + strings.Repeat("x", size-size%len(noise))
				received := make(chan struct{})
				go func() {
					defer close(received)
					receiveText(t, way.to, text+text)
				}()
				streamtest.Send(t, way.from, text)
				sendMessage(t, way.from, "!", nil, unix.MSG_OOB)
				streamtest.Send(t, way.from, text)
				<-received // the next urgent byte would make this one part of the stream, if it was not passed yet
			}
			streamtest.Send(t, way.from, "end")
			streamtest.Receive(t, way.to, "end")
		}
		streamtest.Finish(t, client)
		streamtest.ExpectEnding(t, server, streamtest.End)
		streamtest.Finish(t, server)
		streamtest.ExpectEnding(t, client, streamtest.End)
	})
}

func TestUrgentDataAmongABusyStreamHangsNothing(t *testing.T) {
	r := newRig(t, "tcp", "tcp")
	client, server := r.pair()
	received := make(chan int)
	go func() {
		got, err := receiveStream(server, rand.New(rand.NewPCG(1, 1)), nil)
		if err != nil {
			t.Error(err)
		}
		received <- got.size
	}()
	const rounds = 100
	for range rounds {
		streamtest.Send(t, client, string(noise[:200_000]))
		sendMessage(t, client, "!", nil, unix.MSG_OOB)
	}
	streamtest.Finish(t, client)
	// A later urgent byte makes an earlier one, if it was not read yet, part of the stream.
	if n := proctest.Wait(t, "the end of the stream", received) - rounds*200_000; n < 0 || n > rounds {
		t.Errorf("%d bytes more than were sent", n)
	}
}

// receiveText is receive for other goroutines than the test's.
func receiveText(t *testing.T, c net.Conn, want string) {
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Errorf("received %d of %d bytes, or other ones: %v", n, len(want), err)
	}
}

// Descriptors among the bytes end reads early, and are closed by the kernel when nobody takes them.
func TestPassedDescriptorsHangNothing(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run("unix to "+network, func(t *testing.T) {
			r := newRig(t, "unix", network)
			client, server := r.pair()
			file, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			rights := unix.UnixRights(int(file.Fd()), int(file.Fd()))
			var want strings.Builder
			received := make(chan digest)
			go func() {
				got, err := receiveStream(server, rand.New(rand.NewPCG(1, 1)), nil)
				if err != nil {
					t.Error(err)
				}
				received <- got
			}()
			for i := range 300 {
				text := string(noise[i : i+1+i*i])
				want.WriteString(text + "+fds")
				streamtest.Send(t, client, text)
				sendMessage(t, client, "+fds", rights, 0)
			}
			streamtest.Finish(t, client)
			if got := proctest.Wait(t, "the stream", received); got != (digest{want.Len(), sha256.Sum256([]byte(want.String()))}) {
				t.Errorf("%d bytes became %d, or others", want.Len(), got.size)
			}
		})
	}
}

// splice(2) stops at urgent data, and says then that the stream has ended if the FIN is there already.
func TestUrgentDataInASplicedStreamCutsNothingOff(t *testing.T) {
	before := string(noise[:2*trickle]) // enough to go on splicing
	for _, end := range []bool{false, true} {
		t.Run(fmt.Sprintf("with a FIN behind it: %t", end), func(t *testing.T) {
			r := newRig(t, "tcp", "tcp")
			client, server := r.pair()
			r.inspect(r.connection().ID, func(_ *loop, c *conn) { c.relay[0].streaming = true })
			thaw := r.freeze() // so that the loop sees all of what follows at once
			streamtest.Send(t, client, before)
			sendMessage(t, client, "!", nil, unix.MSG_OOB)
			streamtest.Send(t, client, "after")
			if end {
				streamtest.Finish(t, client)
			}
			thaw()
			streamtest.Receive(t, server, before+"after")
			streamtest.Finish(t, client)
			streamtest.ExpectEnding(t, server, streamtest.End)
			streamtest.Finish(t, server)
		})
	}
}
