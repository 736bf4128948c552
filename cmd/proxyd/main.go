// Command proxyd forwards the clients of listening sockets, its own or systemd's, to one backend.
//
//	systemd-socket-activate -l 8080 proxyd 127.0.0.1:3000
//	proxyd --listen=8080 127.0.0.1:3000
//
// It takes the command line of systemd-socket-proxyd(8) and gives its messages for it. This package reads the options,
// keeps the order of the start, and stands between the proxy and the world: signals, the service manager, the log. What
// happens to a byte is decided in internal/forward.
package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/journal"
	"example.org/socketproxy/internal/sd"
	"example.org/socketproxy/internal/timespan"
	"example.org/socketproxy/internal/version"
	"golang.org/x/sys/unix"
)

func main() {
	// Go ends a program that writes to a stdout or stderr without a reader, and takes a signal for each splice(2) to a
	// peer that has gone; ignored in the kernel, both are plain EPIPE.
	signal.Ignore(unix.SIGPIPE)

	// SIGHUP keeps its default, as in systemd-socket-proxyd: there is no configuration to read again, a proxyd on a
	// terminal ends with it, and nohup(1) is obeyed.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)

	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, signals))
}

// run is the whole program; it returns the exit status, 0 or 1.
func run(args []string, stdout, stderr io.Writer, signals <-chan os.Signal) int {
	logs := journal.New(stderr)
	defer logs.Close()
	log := logs.Logger()

	opts, err := parseOptions(args)
	switch {
	case errors.Is(err, errHelp):
		_, err = io.WriteString(stdout, help)
	case errors.Is(err, errVersion):
		_, err = fmt.Fprintln(stdout, "proxyd", version.String())
	case err == nil && !opts.check:
		logs.SetLevel(opts.logLevel)
		err = serve(opts, logs, signals)
	}
	if err != nil {
		log.Error(err.Error())
		return 1
	}
	return 0
}

// serve runs the proxy from its sockets to its end.
func serve(opts *options, logs *journal.Log, signals <-chan os.Signal) error {
	log := logs.Logger()
	files, err := sd.PassedFiles()
	if err != nil {
		return startError(fmt.Sprintf("Failed to receive sockets from parent. %v.", err))
	}
	predecessor, files := takeStored(files, log)
	listeners, err := openListeners(files, opts.listen, predecessor)
	if err != nil {
		return err
	}
	config := opts.config(listeners, log)
	config.Predecessor = predecessor
	proxy, err := forward.Start(config)
	if err != nil {
		closeAll(listeners)
		return err
	}
	logStart(log, listeners, opts.target)
	logTakeover(log, proxy.Takeover())

	var reports sync.WaitGroup
	startReports(&reports, proxy, log)
	stopControl := startControl(opts, proxy, logs)
	stopOnSignals(proxy, signals, opts, log)
	finish(signals, func() { stopControl(); reports.Wait() })
	return nil
}

func logStart(log *slog.Logger, listeners []*forward.Listener, target forward.Target) {
	for _, l := range listeners {
		log.Info(fmt.Sprintf("Forwarding the clients of %s to %s.", l.Address(), target),
			"listener", l.Address(), "backend", target.String())
	}
	if warning := hiddenTarget(target.String(), sd.Unit()); warning != "" {
		log.Warn(warning, "backend", target.String())
	}
}

// stopOnSignals returns when the proxy has ended, by itself or because the first signal asked it to; the second one
// does not wait for the connections. Those of a restart go to the next process.
func stopOnSignals(proxy *forward.Proxy, signals <-chan os.Signal, opts *options, log *slog.Logger) {
	select {
	case <-proxy.Done():
		return
	case sig := <-signals:
		if opts.handOver && handOver(proxy, log) {
			return
		}
		what := fmt.Sprintf("Received %s, stopping", signalName(sig))
		if n := proxy.NumConnections(); n > 0 && opts.drainTimeout > 0 {
			what += fmt.Sprintf("; %s may take %s to finish", countConnections(n), timespan.Format(opts.drainTimeout))
		}
		log.Info(what + ".")
		_ = proxy.Exit(opts.drainTimeout) // fails only where it is exiting already
	}
	select {
	case <-proxy.Done():
	case sig := <-signals:
		log.Info(fmt.Sprintf("Received %s, cutting %s.", signalName(sig), countConnections(proxy.NumConnections())))
		signal.Reset(unix.SIGTERM, unix.SIGINT) // a third one ends the process, whatever it is doing
		proxy.Kill()
		<-proxy.Done()
	}
}

// finishTime bounds what is done once the proxy has ended, all of which has bounds of its own.
const finishTime = 2 * time.Second

// finish does what is left, and leaves it when a signal comes: nothing outside this process keeps it from ending.
func finish(signals <-chan os.Signal, rest func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		rest()
	}()
	select {
	case <-done:
	case <-signals:
	case <-time.After(finishTime):
	}
}

func signalName(sig os.Signal) string { return unix.SignalName(sig.(unix.Signal)) }
