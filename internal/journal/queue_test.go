package journal

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
)

// slowLog is a log that writes a message whenever somebody reads.
type slowLog struct {
	*queue
	reader  chan struct{}
	written []string
}

func newSlowLog() *slowLog {
	s := &slowLog{reader: make(chan struct{})}
	s.queue = newQueue(func() sink { return s.write })
	return s
}

func (s *slowLog) write(text string, _ sdjournal.Priority, _ map[string]string) error {
	<-s.reader
	s.written = append(s.written, text)
	return nil
}

// log hands over messages, each of which must be taken at once.
func (s *slowLog) log(t *testing.T, messages ...string) {
	t.Helper()
	for _, text := range messages {
		if err := s.send(text, sdjournal.PriInfo, nil); err != nil {
			t.Error(err)
		}
	}
}

func (s *slowLog) expect(t *testing.T, want []string) {
	t.Helper()
	if !slices.Equal(s.written, want) {
		t.Errorf("%d messages written, want %d: %q", len(s.written), len(want), s.written)
	}
}

func numbered(n int) (messages []string) {
	for i := range n {
		messages = append(messages, fmt.Sprint(i))
	}
	return messages
}

func TestALogThatNobodyReadsHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlowLog()
		s.log(t, "being written")
		synctest.Wait()
		fit := numbered(queueRoom)
		s.log(t, fit...)
		s.log(t, "lost", "lost too", "and this")
		close(s.reader)
		s.flush()
		s.expect(t, slices.Concat([]string{"being written"}, fit, []string{"The log was too slow, messages lost: 3."}))
	})
}

func TestALogThatIsReadAgainTellsOfItsGapOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlowLog()
		fit := numbered(queueRoom + 1) // one is being written
		s.log(t, fit[0])
		synctest.Wait()
		s.log(t, fit[1:]...)
		s.log(t, "lost")
		for range len(fit) + 1 {
			s.reader <- struct{}{}
		}
		close(s.reader)
		s.log(t, "afterwards")
		s.flush()
		s.expect(t, slices.Concat(fit, []string{"The log was too slow, messages lost: 1.", "afterwards"}))
	})
}

func TestTheGapIsToldOfWhereItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlowLog()
		fit := numbered(queueRoom + 1)
		s.log(t, fit[0])
		synctest.Wait()
		s.log(t, fit[1:]...)
		s.log(t, "lost", "lost too")
		s.reader <- struct{}{}
		synctest.Wait()
		s.log(t, "behind the gap", "lost again")
		close(s.reader)
		s.flush()
		s.expect(t, slices.Concat(fit, []string{"The log was too slow, messages lost: 2.", "behind the gap",
			"The log was too slow, messages lost: 1."}))
	})
}

func TestAMessageGoesWhereTheLogWentWhenItWasLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlowLog()
		s.log(t, "one", "two")
		s.target = func() sink { return func(string, sdjournal.Priority, map[string]string) error { return nil } }
		s.log(t, "to nowhere")
		close(s.reader)
		s.flush()
		s.expect(t, []string{"one", "two"})
	})
}

func TestALogThatNobodyReadsDoesNotKeepTheProgramFromEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlowLog()
		s.log(t, "nobody reads this")
		before := time.Now()
		s.flush()
		if waited := time.Since(before); waited != flushTime {
			t.Errorf("waited %v for the log", waited)
		}
		close(s.reader) // no goroutine may be left
	})
}
