package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A footprint is what processes hold in user memory and in the kernel's tables.
type footprint struct {
	resident  int64 // bytes, with what is shared and with the program's text
	anonymous int64 // bytes of their own: heap and stacks
	files     int   // file descriptors
	pipes     int   // those of them that are ends of pipes
	threads   int
}

// footprintOf adds up processes. Memory is read from smaps_rollup, which counts the pages; the cheaper figures in status
// are estimates that may be off by hundreds of kilobytes.
func footprintOf(pids []int) (footprint, error) {
	var sum footprint
	for _, pid := range pids {
		directory := fmt.Sprintf("/proc/%d", pid)
		rollup, err := os.ReadFile(filepath.Join(directory, "smaps_rollup"))
		if err != nil {
			return sum, err
		}
		resident, err := rollupField(string(rollup), "Rss")
		if err != nil {
			return sum, fmt.Errorf("process %d: %w", pid, err)
		}
		anonymous, err := rollupField(string(rollup), "Anonymous")
		if err != nil {
			return sum, fmt.Errorf("process %d: %w", pid, err)
		}
		sum.resident += resident
		sum.anonymous += anonymous

		threads, err := os.ReadDir(filepath.Join(directory, "task"))
		if err != nil {
			return sum, err
		}
		sum.threads += len(threads)
		files, err := os.ReadDir(filepath.Join(directory, "fd"))
		if err != nil {
			return sum, err
		}
		sum.files += len(files)
		for _, file := range files {
			target, err := os.Readlink(filepath.Join(directory, "fd", file.Name()))
			if err == nil && strings.HasPrefix(target, "pipe:") {
				sum.pipes++
			}
		}
	}
	return sum, nil
}

// rollupField gives a field of smaps_rollup in bytes.
func rollupField(rollup, name string) (int64, error) {
	for line := range strings.Lines(rollup) {
		value, found := strings.CutPrefix(line, name+":")
		if !found {
			continue
		}
		kilobytes, found := strings.CutSuffix(strings.TrimSpace(value), " kB")
		if !found {
			return 0, fmt.Errorf("field %s of smaps_rollup is not in kB", name)
		}
		n, err := strconv.ParseInt(kilobytes, 10, 64)
		return n * 1024, err
	}
	return 0, fmt.Errorf("smaps_rollup has no field %s", name)
}
