package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A kind says what a proxy is measured for.
type kind int

const (
	ours  kind = iota // builds of proxyd: the first is what the goals are about
	peer              // what proxyd is held against
	extra             // for comparison only
)

// A proxy is a program to measure.
type proxy struct {
	name    string
	version string
	kind    kind
	// fdsPerConnection is what a connection takes at least: it bounds the idle connections under the limit on open files.
	fdsPerConnection int
	// command gives the command that forwards from one address to another.
	command commandFunc
	// activate gives the same under systemd-socket-activate; nil if the program cannot take a socket from systemd.
	activate commandFunc
	// ctl is the proxyctl of the same build, which may not be there.
	ctl string
	// ports says that command knows ports on 127.0.0.1 only, and no AF_UNIX.
	ports bool
}

type commandFunc func(b *bench, listen, backend string) ([]string, error)

// connectionsMax is given to proxies that would refuse the idle connections by default.
const connectionsMax = "20000"

// findProxies lists what the options ask for, and says which peers are missing.
func findProxies(o options) (found []*proxy, missing []string, err error) {
	for _, build := range orDefault(o.proxyd, "build/proxyd") {
		p, err := proxydBuild(build)
		if err != nil && len(o.proxyd) > 0 {
			return nil, nil, err
		} else if err != nil {
			missing = append(missing, err.Error())
			continue
		}
		found = append(found, p)
		if o.loops > 0 {
			found = append(found, p.withLoops(o.loops))
		}
	}
	for _, find := range []func() (*proxy, error){socketProxyd, haproxy, nginx} {
		p, err := find()
		if err != nil {
			missing = append(missing, err.Error())
			continue
		}
		found = append(found, p)
	}
	for _, command := range o.extra {
		p, err := extraProxy(command)
		if err != nil {
			return nil, nil, err
		}
		found = append(found, p)
	}
	for i, p := range found {
		if slices.ContainsFunc(found[:i], func(q *proxy) bool { return q.name == p.name }) {
			return nil, nil, fmt.Errorf("two proxies are called %s: name them, as in -proxyd old=PATH", p.name)
		}
	}
	if len(o.proxies) == 0 {
		return found, missing, nil
	}
	var chosen []*proxy
	for _, name := range o.proxies {
		i := slices.IndexFunc(found, func(p *proxy) bool { return p.name == name })
		if i < 0 {
			return nil, nil, fmt.Errorf("-proxies: there is no %s; missing: %s", name, strings.Join(missing, ", "))
		}
		chosen = append(chosen, found[i])
	}
	return chosen, nil, nil
}

func orDefault(list []string, value string) []string {
	if len(list) == 0 {
		return []string{value}
	}
	return list
}

// proxydBuild takes PATH or NAME=PATH.
func proxydBuild(build string) (*proxy, error) {
	name, path, named := strings.Cut(build, "=")
	if !named {
		name, path = "proxyd", build
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return nil, fmt.Errorf("%s (%s: %w)", name, path, err)
	}
	return &proxy{
		name: name, version: firstLine(path, "--version"), kind: ours, fdsPerConnection: 2,
		ctl: filepath.Join(filepath.Dir(path), "proxyctl"),
		command: func(_ *bench, listen, backend string) ([]string, error) {
			return []string{path, "--bus=none", "--listen=" + listen, "-c", connectionsMax, backend}, nil
		},
		activate: underActivation(path),
	}, nil
}

// withLoops is the same build with another number of event loops. By itself it has one for each CPU that it may use.
func (p *proxy) withLoops(n int) *proxy {
	with := *p
	with.name = fmt.Sprintf("%s-%d-loops", p.name, n)
	with.activate = nil
	with.command = func(b *bench, listen, backend string) ([]string, error) {
		args, err := p.command(b, listen, backend)
		return append([]string{"/usr/bin/env", fmt.Sprint("GOMAXPROCS=", n)}, args...), err
	}
	return &with
}

func socketProxyd() (*proxy, error) {
	const path = "/lib/systemd/systemd-socket-proxyd"
	if err := unix.Access(path, unix.X_OK); err != nil {
		return nil, fmt.Errorf("systemd-socket-proxyd (%s: %w)", path, err)
	}
	if _, err := exec.LookPath("systemd-socket-activate"); err != nil {
		return nil, fmt.Errorf("systemd-socket-proxyd (%w)", err)
	}
	command := underActivation(path)
	return &proxy{
		name: "systemd-socket-proxyd", version: firstLine(path, "--version"), kind: peer, fdsPerConnection: 6,
		command: command, activate: command,
	}, nil
}

// underActivation runs a program that takes its socket from systemd. systemd-socket-activate becomes that program when the
// first client comes, so the process stays the same. Of the environment it hands down what it is told to.
func underActivation(path string) commandFunc {
	return func(_ *bench, listen, backend string) ([]string, error) {
		return []string{"systemd-socket-activate", "--setenv=" + systemBus, "--listen=" + listen, path, "-c", connectionsMax, backend}, nil
	}
}

func haproxy() (*proxy, error) {
	path, err := lookProgram("haproxy")
	if err != nil {
		return nil, err
	}
	return &proxy{
		name: "haproxy", version: firstLine(path, "-v"), kind: peer, fdsPerConnection: 2,
		command: func(b *bench, listen, backend string) ([]string, error) {
			file, err := b.writeConfig("haproxy", fmt.Sprintf(haproxyConfig,
				(b.fileLimit-2000)/2, listen, backend))
			return []string{path, "-db", "-f", file}, err
		},
	}, nil
}

// HAProxy refuses to start when maxconn and maxpipes need more files than it may open.
const haproxyConfig = `
global
	maxconn %d
	maxpipes 500
	nbthread 1
defaults
	mode tcp
	option splice-request
	option splice-response
	timeout connect 10s
	timeout client 1h
	timeout server 1h
listen bench
	bind %s backlog 4096
	server origin %s
`

func nginx() (*proxy, error) {
	path, err := lookProgram("nginx")
	if err != nil {
		return nil, err
	}
	const module = "/usr/lib/nginx/modules/ngx_stream_module.so"
	if _, err := os.Stat(module); err != nil {
		return nil, fmt.Errorf("nginx stream (%w)", err)
	}
	return &proxy{
		name: "nginx", version: firstLine(path, "-v"), kind: peer, fdsPerConnection: 2,
		command: func(b *bench, listen, backend string) ([]string, error) {
			file, err := b.writeConfig("nginx", fmt.Sprintf(nginxConfig,
				module, b.directory, b.fileLimit-1000, nginxAddress(listen), nginxAddress(backend)))
			return []string{path, "-p", b.directory, "-e", "stderr", "-c", file}, err
		},
	}, nil
}

const nginxConfig = `
load_module %s;
daemon off;
pid %s/nginx.pid;
worker_processes 1;
events {
	worker_connections %d;
}
stream {
	access_log off;
	proxy_timeout 1h;
	server {
		listen %s backlog=4096;
		proxy_pass %s;
	}
}
`

func nginxAddress(address string) string {
	if strings.HasPrefix(address, "/") {
		return "unix:" + address
	}
	return address
}

// extraProxy takes NAME=COMMAND.
func extraProxy(text string) (*proxy, error) {
	name, command, _ := strings.Cut(text, "=")
	args := strings.Fields(command)
	if len(args) == 0 {
		return nil, fmt.Errorf("-extra %q is not NAME=COMMAND", text)
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return nil, fmt.Errorf("-extra %s: %w", name, err)
	}
	if args[0], err = filepath.Abs(path); err != nil {
		return nil, err
	}
	return &proxy{
		name: name, version: command, kind: extra, fdsPerConnection: 2, ports: true,
		command: func(_ *bench, listen, backend string) ([]string, error) {
			_, port, ok := strings.Cut(listen, ":")
			_, originPort, ok2 := strings.Cut(backend, ":")
			if !ok || !ok2 {
				return nil, errors.New("an extra program knows only ports")
			}
			filled := slices.Clone(args)
			for i := range filled {
				filled[i] = strings.NewReplacer("{port}", port, "{origin}", originPort).Replace(filled[i])
			}
			return filled, nil
		},
	}, nil
}

// lookProgram finds a program also where only root has it in PATH.
func lookProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

// firstLine gives the first line of what a command prints: its version.
func firstLine(command ...string) string {
	text, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		return "unknown version"
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}
