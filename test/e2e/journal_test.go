package e2e

import (
	"bufio"
	"encoding/json"
	"strings"
	"testing"
)

// journalCursor is the present end of the journal.
func (m *machine) journalCursor(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(m.run(t, "journalctl", "--lines=0", "--show-cursor", "--quiet")) {
		if cursor, ok := strings.CutPrefix(line, "-- cursor: "); ok {
			return strings.TrimSpace(cursor)
		}
	}
	t.Fatal("the journal has no end")
	return ""
}

func (m *machine) journalAfter(t *testing.T, cursor string) string {
	t.Helper()
	return m.run(t, "journalctl", "--no-pager", "--quiet", "--after-cursor="+cursor)
}

// entry waits for an entry of the journal that matches, as journalctl(1) takes matches, and returns its fields.
func (m *machine) entry(t *testing.T, matches ...string) (fields map[string]string) {
	t.Helper()
	follow := m.command(append([]string{"journalctl", "--output=json", "--follow", "--lines=all"}, matches...)...)
	output, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	finished := giveUp(follow)
	defer func() {
		finished()
		killGroup(follow)
		_ = follow.Wait()
	}()
	lines := bufio.NewScanner(output)
	if !lines.Scan() {
		t.Fatalf("waited %v in vain for %q in the journal", patience, matches)
	}
	if err := json.Unmarshal(lines.Bytes(), &fields); err != nil {
		t.Fatal(err)
	}
	return fields
}
