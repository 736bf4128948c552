package streamtest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// Pattern is an endless stream of bytes, always the same, in which no part is like another.
func Pattern() io.Reader { return rand.NewChaCha8([32]byte{}) }

// SendPattern writes the first n bytes of the pattern.
func SendPattern(c net.Conn, n int64) error {
	// Neither end is shown for what it is, lest package net splices.
	sent, err := io.Copy(struct{ io.Writer }{c}, io.LimitReader(Pattern(), n))
	if err != nil {
		return fmt.Errorf("after %d bytes sent: %w", sent, err)
	}
	return nil
}

// ReceivePattern wants the first n bytes of the pattern.
func ReceivePattern(c net.Conn, n int64) error {
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
	_, _ = io.CopyN(sum, Pattern(), n) // neither of the two can fail
	return sum.Sum(nil)
}

// Exchange sends n bytes in both directions at once.
func Exchange(t testing.TB, client, server net.Conn, n int64) {
	t.Helper()
	Together(t, 4, func(i int) error {
		switch i {
		case 0:
			return SendPattern(client, n)
		case 1:
			return ReceivePattern(server, n)
		case 2:
			return SendPattern(server, n)
		default:
			return ReceivePattern(client, n)
		}
	})
}
