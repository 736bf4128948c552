package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Change is what was done to files, and undoes it.
type Change struct {
	undo []func() error
}

// Undo brings the files back, the last one first.
func (c *Change) Undo() error {
	var errs []error
	for _, undo := range slices.Backward(c.undo) {
		errs = append(errs, undo())
	}
	c.undo = nil
	return errors.Join(errs...)
}

// Write writes each of the files whole, or none: a reader, also one after a power cut, finds the former file or this one. It removes those
// of the former paths that are not among them.
func (p Place) Write(files []File, former ...string) (*Change, error) {
	change := new(Change)
	for _, path := range former {
		if slices.ContainsFunc(files, func(file File) bool { return file.Path == path }) {
			continue
		}
		if err := change.remove(p, path); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot remove %s: %w", path, reason(err)), change.Undo())
		}
	}
	for _, file := range files {
		if err := change.write(file); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot write %s: %w", file.Path, reason(err)), change.Undo())
		}
	}
	return change, nil
}

func (c *Change) write(file File) error {
	if err := c.mkdir(filepath.Dir(file.Path)); err != nil {
		return err
	}
	former, err := os.ReadFile(file.Path)
	existed := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeWhole(file.Path, []byte(file.Text)); err != nil {
		return err
	}
	c.undo = append(c.undo, func() error {
		if existed {
			return writeWhole(file.Path, former)
		}
		return os.Remove(file.Path)
	})
	return nil
}

// writeWhole keeps the permissions of a file that exists, as renameio does: its settings may be for few to read.
func writeWhole(path string, text []byte) error {
	return renameio.WriteFile(path, text, 0o644, renameio.IgnoreUmask())
}

func (c *Change) remove(place Place, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := place.Remove([]string{path}); err != nil {
		return err
	}
	c.undo = append(c.undo, func() error { return new(Change).write(File{path, string(text)}) })
	return nil
}

// mkdir makes a directory, and those it is in.
func (c *Change) mkdir(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := c.mkdir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	c.undo = append(c.undo, func() error { return os.Remove(dir) })
	return nil
}

// Existing returns those of the files that exist.
func Existing(files []File) (paths []string) {
	for _, file := range files {
		if _, err := os.Lstat(file.Path); err == nil {
			paths = append(paths, file.Path)
		}
	}
	return paths
}

// Made returns the files that make an instance, and whether it is one until the next boot only. It is an error where there are
// none, or where the settings were not made by [Write].
func (p Place) Made(instance string) (paths []string, runtime bool, err error) {
	for _, runtime := range []bool{true, false} {
		settings := filepath.Join(p.settings(runtime), instance+".conf")
		text, err := os.ReadFile(settings)
		isMade := err == nil && strings.HasPrefix(string(text), mark)
		if err == nil && !isMade {
			return nil, false, fmt.Errorf("%s was not made by proxyctl create; it stays", settings)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, false, err
		}
		if isMade {
			paths = append(paths, settings) // first: without it, the socket does not start
		}
		for _, unit := range []string{Socket(instance), Unit(instance)} {
			paths = append(paths, existing(filepath.Join(p.units(runtime), unit+".d", dropIn))...)
		}
		backends, _ := filepath.Glob(filepath.Join(p.units(runtime), "*.service.d", backendFile(instance)))
		if paths = append(paths, backends...); len(paths) > 0 {
			return paths, runtime, nil
		}
	}
	return nil, false, fs.ErrNotExist
}

func existing(path string) []string {
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	return []string{path}
}

// Remove removes files, and the directories of drop-ins that are empty then.
func (p Place) Remove(paths []string) error {
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove %s: %w", path, reason(err))
		}
		if dir := filepath.Dir(path); filepath.Ext(dir) == ".d" || dir == p.settings(true) {
			_ = os.Remove(dir) // fails where others have files in it
		}
	}
	return nil
}

// Configured returns the instances that have settings or addresses on this machine, made by whomever, and which of them lack one
// of the two: they do not start.
func (p Place) Configured() (instances []string, incomplete map[string]bool) {
	settings, addresses := map[string]bool{}, map[string]bool{}
	for _, runtime := range []bool{true, false} {
		files, _ := filepath.Glob(filepath.Join(p.settings(runtime), "*.conf"))
		for _, file := range files {
			settings[strings.TrimSuffix(filepath.Base(file), ".conf")] = true
		}
		sockets, _ := filepath.Glob(filepath.Join(p.units(runtime), Socket("*")+"*")) // whole units, and directories of drop-ins
		for _, socket := range sockets {
			instance, _ := strings.CutPrefix(strings.TrimSuffix(strings.TrimSuffix(filepath.Base(socket), ".d"), ".socket"), "proxyd@")
			addresses[instance] = true
		}
	}
	incomplete = map[string]bool{}
	for instance := range settings {
		incomplete[instance] = !addresses[instance]
	}
	for instance := range addresses {
		incomplete[instance] = !settings[instance]
	}
	delete(incomplete, "") // the template's own
	return slices.Sorted(maps.Keys(incomplete)), incomplete
}

// reason is an error of a system call without the file, of which the caller knows a better name.
func reason(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; run it as root", err)
	}
	return err
}

// MayRemove returns an error unless this process may remove files, so that nothing is begun that cannot be finished.
func MayRemove(paths []string) error {
	for _, path := range paths {
		if err := unix.Access(filepath.Dir(path), unix.W_OK); err != nil {
			return fmt.Errorf("cannot remove %s: %w", path, reason(err))
		}
	}
	return nil
}
