package forward

// The scheduler of the relays. A direction copies through the loop's buffer until one read fills it; from then on it is a stream
// and splices, until a splice brings no more than a trickle. A loop moves bytes for one turn, turnBytes, before it looks for
// events again. A direction that the end of the turn stops is queued, and the first in that queue goes on, turn by
// turn, until it has used its slice, streamBytes; then it goes to the end of the queue. A direction that copies may move one
// bufferful even after the turn, so that a short message never waits for streams.
const (
	// turnBytes is how many bytes the streams of a loop may move before it looks for events again: a millisecond of work,
	// for which a client with a short message waits.
	turnBytes = 4 << 20
	// streamBytes is how many bytes one stream may move before another has its turn. Meanwhile the bytes of the others
	// gather; to change streams at every turn costs half as much CPU time again.
	streamBytes = 8 << 20
)

// runQueue has the relays that wait for their turn, not for a socket.
type runQueue struct {
	waiting []ref
	turn    int // bytes that streams may still move before the next look for events
	slice   int // bytes that the first one may still move before it goes to the end
}

// queue has the relay go on after the other events.
func (l *loop) queue(c *conn, from side) {
	if r := &c.relay[from]; !r.queued {
		r.queued = true
		l.runs.waiting = append(l.runs.waiting, c.ref(from))
	}
}

// resumeRelays goes on with the relays that wait for their turn. The first of them keeps its place until it has moved
// streamBytes, over as many turns as that takes.
func (l *loop) resumeRelays() {
	q := &l.runs
	for q.turn > 0 && len(q.waiting) > 0 {
		head, before := q.waiting[0], q.turn
		c := l.lookup(head)
		more := c != nil && l.pump(c, head.side)
		q.slice -= before - q.turn
		if more && q.slice > 0 {
			return
		}
		q.slice = streamBytes
		q.waiting = q.waiting[:copy(q.waiting, q.waiting[1:])]
		if more {
			q.waiting = append(q.waiting, head)
		} else if c != nil {
			c.relay[head.side].queued = false
		}
	}
}
