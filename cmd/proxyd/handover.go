package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/sd"
	"example.org/socketproxy/internal/timespan"
)

// askStopTime bounds the question whether a stop is part of a restart. Meanwhile everything is forwarded, so that a long wait costs
// nothing, and a short one costs connections where systemd is busy: 2 s were too short on a machine that reloads 30 units at once.
const askStopTime = 5 * time.Second

// handOver leaves all connections to the next process of this unit, where one starts at once, and reports whether it did.
// It does nothing for a true stop. Where it cannot hand over, it logs why: the users whose connections end will ask.
func handOver(proxy *forward.Proxy, log *slog.Logger) bool {
	unit := sd.Unit()
	if unit == "" || os.Getenv("NOTIFY_SOCKET") == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), askStopTime)
	defer cancel()
	stop, err := client.AskStop(ctx, unit)
	connections := countConnections(proxy.NumConnections())
	switch {
	case err != nil:
		if proxy.NumConnections() > 0 {
			log.Warn(fmt.Sprintf("Cannot ask whether this is a restart, over which %s could be kept: %v.", connections, err))
		}
		return false
	case !stop.Restart:
		return false
	case stop.Store < storeMin:
		if proxy.NumConnections() > 0 {
			log.Warn(fmt.Sprintf("Cannot keep %s over the restart: the unit has FileDescriptorStoreMax=%d, and %d is the least that it needs.",
				connections, stop.Store, storeMin))
		}
		return false
	}
	h, err := proxy.HandOver()
	if err != nil {
		return false // it is ending, and its connections with it
	}
	kept, err := sd.Store(h.State, h.Files, stop.Store)
	var short *sd.ShortError
	switch {
	case errors.As(err, &short):
		log.Error(fmt.Sprintf("Restarting, handing only %d of %d descriptors over: %v. The connections of the others are reset.", kept, len(h.Files), err))
	case err != nil && kept == 0:
		log.Error(fmt.Sprintf("Cannot hand anything over to the next process; %s lost: %v.", countConnections(h.Connections()), err))
	case err != nil:
		log.Warn(fmt.Sprintf("Restarting, handing %s over; systemd may not have them: %v.", countConnections(h.Connections()), err))
	default:
		log.Info(fmt.Sprintf("Restarting, handing %s over.", countConnections(h.Connections())))
	}
	if kept < len(h.Files) {
		h.Reset(kept)
	}
	return true // the end of the process closes the rest faster than it would
}

// storeMin is one entry for the state, and one for the descriptors.
const storeMin = 2

// takeStored returns what the process before this one has left, and the files that do not belong to it.
func takeStored(files []*os.File, log *slog.Logger) (*forward.Handover, []*os.File) {
	stored, others, err := sd.TakeStored(files)
	if stored == nil {
		return nil, others
	}
	var h *forward.Handover
	if err == nil {
		if h, err = forward.ReadHandover(stored.State, stored.Files); err == nil {
			h.Commit = stored.Commit
			return h, others
		}
	}
	log.Error(fmt.Sprintf("Cannot take over the connections of the process before this one, which are reset: %v.", err))
	(&forward.Handover{Files: stored.Files}).Reset(0)
	if err := stored.Commit(); err != nil {
		log.Error(fmt.Sprintf("Cannot clear the file descriptor store of the unit: %v.", err))
	}
	return nil, others
}

func logTakeover(log *slog.Logger, t forward.Takeover) {
	if t.Connections == 0 && t.Lost == 0 {
		return
	}
	text := fmt.Sprintf("Took over %s from the process before this one, after a pause of %s.",
		countConnections(t.Connections), timespan.FormatAccuracy(t.Pause, time.Millisecond))
	if t.Lost > 0 {
		text += fmt.Sprintf(" Reset, because something of them was missing: %s.", countConnections(t.Lost))
	}
	log.Info(text, "connections", t.Connections, "lost", t.Lost)
}
