package setup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// inTree is a place below a directory of its own.
func inTree(t *testing.T) Place {
	t.Helper()
	root := t.TempDir()
	return Place{filepath.Join(root, "etc"), filepath.Join(root, "run"), "system"}
}

// tree is everything below the root, with the texts of files.
func (p Place) tree(t *testing.T) (all []string) {
	t.Helper()
	testenv.Must(t, filepath.WalkDir(filepath.Dir(p.config), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			var text []byte
			text, err = os.ReadFile(path)
			path += "=" + string(text)
		}
		all = append(all, path)
		return err
	}))
	return all
}

func (p Place) write(t *testing.T, s Settings) {
	t.Helper()
	files, err := s.Files(p)
	testenv.Must(t, err)
	_, err = p.Write(files)
	testenv.Must(t, err)
}

func TestUndoBringsBackWhatWasThere(t *testing.T) {
	p := inTree(t)
	p.write(t, Settings{Name: "web", Listen: []string{"8080"}, Target: "127.0.0.1:1", Backend: "old.service"})
	before := p.tree(t)
	former, _, err := p.Made("web")
	testenv.Must(t, err)
	files, err := (&Settings{Name: "web", Listen: []string{"9090"}, Target: "127.0.0.1:2", Backend: "app.service"}).Files(p)
	testenv.Must(t, err)
	change, err := p.Write(files, former...)
	testenv.Must(t, err)
	if paths, _, err := p.Made("web"); err != nil || len(paths) != len(files) {
		t.Errorf("%q, %v; want the %d files written last", paths, err, len(files))
	}
	testenv.Must(t, change.Undo())
	if after := p.tree(t); !slices.Equal(after, before) {
		t.Errorf("%q, and before %q", after, before)
	}
}

func TestWriteThatFailsLeavesNothing(t *testing.T) {
	p := inTree(t)
	before := p.tree(t)
	files := []File{{filepath.Join(p.config, "a/b/c"), "text"}, {filepath.Join(p.config, "a/b/c/d"), "below a file"}}
	if _, err := p.Write(files); err == nil || !strings.Contains(err.Error(), "cannot write "+files[1].Path) {
		t.Errorf("%v", err)
	}
	if after := p.tree(t); !slices.Equal(after, before) {
		t.Errorf("it leaves %q", after)
	}
}

func TestRemoveLeavesWhatOthersHaveWritten(t *testing.T) {
	p := inTree(t)
	for _, dir := range []string{p.settings(false), p.units(false), p.units(true)} {
		testenv.Must(t, os.MkdirAll(dir, 0o755))
	}
	other := filepath.Join(p.units(false), "app.service.d/override.conf")
	testenv.Must(t, os.MkdirAll(filepath.Dir(other), 0o755))
	testenv.Must(t, os.WriteFile(other, []byte("[Service]\n"), 0o644))
	before := p.tree(t)
	for _, runtime := range []bool{false, true} {
		p.write(t, Settings{Name: "web", Listen: []string{"8080"}, Target: "127.0.0.1:1", Backend: "app.service", NetworkOf: "net.service", Isolate: true, Runtime: runtime})
		paths, wasRuntime, err := p.Made("web")
		testenv.Must(t, err)
		testenv.Equal(t, "runtime", wasRuntime, runtime)
		testenv.Must(t, p.Remove(paths))
		if after := p.tree(t); !slices.Equal(after, before) {
			t.Errorf("%q, and before %q", after, before)
		}
	}
	if _, _, err := p.Made("web"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none is left: %v", err)
	}
}

func TestInstancesAreConfiguredWhoeverHasWrittenThem(t *testing.T) {
	p := inTree(t)
	settings := filepath.Join(p.config, "proxyd/web.conf")
	testenv.Must(t, os.MkdirAll(filepath.Dir(settings), 0o755))
	testenv.Must(t, os.WriteFile(settings, []byte("TARGET=127.0.0.1:1\n"), 0o644))
	if paths, _, err := p.Made("web"); err == nil || paths != nil {
		t.Errorf("%q, %v", paths, err)
	}
	p.write(t, Settings{Name: "whole", Listen: []string{"8080"}, Target: "127.0.0.1:1", Runtime: true})
	testenv.Must(t, os.MkdirAll(filepath.Join(p.units(false), "proxyd@half.socket.d"), 0o755))
	instances, incomplete := p.Configured()
	if !slices.Equal(instances, []string{"half", "web", "whole"}) || !incomplete["half"] || !incomplete["web"] || incomplete["whole"] {
		t.Errorf("configured: %q, incomplete: %v", instances, incomplete)
	}
}

func TestWriteKeepsThePermissionsOfSettings(t *testing.T) {
	p := inTree(t)
	p.write(t, Settings{Name: "web", Listen: []string{"8080"}, Target: "127.0.0.1:1"})
	file, err := p.Read("web")
	testenv.Must(t, err)
	mode := func() fs.FileMode {
		info, err := os.Stat(file.Path)
		testenv.Must(t, err)
		return info.Mode()
	}
	testenv.Equal(t, "the mode of a new file", mode(), 0o644)
	testenv.Must(t, os.Chmod(file.Path, 0o600))
	change, err := p.Write([]File{file})
	testenv.Must(t, err)
	testenv.Equal(t, "the mode of one that is written again", mode(), 0o600)
	testenv.Must(t, change.Undo())
	testenv.Equal(t, "the mode of one that was brought back", mode(), 0o600)
}
