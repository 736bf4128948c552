# proxyd. The targets that people use: build, test, run, bench, install, uninstall, lint, clean.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
BINDIR  ?= $(PREFIX)/bin

# What --version prints.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# Where make run forwards to, HOST:PORT or a socket; a small origin of its own if empty.
TO ?=

# For the benchmark: make bench BENCH="-quick -only short".
BENCH ?=

# For the tests: make test TEST="-run Drain -v".
TEST ?=

all: build

build:
	CGO_ENABLED=0 $(GO) build -tags godbus_no_tcp -trimpath -ldflags '-s -w -X main.version=$(VERSION)' \
		-o build/ ./cmd/proxyd ./cmd/proxyctl

test:
	test/run $(TEST)

lint:
	test/lint

bench: build
	$(GO) run ./bench $(BENCH)

run: build
	$(GO) run ./demo -build build -to '$(TO)'

install: build
	install -D -m 755 build/proxyd $(DESTDIR)$(BINDIR)/proxyd

uninstall:
	rm -f $(DESTDIR)$(BINDIR)/proxyd

clean:
	rm -rf build

.PHONY: all build test lint bench run install uninstall clean
