package main

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

func TestALogThatNobodyReadsHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var written []string
		reader := make(chan struct{})
		q := newLogQueue(func(text string, _ journal.Priority, _ map[string]string) error {
			<-reader
			written = append(written, text)
			return nil
		})
		send := func(text string) {
			if err := q.send(text, journal.PriInfo, nil); err != nil {
				t.Error(err)
			}
		}
		send("being written")
		synctest.Wait()
		const lost = 3
		for i := range logQueueRoom + lost {
			send(fmt.Sprint(i))
		}
		close(reader)
		q.flush()

		want := []string{"being written", fmt.Sprintf("The log was too slow: %d messages were lost.", lost)}
		for i := range logQueueRoom {
			want = append(want, fmt.Sprint(i))
		}
		if !slices.Equal(written, want) {
			t.Errorf("%d messages written, want %d: %q", len(written), len(want), written)
		}
	})
}

func TestALogThatNobodyReadsDoesNotKeepTheProgramFromEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := make(chan struct{})
		q := newLogQueue(func(string, journal.Priority, map[string]string) error { <-reader; return nil })
		if err := q.send("nobody reads this", journal.PriInfo, nil); err != nil {
			t.Error(err)
		}
		before := time.Now()
		q.flush()
		if waited := time.Since(before); waited != logFlushTime {
			t.Errorf("waited %v for the log", waited)
		}
		close(reader) // no goroutine may be left
	})
}
