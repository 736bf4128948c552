package forward_test

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"

	"example.org/socketproxy/internal/forward"
)

// One client is forwarded to a backend; then the Proxy ends, and returns what it has used.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	backend, err := net.Listen("unix", filepath.Join(dir, "backend"))
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close()
	go func() {
		if c, err := backend.Accept(); err == nil {
			_, _ = io.WriteString(c, "Hello, client.\n")
			c.Close()
		}
	}()

	target, err := forward.ParseTarget(backend.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	addr, err := forward.ParseListenAddress(filepath.Join(dir, "proxy"))
	if err != nil {
		log.Fatal(err)
	}
	listener, err := addr.Listen()
	if err != nil {
		log.Fatal(err)
	}
	proxy, err := forward.Start(forward.Config{
		Target: target, Listeners: []*forward.Listener{listener},
	})
	if err != nil {
		log.Fatal(err)
	}

	client, err := net.Dial("unix", filepath.Join(dir, "proxy"))
	if err != nil {
		log.Fatal(err)
	}
	answer, _ := io.ReadAll(client)
	client.Close()
	fmt.Print(string(answer))

	if err := proxy.Exit(forward.DefaultDrainTimeout); err != nil {
		log.Fatal(err)
	}
	<-proxy.Done()
	fmt.Println(proxy.Stats().Accepted, "client was accepted.")
	// Output:
	// Hello, client.
	// 1 client was accepted.
}
