package man_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link = regexp.MustCompile(`\]\(([^)#]+)`)
	file = regexp.MustCompile("`((?:internal|cmd|units|dbus-policy|bench|test)/[A-Za-z0-9_.@/-]+)`")
)

func TestDocumentsNameFilesThatExist(t *testing.T) {
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../*.md")
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, document := range append(documents, more...) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		var paths []string
		for _, match := range link.FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(match[1], "://") {
				paths = append(paths, filepath.Join(filepath.Dir(document), match[1]))
			}
		}
		for _, match := range file.FindAllStringSubmatch(string(text), -1) {
			paths = append(paths, filepath.Join("..", match[1]))
		}
		for _, path := range paths {
			named++
			if found, _ := filepath.Glob(path); found == nil {
				t.Errorf("%s names %s, which does not exist", document, path)
			}
		}
	}
	if named < 30 {
		t.Errorf("only %d files are named: are they found?", named)
	}
}

func TestREADMEIsReadInOneSitting(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(text), "\n"); lines > 150 {
		t.Errorf("README.md has %d lines, and more than 150 belong into docs/", lines)
	}
}
