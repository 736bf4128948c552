package socketactivate

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

// pattern is an endless stream of bytes, always the same, in which no part is like another.
func pattern() io.Reader { return rand.NewChaCha8([32]byte{}) }

// sendPattern writes the first n bytes of the pattern.
func sendPattern(c net.Conn, n int64) error {
	// Neither end is shown for what it is, lest package net splices.
	sent, err := io.Copy(struct{ io.Writer }{c}, io.LimitReader(pattern(), n))
	if err != nil {
		return fmt.Errorf("after %d bytes sent: %w", sent, err)
	}
	return nil
}

// receivePattern wants the first n bytes of the pattern.
func receivePattern(c net.Conn, n int64) error {
	got := sha256.New()
	received, err := io.CopyN(got, c, n)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes received: %w", received, n, err)
	}
	if !bytes.Equal(got.Sum(nil), patternSum(n)) {
		return fmt.Errorf("%d bytes received, not those sent", n)
	}
	return nil
}

func patternSum(n int64) []byte {
	sum := sha256.New()
	_, _ = io.CopyN(sum, pattern(), n) // neither of the two can fail
	return sum.Sum(nil)
}

// exchange sends n bytes in both directions at once.
func exchange(t *testing.T, client, server net.Conn, n int64) {
	t.Helper()
	together(t, 4, func(i int) error {
		switch i {
		case 0:
			return sendPattern(client, n)
		case 1:
			return receivePattern(server, n)
		case 2:
			return sendPattern(server, n)
		default:
			return receivePattern(client, n)
		}
	})
}

// settles waits until a number is not 0 and has stopped changing.
func settles(t *testing.T, what string, number func() int) int {
	t.Helper()
	const quiet = 100 * time.Millisecond
	last, since := 0, time.Now()
	eventually(t, what, func() bool {
		if n := number(); n != last {
			last, since = n, time.Now()
		}
		return last != 0 && time.Since(since) > quiet
	})
	return last
}
