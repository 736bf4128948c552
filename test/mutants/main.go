// Command mutants changes the program in small ways, one at a time, and looks whether a test fails: a change that no test notices is a
// promise that none holds. make mutants runs it.
//
//	go run ./test/mutants -n 50 -seed 1 -pkg internal/forward
//
// The sample depends on the seed and on the source alone. Changes that make no difference are listed in equivalent.txt, with the reason.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

const module = "example.org/socketproxy/"

// testers are the packages whose tests are to notice a change in a package, beside its own: those that run the program.
var testers = map[string][]string{
	"internal/bus":        {"test/bus"},
	"internal/bus/api":    {"internal/bus", "internal/bus/client"},
	"internal/bus/wire":   {"internal/bus", "internal/bus/client"},
	"internal/bus/client": {"cmd/proxyctl"},
	"internal/sd":         {"cmd/proxyd", "test/socketactivate"},
	"internal/journal":    {"cmd/proxyd"},
	"internal/setup":      {"cmd/proxyctl"},
	"cmd/proxyd":          {"test/socketactivate", "test/bus"},
	"cmd/proxyd_exporter": {"test/bus"},
}

// defaultPackages are those that a sample is of.
var defaultPackages = []string{"internal/forward", "internal/bus", "internal/bus/wire", "internal/bus/client", "internal/sd", "internal/journal", "cmd/proxyd", "cmd/proxyctl"}

// testTime is after how long a test that hangs is a test that fails.
const testTime = 5 * time.Minute

func main() {
	n := flag.Int("n", 50, "how many changes to try, over all packages")
	seed := flag.Uint64("seed", 0, "which ones; 0 for others each time")
	packages := flag.String("pkg", strings.Join(defaultPackages, ","), "the packages to change, separated by commas")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	if err := run(ctx, *n, *seed, strings.Split(*packages, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, n int, seed uint64, packages []string) error {
	equivalent, err := readEquivalent("test/mutants/equivalent.txt")
	if err != nil {
		return err
	}
	all, err := mutationsOf(packages)
	if err != nil {
		return err
	}
	fmt.Printf("%d changes are possible in %s; seed %d\n", len(all), strings.Join(packages, ", "), seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tried, killed, excused := 0, 0, 0
	for _, m := range all {
		if tried == n || ctx.Err() != nil {
			break
		}
		if equivalent[m.key()] {
			excused++
			continue
		}
		verdict, err := m.try(ctx, dir)
		switch {
		case ctx.Err() != nil:
			continue // and say what was found until then
		case err != nil:
			return err
		case verdict == doesNotCompile:
			continue
		case verdict == noticed:
			killed++
		default:
			fmt.Printf("survives: %s\n", m)
		}
		tried++
	}
	if tried == 0 {
		return errors.New("nothing was tried")
	}
	fmt.Printf("%d of %d changes were noticed, %d %%; %d more make no difference\n", killed, tried, 100*killed/tried, excused)
	return ctx.Err()
}

// readEquivalent reads the changes that make no difference: a line each, as they are printed, but without the number of the line.
func readEquivalent(file string) (map[string]bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	known := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if line := strings.TrimSpace(lines.Text()); line != "" && !strings.HasPrefix(line, "#") {
			known[line] = true
		}
	}
	return known, nil
}

type verdict int

const (
	unnoticed verdict = iota
	noticed
	doesNotCompile
)

// try runs the tests against a changed program, which stands in an overlay: the source stays as it is.
func (m *mutation) try(ctx context.Context, dir string) (verdict, error) {
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(changed, m.source(), 0o600); err != nil {
		return 0, err
	}
	original, err := filepath.Abs(m.file)
	if err != nil {
		return 0, err
	}
	text, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		return 0, err
	}
	goTool := func(args ...string) error {
		within, cancel := context.WithTimeout(ctx, testTime+time.Minute)
		defer cancel()
		cmd := exec.CommandContext(within, "go", args...)
		cmd.Env = append(os.Environ(), "GOFLAGS=-overlay="+overlay) // for the programs that the tests build, too
		cmd.WaitDelay = time.Second
		return cmd.Run()
	}
	if goTool("vet", "-printf=false", module+m.pkg) != nil {
		return doesNotCompile, nil // or a tool that runs before the tests sees it
	}
	for _, pkg := range append([]string{m.pkg}, testers[m.pkg]...) {
		if goTool("test", "-failfast", "-count=1", fmt.Sprint("-timeout=", testTime), module+pkg) != nil {
			return noticed, nil
		}
	}
	return unnoticed, nil
}
