// Command proxyd_exporter serves Prometheus metrics of the instances of proxyd(8) on a machine. It finds them on the bus each time it is
// asked, and needs no rights for it.
//
//	proxyd_exporter --web.listen-address=localhost:10199
//
// How it listens, with TLS and passwords too, is a matter of github.com/prometheus/exporter-toolkit; collector.go has the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"time"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/version"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	statusFailure = 1
	statusUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "proxyd_exporter:", err)
		if errors.Is(err, errUsage) {
			os.Exit(statusUsage)
		}
		os.Exit(statusFailure)
	}
}

var errUsage = errors.New("proxyd_exporter --help shows what there is")

func usage(err error) error { return fmt.Errorf("%w; %w", err, errUsage) }

type options struct {
	listen    []string
	socket    bool
	config    string
	path, bus string
}

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:     "proxyd_exporter [OPTIONS...]",
		Short:   "Tell Prometheus of the instances of proxyd",
		Long:    "Tells Prometheus of the instances of proxyd on this machine, which it finds on the\nsystem bus. It needs no rights for that.",
		Version: version.String(),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(fmt.Errorf("unexpected argument %q", args[0]))
			}
			return nil
		},
		DisableFlagsInUseLine: true,
		SilenceErrors:         true,
		SilenceUsage:          true,
		RunE:                  func(command *cobra.Command, _ []string) error { return serve(command.Context(), o) },
	}
	c.SetVersionTemplate("proxyd_exporter {{.Version}}\n")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	c.CompletionOptions.DisableDefaultCmd = true
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringArrayVar(&o.listen, "web.listen-address", []string{":10199"}, "Listen at this `ADDRESS`; may be repeated")
	flags.BoolVar(&o.socket, "web.systemd-socket", false, "Listen at sockets that systemd passes in")
	flags.StringVar(&o.config, "web.config.file", "", "Certificates and passwords, in this `FILE`")
	flags.StringVar(&o.path, "web.telemetry-path", "/metrics", "The `PATH` of the metrics")
	flags.StringVar(&o.bus, "bus", "", "The `ADDRESS` of another bus than the system bus")
	return c
}

// shutdownTime is how long answers under way may take at the end.
const shutdownTime = 5 * time.Second

func serve(ctx context.Context, o options) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if o.path == "" || o.path[0] != '/' {
		return usage(fmt.Errorf("--web.telemetry-path=%s: a path begins with /", o.path))
	}
	c := newCollector(client.Destination{Address: o.bus}, log)
	defer c.close()
	handler, err := pages(c, o.path)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() {
		within, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		_ = server.Shutdown(within) // what is left ends with the process
	})()
	flags := &web.FlagConfig{WebListenAddresses: &o.listen, WebSystemdSocket: &o.socket, WebConfigFile: &o.config}
	if err := web.ListenAndServe(server, flags, log); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve: %w", err)
	}
	return nil
}

// pages are the metrics, and a page that leads there.
func pages(c *collector, path string) (http.Handler, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle(path, promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry, EnableOpenMetrics: true}))
	if path == "/" {
		return mux, nil
	}
	landing, err := web.NewLandingPage(web.LandingConfig{
		Name: "proxyd_exporter", Description: "Prometheus exporter for proxyd", Version: version.String(), Profiling: "false",
		Links: []web.LandingLinks{{Address: path, Text: "Metrics"}},
	})
	if err != nil {
		return nil, err
	}
	mux.Handle("/", landing)
	return mux, nil
}
