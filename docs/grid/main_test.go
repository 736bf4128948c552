package main

import (
	"os"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestComparisonPictureIsOfItsTable(t *testing.T) {
	table, err := os.ReadFile("../comparison.md")
	testenv.Must(t, err)
	picture, err := os.ReadFile("../comparison.svg")
	testenv.Must(t, err)
	if string(picture) != draw(string(table)) {
		t.Error("go run ./docs/grid <docs/comparison.md >docs/comparison.svg draws another one")
	}
	proxies, groups := parse(string(table))
	if len(proxies) != 5 || len(groups) < 10 {
		t.Errorf("%d proxies, %d groups", len(proxies), len(groups))
	}
	for _, group := range groups {
		for _, promise := range group.promises {
			for _, verdict := range promise[1:] {
				if fills[verdict] == "" {
					t.Errorf("%q has the verdict %q", promise[0], verdict)
				}
			}
		}
	}
}
