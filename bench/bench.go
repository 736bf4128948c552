package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// bench is a run, in the confined process.
type bench struct {
	options
	directory string
	proxyCPU  int
	fileLimit int
	origin    *origin
	ports     int   // given to proxies so far
	helpers   []int // processes of the present workload, beside proxy and origin
	disturbed int   // measurements that others on this machine disturbed
	results   results
}

// runBench measures everything and reports it. It fails if something could not be measured; a goal that was missed is a
// result.
func runBench(args []string) error {
	b := &bench{directory: os.Getenv(directoryVariable), results: results{}}
	var err error
	if b.options, err = parseOptions(args); err != nil {
		return err
	}
	if b.proxyCPU, err = strconv.Atoi(os.Getenv(proxyCPUVariable)); err != nil {
		return err
	}
	proxies, missing, err := findProxies(b.options)
	if err != nil {
		return err
	}
	if !haveBus() {
		missing = append(missing, "the workloads of the bus ("+busProgram+" is not installed)")
	}
	for _, m := range missing {
		fmt.Fprintf(os.Stderr, "left out: %s\n", m)
	}
	limit, err := raiseFileLimit()
	if err != nil {
		return err
	}
	b.fileLimit = int(limit)
	// Workers whose master was killed become this process' children, which can then wait for their end.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	if os.Getenv(namespaceVariable) != "" {
		if err := furnishNamespace(); err != nil {
			return err
		}
	}
	if err := os.Setenv(systemBus, noBus); err != nil {
		return err
	}
	if b.origin, err = startOrigin(b.directory); err != nil {
		return err
	}
	defer b.origin.stop()

	failures := b.runRounds(proxies)
	fmt.Fprintln(os.Stderr)
	r := report{b.workloads, proxies, b.results, b.rounds}
	r.write(os.Stdout)
	if b.save != "" {
		if err := r.save(b.save); err != nil {
			return err
		}
	}
	if b.disturbed > 0 {
		fmt.Fprintf(os.Stderr, "\n%d measurements were disturbed by other work on this machine\n", b.disturbed)
	}
	if failures > 0 {
		return fmt.Errorf("%d measurements failed", failures)
	}
	return nil
}

// runRounds interleaves the proxies, and lets another one begin in each round.
func (b *bench) runRounds(proxies []*proxy) (failures int) {
	for round := range b.rounds {
		for _, w := range b.workloads {
			if w.rounds > 0 && round >= w.rounds {
				continue
			}
			for k := range proxies {
				p := proxies[(round+k)%len(proxies)]
				if !w.takes(p) {
					continue
				}
				values, err := w.run(b, p)
				b.results.add(w, p, values)
				fmt.Fprintf(os.Stderr, "round %d  %-16s %-22s", round+1, w.name, p.name)
				if err != nil {
					failures++
					fmt.Fprintf(os.Stderr, "FAILED: %v\n", err)
					continue
				}
				for m, v := range values {
					fmt.Fprintf(os.Stderr, "  %s %s", formatFigure(v), w.metrics[m].unit)
				}
				fmt.Fprintln(os.Stderr)
			}
		}
	}
	return failures
}

// withInstance starts p with one of its commands, between a new address of a family and a service of the origin, and
// stops it when use is done.
func (b *bench) withInstance(p *proxy, command commandFunc, as *syscall.Credential, f family, s service,
	use func(*instance) error) (err error) {
	listen := b.listenAddress(f)
	args, err := command(b, listen, b.origin.addresses[f][s])
	if err != nil {
		return err
	}
	i, err := b.startInstance(p, args, listen, as)
	if err != nil {
		return err
	}
	defer func() {
		if stopped := i.stop(); err == nil {
			err = stopped
		}
	}()
	return i.explain(use(i))
}

// listenAddress gives a proxy a place to listen: a new one each time, so that nothing left over from the one before is in
// its way. Its port is below the ephemeral ones, which connections take.
func (b *bench) listenAddress(f family) string {
	b.ports++
	if f == overUnix {
		return filepath.Join(b.directory, fmt.Sprintf("proxy-%d.sock", b.ports))
	}
	return fmt.Sprintf("127.0.0.1:%d", 20000+b.ports)
}

// writeConfig writes a configuration file, and gives its path.
func (b *bench) writeConfig(name, text string) (string, error) {
	file := filepath.Join(b.directory, fmt.Sprintf("%s-%d.conf", name, b.ports))
	return file, os.WriteFile(file, []byte(text), 0o644)
}
