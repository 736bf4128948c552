package socketactivate

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"os/exec"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// What systemd's own tests do to systemd-socket-proxyd, with the same tool at both ends.
func TestThreeEchoesBySocat(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "socat", "socat")
	onBoth(t, func(t *testing.T, p program) {
		if p == socketProxyd && p.version < 261 {
			t.Skip("it loses the answer, because socat half-closes; differ_test.go has this")
		}
		server := free(t, path)
		start(t, exec.Command("socat", "UNIX-LISTEN:"+server.text+",fork", "EXEC:cat"))
		eventually(t, "socat listens", func() bool { return exists(server.text) })
		s := activate(t, p, []address{free(t, tcp4)}, server.target())

		large := make([]byte, 48<<10) // 64 KB in base64
		_, _ = rand.Read(large)       // never fails
		for _, text := range []string{"hello", "bye", base64.StdEncoding.EncodeToString(large)} {
			cmd := exec.Command("socat", "-", "TCP:"+s.listen[0].text)
			cmd.Stdin = bytes.NewBufferString(text)
			stdout, stderr, state := output(t, cmd)
			if stdout != text || state != "exit status 0" {
				t.Errorf("%.20q came back as %.20q (%d bytes), %s\n%s", text, stdout, len(stdout), state, stderr)
			}
		}
	})
}
