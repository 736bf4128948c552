# proxyd. The targets that people use: build, test, run, bench, install, uninstall, lint, clean; and those that prove or measure more
# than a test that one waits for: unprivileged, architectures, compare, faults, fuzz, floods, soak, handover, mutants.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
BINDIR  ?= $(PREFIX)/bin
DATADIR ?= $(PREFIX)/share
MANDIR  ?= $(DATADIR)/man

# systemd reads units and users below /usr/local too. The D-Bus daemons and polkit do not, so that their files leave the
# prefix when it is another than /usr.
UNITDIR     ?= $(PREFIX)/lib/systemd/system
USERUNITDIR ?= $(PREFIX)/lib/systemd/user
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
ifeq ($(PREFIX),/usr)
DBUSPOLICYDIR ?= $(DATADIR)/dbus-1/system.d
else
DBUSPOLICYDIR ?= /etc/dbus-1/system.d
endif
POLKITDIR   ?= /usr/share/polkit-1/actions
CONFDIR     ?= /etc/proxyd
DOCDIR      ?= $(DATADIR)/doc
ZSHDIR      ?= $(DATADIR)/zsh/site-functions

# What --version prints.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# Where make run forwards to, HOST:PORT or a socket; a small origin of its own if empty.
TO ?=

# For the benchmark: make bench BENCH="-quick -only short".
BENCH ?=

# For the tests: make test TEST="-run Drain -v".
TEST ?=

# For the comparison with other proxies: make compare COMPARE=-markdown.
COMPARE ?=

# How many combinations of faults to put in front of the data plane's system calls, and how many random schedules to check
# against the model of a connection, four times.
FAULTS    ?= 2000000
SCHEDULES ?= 20000

# For how long to fuzz each target, and to soak; the seed of the faults, the schedules and the soak, 0 for another one
# each time.
FUZZTIME ?= 10m
SOAK     ?= 10m
SEED     ?= 0

# How many changes of the program the tests are to notice, and in which packages: make mutants N=20 PKG=internal/forward.
N   ?= 50
PKG ?=

all: build

build: build/proxyd build/proxyctl build/proxyd_exporter

# Not each time, so that sudo make install takes what make has built, and root needs no Go. Not with -buildmode=pie: without C that
# links on amd64, arm64 and ppc64le only, needs the C library's dynamic loader on the machine, and measured on amd64 it starts 1.8 ms
# later (5.8 instead of 4.0 ms of CPU time) and is 12 % larger.
build/proxyd build/proxyctl build/proxyd_exporter &: go.mod go.sum $(shell find cmd internal -name '*.go' -o -name '*.xml')
	CGO_ENABLED=0 $(GO) build -tags godbus_no_tcp -trimpath -ldflags '-s -w -X example.org/socketproxy/internal/version.linked=$(VERSION)' \
		-o build/ ./cmd/...

test:
	test/run $(TEST)

unprivileged:
	test/unprivileged $(TEST)

architectures:
	test/architectures $(TEST)

lint:
	test/lint

# In their directories, because go test shows the output of a test that passes only there.
compare:
	cd test/compare && $(GO) test -count=1 -timeout=20m -args -peers $(COMPARE)

faults:
	cd test/faults && $(GO) test -count=1 -timeout=1h -args -full -seed=$(SEED)
	cd internal/forward && $(GO) test -count=1 -timeout=0 -run="TestFaults|RandomSchedules" -v \
		-args -faults=$(FAULTS) -fault-seed=$(SEED) -rapid.checks=$(SCHEDULES) -rapid.seed=$(SEED)

fuzz:
	test/fuzz $(FUZZTIME)

floods:
	cd test/soak && $(GO) test -count=1 -timeout=0 -run=Floods -v -args -full

soak:
	cd test/soak && $(GO) test -count=1 -timeout=0 -run=Soak -v -args -soak=$(SOAK) -seed=$(SEED)

handover:
	cd test/e2e && $(GO) test -count=1 -timeout=30m -run=HandOver -args -handover $(if $(RESTARTS),-restarts=$(RESTARTS))

mutants:
	$(GO) run ./test/mutants -n $(N) -seed $(SEED) $(if $(PKG),-pkg $(PKG))

bench: build
	$(GO) run ./bench $(BENCH)

run: build
	$(GO) run ./demo -build build -to '$(TO)'

# What is installed, SOURCE:DESTINATION, by package; programs first.
PACKAGES = proxyd proxyd-exporter

proxyd-PROGRAMS = build/proxyd:$(BINDIR)/proxyd build/proxyctl:$(BINDIR)/proxyctl
proxyd-FILES = \
	units/proxyd@.service:$(UNITDIR)/proxyd@.service \
	units/proxyd@.socket:$(UNITDIR)/proxyd@.socket \
	units/user/proxyd@.service:$(USERUNITDIR)/proxyd@.service \
	units/user/proxyd@.socket:$(USERUNITDIR)/proxyd@.socket \
	units/proxyd.sysusers.conf:$(SYSUSERSDIR)/proxyd.conf \
	dbus-policy/org.example.SocketProxy1.conf:$(DBUSPOLICYDIR)/org.example.SocketProxy1.conf \
	dbus-policy/org.example.SocketProxy1.policy:$(POLKITDIR)/org.example.SocketProxy1.policy \
	internal/bus/org.example.SocketProxy1.xml:$(DATADIR)/dbus-1/interfaces/org.example.SocketProxy1.xml \
	man/proxyd.8:$(MANDIR)/man8/proxyd.8 \
	man/proxyctl.1:$(MANDIR)/man1/proxyctl.1 \
	man/proxyd@.service.5:$(MANDIR)/man5/proxyd@.service.5 \
	man/org.example.SocketProxy1.5:$(MANDIR)/man5/org.example.SocketProxy1.5 \
	build/completion/bash:$(DATADIR)/bash-completion/completions/proxyctl \
	build/completion/zsh:$(ZSHDIR)/_proxyctl \
	build/completion/fish:$(DATADIR)/fish/vendor_completions.d/proxyctl.fish \
	$(foreach f,$(wildcard units/examples/*/*),$(f):$(patsubst units/%,$(DOCDIR)/proxyd/%,$(f)))

proxyd-exporter-PROGRAMS = build/proxyd_exporter:$(BINDIR)/proxyd_exporter
proxyd-exporter-FILES = \
	units/proxyd_exporter.service:$(UNITDIR)/proxyd_exporter.service \
	units/proxyd_exporter.socket:$(UNITDIR)/proxyd_exporter.socket \
	units/proxyd_exporter.sysusers.conf:$(SYSUSERSDIR)/proxyd_exporter.conf \
	man/proxyd_exporter.8:$(MANDIR)/man8/proxyd_exporter.8 \
	$(foreach f,alerts.yml alerts_test.yml grafana.json,monitoring/$(f):$(DOCDIR)/proxyd-exporter/$(f))

# With a stylesheet from npm, so that it is neither built nor installed with the others: make install-proxyd-cockpit.
proxyd-cockpit-FILES = \
	build/cockpit/patternfly.css:$(DATADIR)/cockpit/proxyd/patternfly.css \
	$(foreach f,$(wildcard cockpit/*.js cockpit/*.css cockpit/*.html cockpit/manifest.json),$(f):$(DATADIR)/cockpit/proxyd/$(notdir $(f))) \
	cockpit/org.example.SocketProxy1.cockpit.metainfo.xml:$(DATADIR)/metainfo/org.example.SocketProxy1.cockpit.metainfo.xml

from = $(firstword $(subst :, ,$(1)))
to = $(DESTDIR)$(lastword $(subst :, ,$(1)))

build/completion/%: build/proxyctl
	mkdir -p build/completion
	build/proxyctl completion $* >$@.$$$$ && mv $@.$$$$ $@

PATTERNFLY = 6.6.1
PATTERNFLY_SHA256 = 6ee4b5baac7e1319f121b2e95aaf76a24c7a4525e80185468f59300aabf4eb14
# The components that the page uses. Fonts stay behind: Cockpit's pages look as those of the browser without them too.
# In a directory of its own, because several makes may run at once, as in the tests.
build/cockpit/patternfly.css: Makefile
	mkdir -p build/cockpit
	set -e; new=$$(mktemp -d build/cockpit/new.XXXXXX); trap 'rm -rf "$$new"' EXIT; \
	(cd "$$new"; npm pack --silent @patternfly/patternfly@$(PATTERNFLY) >/dev/null; \
		echo '$(PATTERNFLY_SHA256)  patternfly-patternfly-$(PATTERNFLY).tgz' | sha256sum --check --quiet; tar -xzf *.tgz; \
		cd package; sed '/@font-face {/,/}/d' patternfly-base.css $(addprefix components/,Alert/alert.css Button/button.css \
		Card/card.css Check/check.css DescriptionList/description-list.css EmptyState/empty-state.css Form/form.css \
		FormControl/form-control.css Label/label.css ModalBox/modal-box.css Page/page.css Progress/progress.css Table/table.css \
		Table/table-grid.css Title/title.css) >../patternfly.css); \
	mv "$$new/patternfly.css" $@

install: $(PACKAGES:%=install-%)
ifeq ($(DESTDIR),)
	@echo 'Installed. Now tell the system, in this order, since the bus has to know the user:'
	@echo '  systemd-sysusers proxyd.conf proxyd_exporter.conf && systemctl daemon-reload && systemctl reload dbus.service'
endif

$(PACKAGES:%=install-%): install-%: build $(addprefix build/completion/,bash zsh fish)
	$(foreach f,$($*-PROGRAMS),install -D -m 755 $(call from,$(f)) $(call to,$(f)) &&) :
	$(foreach f,$($*-FILES),install -D -m 644 $(call from,$(f)) $(call to,$(f)) &&) :
	[ $* != proxyd ] || install -d -m 755 $(DESTDIR)$(CONFDIR)

install-proxyd-cockpit: build/cockpit/patternfly.css
	$(foreach f,$(proxyd-cockpit-FILES),install -D -m 644 $(call from,$(f)) $(call to,$(f)) &&) :

# The settings of instances in $(CONFDIR) are the administrator's, and stay.
uninstall:
	$(foreach p,$(PACKAGES) proxyd-cockpit,rm -f $(foreach f,$($(p)-PROGRAMS) $($(p)-FILES),$(call to,$(f))) &&) :
	[ ! -d $(DESTDIR)$(DATADIR)/cockpit/proxyd ] || rmdir $(DESTDIR)$(DATADIR)/cockpit/proxyd
	$(foreach p,$(PACKAGES),[ ! -d $(DESTDIR)$(DOCDIR)/$(p) ] || find $(DESTDIR)$(DOCDIR)/$(p) -depth -type d -empty -delete &&) :
	[ ! -d $(DESTDIR)$(CONFDIR) ] || rmdir --ignore-fail-on-non-empty $(DESTDIR)$(CONFDIR)
ifeq ($(DESTDIR),)
	@echo 'Instances that run go on. Now: systemctl daemon-reload && systemctl reload dbus.service'
	@echo 'Left where they are: the settings in $(CONFDIR), the directory /var/lib/proxyd and the users proxyd and proxyd-exporter.'
endif

# The version of the package: letters first would sort above every number.
DEBVERSION ?= $(patsubst v%,%,$(shell git describe --tags --match 'v[0-9]*' 2>/dev/null || echo 0.1~git$$(git log -1 --format=%cd.%h --date=format:%Y%m%d)))
NFPM ?= $(GO) run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
# The directory for the package.
DEBDIR ?= build

# Each build of a commit makes the same bytes, whenever and wherever: reproducible-builds.org.
# The Cockpit page is left out where there is no npm for its stylesheet.
deb: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
deb:
	$(MAKE) --always-make build VERSION='$(DEBVERSION)'
	$(MAKE) $(PACKAGES:%=deb-%) $(if $(shell command -v npm),deb-proxyd-cockpit)

deb-proxyd-cockpit $(PACKAGES:%=deb-%): deb-%:
	rm -rf build/root/$* build/deb/$*
	mkdir -p -m 755 build/deb/$*
	$(MAKE) install-$* DESTDIR=build/root/$* PREFIX=/usr ZSHDIR=/usr/share/zsh/vendor-completions
	[ ! -d build/root/$*/usr/share/man ] || find build/root/$*/usr/share/man -type f -exec gzip -9n {} +
	packaging/documents '$(DEBVERSION)' $* build/deb/$*
	ARCH=$$($(GO) env GOARCH) VERSION='$(DEBVERSION)' $(NFPM) package -f packaging/$*.yaml -p deb -t $(DEBDIR)/

# Fails where make deb would for lack of nfpm, which has to be fetched once.
nfpm:
	$(NFPM) --version

clean:
	rm -rf build

.PHONY: $(PACKAGES:%=install-%) $(PACKAGES:%=deb-%) install-proxyd-cockpit deb-proxyd-cockpit all build test unprivileged architectures lint compare faults fuzz floods soak handover mutants bench run install uninstall deb nfpm clean
