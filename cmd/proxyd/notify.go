package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/sd"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// statusInterval keeps busy proxies from flooding the service manager, which reads them all in one thread.
const statusInterval = time.Second

// notifyAgain is how soon a state is sent again for which the service manager had no room.
const notifyAgain = 100 * time.Millisecond

// reporter reports to the service manager how the proxy is doing, by sd_notify(3).
type reporter struct {
	proxy reported
	log   *slog.Logger
}

// reported is what there is to know of a forward.Proxy.
type reported interface {
	State() forward.State
	NumConnections() int
	ConnectionsMax() uint32
	Alive(context.Context) error
}

// startReports reports in the background until the proxy has ended, where a service manager asks for it.
func startReports(reports *sync.WaitGroup, proxy *forward.Proxy, log *slog.Logger) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	r := reporter{proxy, log}
	changes := proxy.Subscribe(16, forward.EventCountChanged, forward.EventStateChanged)
	reports.Go(func() { r.follow(changes.C) })

	interval, err := daemon.SdWatchdogEnabled(true)
	if err != nil {
		log.Warn(fmt.Sprintf("The watchdog is off: %v.", err))
	}
	if interval > 0 {
		reports.Go(func() { r.feedWatchdog(interval, proxy.Done()) })
	}
}

// follow reports that the proxy accepts, then its status whenever that has changed, and its end. It returns when
// changes is closed, which is when the proxy has ended. What the service manager had no room for is sent again: the
// readiness until it has arrived, the end as long as there is time.
func (r *reporter) follow(changes <-chan *forward.Event) {
	states := daemon.SdNotifyReady + "\n" // to be sent with the next status
	sent := ""                            // the last status
	stopping := false
	var pause <-chan time.Time // nil: it may be sent now
	report := func() {
		_, status := r.status()
		if states == "" && status == sent {
			return
		}
		if r.send(states + "STATUS=" + status) {
			states, sent = "", status
			pause = time.After(statusInterval)
		} else {
			pause = time.After(notifyAgain)
		}
	}
	for open := true; open; {
		if pause == nil {
			report()
		}
		select {
		case _, open = <-changes:
		case <-pause:
			pause = nil
		}
		if state, _ := r.status(); !stopping && (!open || state == forward.StateExiting) {
			stopping, pause = true, nil
			states += daemon.SdNotifyStopping + "\n"
		}
	}
	if states != "" {
		report()
	}
}

// status is of one state, which may change at any moment.
func (r *reporter) status() (state forward.State, text string) {
	state = r.proxy.State()
	return state, statusText(state, r.proxy.NumConnections(), r.proxy.ConnectionsMax())
}

// statusText is what systemctl status shows as the service's own words.
func statusText(state forward.State, connections int, limit uint32) string {
	switch state {
	case forward.StateDraining:
		return fmt.Sprintf("Draining, %s left.", countConnections(connections))
	case forward.StateDrained:
		return "Drained."
	case forward.StateExiting:
		return fmt.Sprintf("Stopping, %s left.", countConnections(connections))
	}
	switch connections {
	case 0:
		return "No connections."
	case 1:
		return "1 connection."
	}
	return fmt.Sprintf("%d connections, limit %d.", connections, limit)
}

func countConnections(n int) string {
	switch n {
	case 0:
		return "no connections"
	case 1:
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// feedWatchdog pings the service manager twice in the time it allows, as sd_watchdog_enabled(3) wants it, but only while
// every loop of the proxy answers: a proxy that hangs is to be restarted. A ping for which there was no room is sent again
// soon.
func (r *reporter) feedWatchdog(allowed time.Duration, ended <-chan struct{}) {
	timer := time.NewTimer(allowed / 2)
	defer timer.Stop()
	for {
		select {
		case <-ended:
			return
		case <-timer.C:
		}
		next := allowed / 2
		ctx, cancel := context.WithTimeout(context.Background(), allowed/2)
		err := r.proxy.Alive(ctx)
		cancel()
		switch {
		case err == nil:
			if !r.send(daemon.SdNotifyWatchdog) {
				next = allowed / 20
			}
		case isClosed(ended): // no loop is left to answer, and none is missed
		default:
			r.log.Error(fmt.Sprintf("The watchdog gets no ping: %v.", err))
		}
		timer.Reset(next)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// send reports whether the service manager had room for it. Any other error is one that trying again would not heal.
func (r *reporter) send(state string) bool {
	err := sd.Notify(state)
	if err != nil && !notRead(err) {
		r.log.Warn(fmt.Sprintf("Cannot notify the service manager: %v.", err))
	}
	return !notRead(err)
}

// notRead reports whether an error of sd.Notify is that the service manager reads too slowly.
func notRead(err error) bool { return errors.Is(err, unix.EAGAIN) }
