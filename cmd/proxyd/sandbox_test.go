package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestADirectoryThatASandboxMasksIsHidden(t *testing.T) {
	masked, open := filepath.Join(t.TempDir(), "masked"), t.TempDir()
	if err := os.Mkdir(masked, 0); err != nil { // what ProtectHome= shows of /root, /home and /run/user
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		masked: true, filepath.Join(masked, "alice"): true, open: false, filepath.Join(open, "nothing"): true,
	} {
		if got := isHidden(path); got != want {
			t.Errorf("isHidden(%s) = %v, want %v", path, got, want)
		}
	}
}
