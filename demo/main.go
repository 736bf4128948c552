// Command demo is make run: it puts proxyd in front of a backend on this machine and says what to try. Where no backend
// is given it is one itself, a web server that answers slowly enough to watch.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const listen = "127.0.0.1:8080"

func main() {
	build := flag.String("build", "build", "the `directory` of proxyd and proxyctl")
	to := flag.String("to", "", "the backend, `HOST:PORT` or a socket; if empty, a small origin of this program")
	flag.Parse()
	if err := run(*build, *to); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(build, to string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	own := to == ""
	if own {
		origin, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer origin.Close()
		to = origin.Addr().String()
		go serve(origin)
	}

	address, private, endBus, err := findBus()
	if err != nil {
		fmt.Printf("No bus, so that proxyctl cannot reach proxyd: %v\n", err)
		address, endBus = "none", func() {}
	}
	defer endBus()

	cmd := exec.CommandContext(ctx, filepath.Join(build, "proxyd"), "--listen="+listen, "--log-level=debug",
		"--drain-timeout=2s", "--name="+instance, "--bus="+address, to)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true,            // Ctrl-C is for this program, which passes it on once
		Pdeathsig: syscall.SIGTERM, // should this program be killed
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Print(hints(own))
	if address != "none" {
		demonstrate(filepath.Join(build, "proxyctl"), address, private)
	}
	if err := cmd.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("proxyd ended: %w", err)
	}
	return nil
}

// demonstrate shows proxyctl with one connection to look at, and says how to go on.
func demonstrate(proxyctl, address string, private bool) {
	for range 200 {
		if isOnBus(address) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if conn, err := net.Dial("tcp", listen); err == nil {
		defer conn.Close()
	}
	show(proxyctl, address, "status", instance)
	show(proxyctl, address, "connections", instance)
	fmt.Println("    proxyctl monitor " + instance + "                   every connection as it comes and goes")
	fmt.Println("    proxyctl set " + instance + " connections-max=1      a limit that holds from now on")
	fmt.Println("    proxyctl drain " + instance + "                     let connections finish, then end")
	where := "It is on the system bus."
	if private {
		where = "It is on a bus of its own: first  export DBUS_SYSTEM_BUS_ADDRESS='" + address + "'"
	}
	fmt.Printf("\n%s\nproxyctl is %s. Ctrl-C ends proxyd.\n\n", where, proxyctl)
}

// serve is the demonstration origin.
func serve(l net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Hello from the origin. It sees a connection from %s.\n", r.RemoteAddr)
	})
	mux.HandleFunc("/clock", func(w http.ResponseWriter, r *http.Request) {
		for range 60 {
			fmt.Fprintln(w, time.Now().Format(time.TimeOnly))
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(time.Second):
			}
		}
	})
	_ = http.Serve(l, mux) // until the listener is closed, at the end
}

func hints(own bool) string {
	if !own {
		return "\nproxyd listens on " + listen + ". Connect to it from a second terminal; Ctrl-C here ends it.\n\n"
	}
	return `
proxyd listens on ` + listen + ` and forwards to a small web server. From a second terminal:

    curl http://` + listen + `/           one short connection
    curl -N http://` + listen + `/clock   one that stays: press Ctrl-C here meanwhile and see it being drained
    ss -tnp 'sport = :8080'                what the connections look like

The end of each connection shows below; Ctrl-C ends proxyd. What runs can be looked at and changed:

`
}
