//go:build race

package socketactivate

import "time"

// slowdown divides the numbers of what is done again and again.
const slowdown = 5

// drainTime is long enough for its last fifth, in which proxyd reads no more and only delivers, to suffice on a busy
// machine.
const drainTime = 5 * time.Second
