package forward

// heldBytes is what a relay has taken from its source and not delivered: in a pipe, or in memory.
type heldBytes struct {
	pipe     pipe
	inPipe   int
	memory   []byte
	overhead int // leading bytes that are not the client's: the PROXY header
}

// heldStore has the bytes that the relays of a loop hold, for few of them hold any. An index of 0 stands for nothing.
type heldStore struct {
	all  []heldBytes // [0] is not used
	free []uint32
}

func newHeldStore() heldStore { return heldStore{all: make([]heldBytes, 1)} }

// add keeps bytes and returns their index.
func (s *heldStore) add(h heldBytes) uint32 {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		s.all[i] = h
		return i
	}
	s.all = append(s.all, h)
	return uint32(len(s.all) - 1)
}

// at is valid until the next add.
func (s *heldStore) at(i uint32) *heldBytes { return &s.all[i] }

func (s *heldStore) release(i uint32) {
	s.all[i] = heldBytes{}
	s.free = append(s.free, i)
}

// used is how many entries are in use.
func (s *heldStore) used() int { return len(s.all) - 1 - len(s.free) }
