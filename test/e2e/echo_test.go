package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// What systemd's own test suite does to systemd-socket-proxyd: units of one's own with the program in ExecStart=, and socat
// at both ends.
func TestThreeEchoesBySocat(t *testing.T) {
	m := onMachine(t)
	testenv.Need(t, "socat", "socat")
	port := freePort()
	m.write(t, "/etc/systemd/system/echo-backend.service", `[Service]
ExecStart=socat UNIX-LISTEN:/run/echo-backend/socket,fork EXEC:cat
RuntimeDirectory=echo-backend
`)
	m.write(t, "/etc/systemd/system/echo-proxy.socket", "[Socket]\nListenStream="+port+"\n")
	m.write(t, "/etc/systemd/system/echo-proxy.service", `[Unit]
Requires=echo-backend.service
After=echo-backend.service
[Service]
ExecStart=/usr/bin/proxyd /run/echo-backend/socket
PrivateTmp=yes
PrivateNetwork=yes
`)
	m.startUnit(t, "echo-proxy.socket", "echo-proxy.service", "echo-backend.service")

	large := make([]byte, 48<<10) // 64 KB in base64
	_, _ = rand.Read(large)       // never fails
	for _, text := range []string{"hello", "bye", base64.StdEncoding.EncodeToString(large)} {
		client := m.command("socat", "-t20", "-", "TCP:localhost:"+port)
		client.Stdin = strings.NewReader(text)
		echo, err := output(client)
		if err != nil || echo != text {
			t.Errorf("%.20q came back as %.20q (%d bytes), %v", text, echo, len(echo), err)
		}
	}
}
