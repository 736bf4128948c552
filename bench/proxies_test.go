package main

import (
	"slices"
	"testing"
)

func TestExtraCommandGetsItsPorts(t *testing.T) {
	p, err := extraProxy("old=true --listen=127.0.0.1:{port} {origin}")
	if err != nil {
		t.Fatal(err)
	}
	args, err := p.command(nil, "127.0.0.1:20001", "127.0.0.1:30002")
	if err != nil {
		t.Fatal(err)
	}
	if p.name != "old" || !slices.Equal(args[1:], []string{"--listen=127.0.0.1:20001", "30002"}) {
		t.Errorf("%s runs %q", p.name, args)
	}
	if _, err := extraProxy("old"); err == nil {
		t.Error("a name without a command was taken")
	}
}

func TestTwoBuildsNeedTwoNames(t *testing.T) {
	o := options{proxyd: listFlag{"/bin/true", "/bin/true"}}
	if _, _, err := findProxies(o); err == nil {
		t.Error("both are called proxyd")
	}
	o.proxyd[1] = "old=/bin/true"
	if _, _, err := findProxies(o); err != nil {
		t.Error(err)
	}
}

func TestUnknownNamesAreRefused(t *testing.T) {
	if _, err := parseOptions([]string{"-only", "pingpong"}); err == nil {
		t.Error("a workload that does not exist was taken")
	}
	if _, _, err := findProxies(options{proxies: []string{"squid"}}); err == nil {
		t.Error("a proxy that does not exist was taken")
	}
}
