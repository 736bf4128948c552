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

// inTree has the files of a test below a directory of its own.
func inTree(t *testing.T) {
	t.Helper()
	former := root
	root = t.TempDir()
	t.Cleanup(func() { root = former })
}

// tree is everything below the root, with the texts of files.
func tree(t *testing.T) (all []string) {
	t.Helper()
	testenv.Must(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
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

func write(t *testing.T, s Settings) *Change {
	t.Helper()
	files, err := s.Files()
	testenv.Must(t, err)
	change, err := Write(files)
	testenv.Must(t, err)
	return change
}

func TestUndoBringsBackWhatWasThere(t *testing.T) {
	inTree(t)
	write(t, Settings{Name: "web", Listen: []string{"8080"}, Target: "127.0.0.1:1"})
	before := tree(t)
	change := write(t, Settings{Name: "web", Listen: []string{"9090"}, Target: "127.0.0.1:2", Backend: "app.service"})
	if slices.Equal(tree(t), before) {
		t.Fatal("nothing was written")
	}
	testenv.Must(t, change.Undo())
	if after := tree(t); !slices.Equal(after, before) {
		t.Errorf("%q, and before %q", after, before)
	}
}

func TestWriteThatFailsLeavesNothing(t *testing.T) {
	inTree(t)
	before := tree(t)
	files := []File{{filepath.Join(root, "a/b/c"), "text"}, {filepath.Join(root, "a/b/c/d"), "below a file"}}
	if _, err := Write(files); err == nil || !strings.Contains(err.Error(), "cannot write "+files[1].Path) {
		t.Errorf("%v", err)
	}
	if after := tree(t); !slices.Equal(after, before) {
		t.Errorf("it leaves %q", after)
	}
}

func TestRemoveLeavesWhatOthersHaveWritten(t *testing.T) {
	inTree(t)
	for _, dir := range []string{"etc/proxyd", "etc/systemd/system", "run/systemd/system"} {
		testenv.Must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	other := filepath.Join(root, "etc/systemd/system/app.service.d/override.conf")
	testenv.Must(t, os.MkdirAll(filepath.Dir(other), 0o755))
	testenv.Must(t, os.WriteFile(other, []byte("[Service]\n"), 0o644))
	before := tree(t)
	for _, runtime := range []bool{false, true} {
		write(t, Settings{Name: "web", Listen: []string{"8080"}, Target: "127.0.0.1:1", Backend: "app.service", NetworkOf: "net.service", Isolate: true, Runtime: runtime})
		paths, wasRuntime, err := Made("web")
		testenv.Must(t, err)
		testenv.Equal(t, "runtime", wasRuntime, runtime)
		testenv.Must(t, Remove(paths))
		if after := tree(t); !slices.Equal(after, before) {
			t.Errorf("%q, and before %q", after, before)
		}
	}
	if _, _, err := Made("web"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none is left: %v", err)
	}
}

func TestSettingsThatOthersHaveWrittenAreNotMadeByCreate(t *testing.T) {
	inTree(t)
	settings := filepath.Join(root, "etc/proxyd/web.conf")
	testenv.Must(t, os.MkdirAll(filepath.Dir(settings), 0o755))
	testenv.Must(t, os.WriteFile(settings, []byte("TARGET=127.0.0.1:1\n"), 0o644))
	if paths, _, err := Made("web"); err == nil || paths != nil {
		t.Errorf("%q, %v", paths, err)
	}
	if instances := Configured(); !slices.Equal(instances, []string{"web"}) {
		t.Errorf("configured: %q", instances)
	}
}
