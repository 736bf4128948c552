package main

import (
	"fmt"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/timespan"
	"github.com/rivo/uniseg"
)

// formatBytes prints a number of bytes as systemd does, in units of 1024: "512B", "1.5K", "2.0G".
func formatBytes(n uint64) string {
	const units = "BKMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	unit, rest := 0, uint64(0)
	for n >= 1024 {
		n, rest, unit = n/1024, n%1024, unit+1
	}
	return fmt.Sprintf("%d.%d%c", n, rest*10/1024, units[unit]) // cut off, not rounded
}

// formatSpan prints a span for people: not a long one to the second, nor a short one to the microsecond.
func formatSpan(span time.Duration) string {
	switch {
	case span >= 24*time.Hour:
		return timespan.FormatAccuracy(span, time.Hour)
	case span >= 5*time.Hour:
		return timespan.FormatAccuracy(span, time.Minute)
	case span >= time.Minute:
		return timespan.FormatAccuracy(span, time.Second)
	}
	return timespan.FormatAccuracy(span, time.Millisecond)
}

// formatShort prints a span that is short, to three digits or so.
func formatShort(span time.Duration) string {
	if span < time.Millisecond {
		return timespan.Format(span)
	}
	return formatSpan(span)
}

// formatAge is formatSpan for what goes on: to the second.
func formatAge(span time.Duration) string {
	if span < time.Second {
		return timespan.FormatAccuracy(span, time.Millisecond)
	}
	return formatSpan(span.Truncate(time.Second))
}

func formatTime(t time.Time) string { return t.Format("Mon 2006-01-02 15:04:05 MST") }

// ago prints a point in time as systemctl(1) does: "Sun 2026-11-22 23:54:05 UTC; 5min ago".
func (c *ctl) ago(usec uint64) string {
	t := api.Time(usec)
	return fmt.Sprintf("%s; %s ago", formatTime(t), formatAge(max(0, c.now().Sub(t))))
}

// count prints a number of things: "1 connection", "3 connections".
func count[N int | uint32 | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// width is how many columns a text takes: a character may take two, and a combining one takes none.
func width(text string) int {
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return uniseg.StringWidth(text)
		}
	}
	return len(text) // a hundred times faster, which a list of 10,000 connections shows
}

// spanJSON is a span in microseconds, nil for infinity.
func spanJSON(span time.Duration) any {
	if span == timespan.Infinity {
		return nil
	}
	return span.Microseconds()
}
