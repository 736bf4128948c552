package e2e

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

func TestThePackage(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "dpkg", "dpkg")
	testenv.Need(t, "npm", "npm")
	older, newer := buildPackages(t, "1.0"), buildPackages(t, "1.1")

	t.Run("is the same, byte for byte, when it is built again elsewhere", func(t *testing.T) {
		t.Parallel()
		tree := t.TempDir()
		if err := os.CopyFS(tree, os.DirFS("../..")); err != nil {
			t.Fatal(err)
		}
		again := exec.Command("/bin/sh", "-c", `umask 077; exec make --silent deb DEBVERSION=1.0 DEBDIR=.`)
		again.Dir = tree
		again.Env = append(os.Environ(), "TZ=Pacific/Auckland", "LC_ALL=C.UTF-8")
		if text, err := again.CombinedOutput(); err != nil {
			t.Fatalf("make deb: %v\n%s", err, text)
		}
		for _, file := range older {
			if first, second := contents(t, file), contents(t, filepath.Join(tree, filepath.Base(file))); first != second {
				t.Errorf("the first package has\n%s\nthe second one has\n%s", first, second)
			}
		}
	})
	t.Run("has no error", func(t *testing.T) {
		t.Parallel()
		testenv.Need(t, "lintian", "lintian")
		if text, err := exec.Command("lintian", append([]string{"--fail-on=error"}, slices.Collect(maps.Values(newer))...)...).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	})
	for _, bus := range buses {
		t.Run("comes, changes and goes with "+bus.name, func(t *testing.T) {
			t.Parallel()
			m := bus.ownMachine(t)
			install := func(packages map[string]string, name string) (file string) {
				m.copy(t, packages[name], "/tmp")
				return "/tmp/" + filepath.Base(packages[name])
			}
			m.installUpgradeRemoveAndPurge(t, install(older, "proxyd"), install(newer, "proxyd"))
			m.installAndPurgeTheExporter(t, install(newer, "proxyd-exporter"))
		})
	}
}

// buildPackages makes the packages, and returns their files by their names.
func buildPackages(t *testing.T, version string) map[string]string {
	t.Helper()
	if text, err := makefile("nfpm").CombinedOutput(); err != nil {
		testenv.Without(t, "cannot get nfpm, which makes the package: %v\n%s", err, text)
	}
	dir := t.TempDir()
	if text, err := makefile("deb", "DEBVERSION="+version, "DEBDIR="+dir).CombinedOutput(); err != nil {
		t.Fatalf("make deb: %v\n%s", err, text)
	}
	packages := map[string]string{}
	for _, name := range []string{"proxyd", "proxyd-exporter", "proxyd-cockpit"} {
		files, err := filepath.Glob(dir + "/" + name + "_" + version + "_*.deb")
		if err != nil || len(files) != 1 {
			t.Fatalf("make deb has made %q of %s, %v", files, name, err)
		}
		packages[name] = files[0]
	}
	return packages
}

// contents are the hash of a package, and what it consists of, to see what a change of the hash comes from.
func contents(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	list, err := exec.Command("dpkg-deb", "--contents", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x\n%s", sha256.Sum256(text), list)
}

func (m *machine) installUpgradeRemoveAndPurge(t *testing.T, older, newer string) {
	m.run(t, "busctl", "list") // starts the bus, which does not know of proxyd yet
	before := m.traces(t)
	i := instance{name: "web", listen: "127.0.0.1:" + freePort(), target: m.echo(t, "tcp")}

	m.dpkg(t, "--install", older)
	for file, text := range i.files() {
		m.put(t, file, text)
	}
	m.run(t, "systemctl", "enable", "--now", i.socketUnit())
	c := m.connect(t, "tcp", i.listen)
	m.onBus(t, i.name)
	pid := m.mainPID(t, i.unit())

	m.dpkg(t, "--install", newer)
	if err := exchange(c); err != nil {
		t.Errorf("the upgrade has cost a connection: %v", err)
	}
	if now := m.mainPID(t, i.unit()); now != pid {
		t.Errorf("the upgrade has replaced process %d by %d", pid, now)
	}
	m.run(t, "systemctl", "restart", i.unit())
	if err := exchange(c); err != nil {
		t.Errorf("the restart after the upgrade has cost a connection: %v", err)
	}
	c.Close()
	m.onBus(t, i.name)
	if version := m.run(t, "proxyctl", "show", "--property=Version", "--value", i.name); version != "1.1\n" {
		t.Errorf("after the upgrade and a restart runs version %s", version)
	}

	m.dpkg(t, "--remove", "proxyd")
	if pid := m.mainPID(t, i.unit()); pid != 0 {
		t.Errorf("process %d is left of a package that was removed", pid)
	}
	if _, err := m.dial("tcp", i.listen); err == nil {
		t.Error("a socket is left of a package that was removed")
	}
	m.dpkg(t, "--install", newer)
	m.run(t, "systemctl", "start", "sockets.target")
	if err := m.ask("tcp", i.listen); err != nil {
		t.Errorf("a package that comes back does not find its configuration: %v", err)
	}

	m.dpkg(t, "--purge", "proxyd")
	if after := m.traces(t); after != before {
		t.Errorf("there is\n%s\nafter the purge, and before the installation there was\n%s", after, before)
	}
}

func (m *machine) installAndPurgeTheExporter(t *testing.T, file string) {
	before := m.traces(t)
	m.dpkg(t, "--install", file)
	m.run(t, "systemctl", "enable", "--now", "proxyd_exporter.socket")
	if text := m.scrape(t); !strings.Contains(text, "proxyd_exporter_bus_up 1") {
		t.Errorf("a scrape answers\n%s", text)
	}
	m.dpkg(t, "--purge", "proxyd-exporter")
	if after := m.traces(t); after != before {
		t.Errorf("there is\n%s\nafter the purge, and before the installation there was\n%s", after, before)
	}
}

func TestUninstallLeavesNoFile(t *testing.T) {
	testenv.Need(t, "make", "make")
	dir := t.TempDir()
	for _, target := range []string{"install", "uninstall"} {
		if text, err := makefile(target, "DESTDIR="+dir).CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, text)
		}
	}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && (!entry.IsDir() || strings.Contains(entry.Name(), "proxyd")) {
			t.Errorf("%s is left", strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// dpkg leaves the triggers of other packages alone: that of man-db takes seconds.
func (m *machine) dpkg(t *testing.T, args ...string) {
	t.Helper()
	m.run(t, append([]string{"dpkg", "--no-triggers"}, args...)...)
}

// traces are the files and units of proxyd, and its user.
func (m *machine) traces(t *testing.T) string {
	t.Helper()
	files := m.run(t, "find", "/etc", "/usr", "/var", "/run", "-regextype", "egrep", "-regex", ".*/[^/]*(proxyd|proxyctl|SocketProxy1)[^/]*")
	units := m.run(t, "systemctl", "list-units", "--all", "--no-legend", "--plain", "proxyd@*", "proxyd_exporter*")
	users := m.run(t, "sh", "-c", "getent passwd | grep proxyd; getent group | grep proxyd; true")
	return files + units + users
}
