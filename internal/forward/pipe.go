package forward

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Sizes of pipes, in bytes. Splicing through less than pipeMin costs more than copying.
const (
	pipeLarge = 1 << 20
	pipeSmall = 256 << 10
	pipeMin   = 64 << 10
)

// pipeBudgetMax bounds what all pipes of this process can hold, so that clients who never read cannot pin more memory
// than that in them.
const pipeBudgetMax = 64 << 20

// pipeBudget is what pipes may still be made, over all loops.
type pipeBudget struct {
	left  atomic.Int64 // bytes
	total int64
	files atomic.Int64 // descriptors
}

// pipeFiles is how many of the descriptors of this process pipes may take: 160 pipes use the bytes up.
func pipeFiles(limit uint64) uint64 { return min(2*160, limit/8) }

// newPipeBudget stays below the kernel's limit for the pipes of an unprivileged user, fs.pipe-user-pages-soft of
// pipe(7), beyond which a new pipe gets two pages. It leaves a quarter to the user's other processes.
func newPipeBudget(files uint64) *pipeBudget {
	pages := int64(16384) // the kernel's default, for a sandbox that hides /proc/sys
	if text, err := os.ReadFile("/proc/sys/fs/pipe-user-pages-soft"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
			pages = n
		}
	}
	b := &pipeBudget{total: pipeBudgetMax}
	if pages > 0 { // 0: no limit
		b.total = min(b.total, pages*int64(os.Getpagesize())/4*3)
	}
	b.left.Store(b.total)
	b.files.Store(int64(files))
	return b
}

// take reserves room for one pipe and returns its size: large while there is plenty, then small, then 0.
func (b *pipeBudget) take() int {
	size := int64(pipeLarge)
	if b.left.Load() < b.total/2 {
		size = pipeSmall
	}
	files, left := b.files.Add(-2), b.left.Add(-size)
	if files < 0 || left < 0 {
		b.give(int(size))
		return 0
	}
	return int(size)
}

func (b *pipeBudget) give(size int) {
	b.files.Add(2)
	b.left.Add(int64(size))
}

// pipe is a pair of descriptors through which splice(2) moves bytes.
type pipe struct {
	r, w int32
	size int // bytes it can hold
	cost int // bytes taken from the budget
}

// pipePool lends pipes to the relays of one loop. A pipe is borrowed for as long as it holds bytes, and no longer.
type pipePool struct {
	budget *pipeBudget
	free   []pipe
	spare  int           // the fewest free pipes since the last trim: these were not needed
	retry  time.Duration // loop time before which no pipe is made, after one could not be had
}

const (
	pipeRetryTime = 100 * time.Millisecond
	pipeTrimTime  = 5 * time.Second
)

// get returns an empty pipe, or false where copying must do.
func (pp *pipePool) get(now time.Duration) (pipe, bool) {
	if n := len(pp.free); n > 0 {
		p := pp.free[n-1]
		pp.free = pp.free[:n-1]
		pp.spare = min(pp.spare, n-1)
		return p, true
	}
	if now < pp.retry {
		return pipe{}, false
	}
	p := pipe{cost: pp.budget.take()}
	if p.cost == 0 {
		return pipe{}, false
	}
	var errno sysErr
	if p.r, p.w, errno = newPipe(); errno == 0 {
		if p.size = resizePipe(p.w, p.cost); p.size >= pipeMin {
			return p, true
		}
		closeFD(p.r)
		closeFD(p.w)
	}
	pp.budget.give(p.cost)
	pp.retry = now + pipeRetryTime
	return pipe{}, false
}

// put takes back an empty pipe.
func (pp *pipePool) put(p pipe) { pp.free = append(pp.free, p) }

// discard ends a pipe that may still hold bytes: the next borrower would send them to another peer.
func (pp *pipePool) discard(p pipe) {
	closeFD(p.r)
	closeFD(p.w)
	pp.budget.give(p.cost)
}

// trim closes the pipes that were not needed since the last trim.
func (pp *pipePool) trim() {
	for range pp.spare {
		n := len(pp.free) - 1
		pp.discard(pp.free[n])
		pp.free = pp.free[:n]
	}
	pp.spare = len(pp.free)
}
