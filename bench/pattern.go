package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
)

// A bulk stream repeats a pattern of random bytes whose length is a prime: a byte that is lost, doubled or out of place
// anywhere shows in every byte after it.
const (
	patternLength = 65521
	bulkChunk     = 256 << 10
)

// pattern holds bulkChunk bytes from any offset on.
var pattern = makePattern()

func makePattern() []byte {
	p := make([]byte, patternLength, patternLength+bulkChunk)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(random.Uint32())
	}
	for len(p) < cap(p) {
		p = append(p, p[:min(len(p), cap(p)-len(p))]...)
	}
	return p
}

// patternAt gives the next bulkChunk bytes of a stream at offset.
func patternAt(offset int64) []byte {
	start := offset % patternLength
	return pattern[start : start+bulkChunk]
}

// checkPattern holds data, received at offset, against the pattern. It takes up to bulkChunk bytes.
func checkPattern(data []byte, offset int64) error {
	if !bytes.Equal(data, patternAt(offset)[:len(data)]) {
		return fmt.Errorf("wrong bytes within %d bytes after byte %d of the stream", len(data), offset)
	}
	return nil
}
