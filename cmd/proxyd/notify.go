package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"example.org/socketproxy/internal/forward"
	"github.com/coreos/go-systemd/v22/daemon"
)

// statusInterval keeps busy proxies from flooding the service manager, which reads them all in one thread.
const statusInterval = time.Second

// reporter tells the service manager how the proxy is doing, by sd_notify(3).
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
		log.Warn(fmt.Sprintf("the watchdog is off: %v", err))
	}
	if interval > 0 {
		reports.Go(func() { r.feedWatchdog(interval, proxy.Done()) })
	}
}

// follow reports that the proxy accepts, then its status whenever that has changed, and its end. It returns when
// changes is closed, which is when the proxy has ended.
func (r *reporter) follow(changes <-chan *forward.Event) {
	_, status := r.status()
	r.send(daemon.SdNotifyReady + "\nSTATUS=" + status)
	pause := time.After(statusInterval)
	stopping := false
	for open := true; open; {
		select {
		case _, open = <-changes:
		case <-pause:
			pause = nil
		}
		state, now := r.status()
		switch {
		case !stopping && (!open || state == forward.StateExiting):
			stopping = true
			r.send(daemon.SdNotifyStopping + "\nSTATUS=" + now)
		case pause == nil && now != status:
			r.send("STATUS=" + now)
		default:
			continue
		}
		status = now
		pause = time.After(statusInterval)
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
// every loop of the proxy answers: a proxy that hangs is to be restarted.
func (r *reporter) feedWatchdog(allowed time.Duration, ended <-chan struct{}) {
	ticker := time.NewTicker(allowed / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ended:
			return
		case <-ticker.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), allowed/2)
		err := r.proxy.Alive(ctx)
		cancel()
		if err == nil {
			r.send(daemon.SdNotifyWatchdog)
			continue
		}
		select {
		case <-ended: // nobody is left to answer, and nobody is missed
		default:
			r.log.Error(fmt.Sprintf("not feeding the watchdog: %v", err))
		}
	}
}

func (r *reporter) send(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		r.log.Warn(fmt.Sprintf("cannot notify the service manager: %v", err))
	}
}
