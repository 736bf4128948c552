package socketactivate

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
	"example.org/socketproxy/internal/testenv"
	"golang.org/x/sys/unix"
)

// A user without privilege may have so many pages of pipes and no more, fs.pipe-user-pages-soft of pipe(7). Beyond it the
// kernel makes pipes of two pages, through which streams crawl; proxyd stays below it, and copies instead.
func TestStalledStreamsOfAnUnprivilegedProxyShareItsPipesAndArriveUnchanged(t *testing.T) {
	t.Parallel()
	testenv.NeedRoot(t, "start a program as another user")
	const streams, size = 130, 2 << 20
	b := streamtest.NewBackend(t, streamtest.Abstract)
	s := launch(t, setup{program: proxyd, listen: []streamtest.Address{streamtest.Free(t, streamtest.Abstract)}, uid: nobody, args: []string{b.Target}})
	var clients, servers [streams]streamtest.Stream
	sent := make(chan error, streams)
	for i := range streams {
		clients[i] = s.dial()
		servers[i] = b.Accept()
		go func() { sent <- streamtest.SendPattern(clients[i], size) }()
	}
	proctest.Settles(t, "all streams are stalled", func() (n int) {
		for _, server := range servers {
			n += streamtest.Queued(t, server)
		}
		return n + s.Descriptors().Pipes
	})
	s.Rests()
	expectPipesWithinLimit(t, s.Process)

	streamtest.Together(t, streams, func(i int) error { return streamtest.ReceivePattern(servers[i], size) })
	for range streams {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}

// expectPipesWithinLimit looks at the size of every pipe that a process has.
func expectPipesWithinLimit(t *testing.T, p *proctest.Process) {
	t.Helper()
	const least = 64 << 10 // through a smaller one, splice(2) costs more than copying
	sizes := map[string]int{}
	for file, what := range p.OpenFiles() {
		if !strings.HasPrefix(what, "pipe:") || sizes[what] != 0 {
			continue
		}
		pipe, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		sizes[what], err = unix.FcntlInt(pipe.Fd(), unix.F_GETPIPE_SZ, 0)
		pipe.Close()
		if err != nil || sizes[what] < least {
			t.Errorf("%s holds %d bytes, %v", what, sizes[what], err)
		}
	}
	pages := 0
	for _, size := range sizes {
		pages += size / os.Getpagesize()
	}
	text, err := os.ReadFile("/proc/sys/fs/pipe-user-pages-soft")
	if err != nil {
		testenv.Without(t, "no limit to compare with: %v", err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if len(sizes) == 0 || pages > limit {
		t.Errorf("%d pipes of %d pages, where %d are allowed", len(sizes), pages, limit)
	}
}
