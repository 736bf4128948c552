package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	systemd     = "org.freedesktop.systemd1"
	systemdPath = "/org/freedesktop/systemd1"
)

// units is a connection to systemd that hears of every change of a unit. It does not go over the bus.
type units struct {
	conn   *dbus.Conn
	bridge *exec.Cmd

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
}

// watchUnits connects through a process of the machine, because systemd takes nobody whose process id it cannot see.
func (m *machine) watchUnits() (*units, error) {
	u := &units{
		bridge:  m.command("systemd-stdio-bridge", "--bus-path=unix:path=/run/systemd/private"),
		changed: make(chan struct{}),
	}
	var complaint bytes.Buffer
	u.bridge.Stderr = &complaint
	toSystemd, err := u.bridge.StdinPipe()
	if err != nil {
		return nil, err
	}
	fromSystemd, err := u.bridge.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := u.bridge.Start(); err != nil {
		return nil, err
	}
	u.conn, err = dbus.NewConn(struct {
		io.Reader
		io.WriteCloser
	}{fromSystemd, toSystemd})
	if err == nil {
		err = u.subscribe()
	}
	if err != nil {
		u.close()
		return nil, fmt.Errorf("no connection to its systemd: %w\n%s", err, complaint.String())
	}
	return u, nil
}

func (u *units) subscribe() error {
	if err := u.conn.Auth([]dbus.Auth{dbus.AuthAnonymous()}); err != nil {
		return err
	}
	signals := make(chan *dbus.Signal, 16)
	u.conn.Signal(signals)
	go func() {
		for range signals { // until the connection is closed
			u.mu.Lock()
			close(u.changed)
			u.changed = make(chan struct{})
			u.mu.Unlock()
		}
	}()
	return u.conn.Object(systemd, systemdPath).Call(systemd+".Manager.Subscribe", 0).Err
}

func (u *units) close() {
	if u.conn != nil {
		u.conn.Close()
	}
	killGroup(u.bridge)
	_ = u.bridge.Wait()
}

func (u *units) nextChange() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.changed
}

// property is a property of a unit, such as Unit.ActiveState or Service.MainPID.
func (m *machine) property(t *testing.T, unit, property string) any {
	t.Helper()
	var path dbus.ObjectPath
	manager := m.units.conn.Object(systemd, systemdPath)
	if err := manager.Call(systemd+".Manager.LoadUnit", 0, unit).Store(&path); err != nil {
		t.Fatalf("%s: %v", unit, err)
	}
	value, err := m.units.conn.Object(systemd, path).GetProperty(systemd + "." + property)
	if err != nil {
		t.Fatalf("%s of %s: %v", property, unit, err)
	}
	return value.Value()
}

// until waits until a property of a unit has a value, which the change of a unit announces.
func (m *machine) until(t *testing.T, unit, property string, is func(value any) bool) {
	t.Helper()
	for deadline := time.After(patience); ; {
		change := m.units.nextChange()
		value := m.property(t, unit, property)
		if is(value) {
			return
		}
		select {
		case <-change:
		case <-deadline:
			t.Fatalf("waited %v in vain, %s of %s is %v", patience, property, unit, value)
		}
	}
}

func equals(want any) func(any) bool { return func(value any) bool { return value == want } }

// mainPID is the process of a service, as the machine counts them; 0 if there is none.
func (m *machine) mainPID(t *testing.T, service string) uint32 {
	t.Helper()
	return m.property(t, service, "Service.MainPID").(uint32)
}
