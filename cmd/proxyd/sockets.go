package main

import (
	"errors"
	"fmt"

	"example.org/socketproxy/internal/forward"
)

// openListeners takes the sockets that were passed in and opens the given addresses beside them, all or none.
func openListeners(addresses []forward.ListenAddress) (listeners []*forward.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(listeners)
		}
	}()
	files, err := passedFiles()
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		listener, err := forward.AdoptListener(file)
		if errors.Is(err, forward.ErrNotStream) {
			return listeners, startError(fmt.Sprintf(
				"Passed in socket is not a stream socket. It is file descriptor %d, %q.", file.Fd(), file.Name()))
		}
		if err != nil {
			return listeners, fmt.Errorf("cannot take a socket passed in: %w", err)
		}
		listeners = append(listeners, listener)
	}
	for _, address := range addresses {
		listener, err := address.Listen()
		if err != nil {
			return listeners, err
		}
		listeners = append(listeners, listener)
	}
	if len(listeners) == 0 {
		return nil, startError("Didn't get any sockets passed in. Start proxyd from a socket unit, or with --listen=.")
	}
	return listeners, nil
}

func closeAll(listeners []*forward.Listener) {
	for _, listener := range listeners {
		listener.Close()
	}
}
