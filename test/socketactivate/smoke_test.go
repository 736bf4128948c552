package socketactivate

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"os/exec"
	"testing"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/streamtest"
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
		server := streamtest.Free(t, streamtest.Path)
		proctest.Start(t, exec.Command("socat", "UNIX-LISTEN:"+server.Text+",fork", "EXEC:cat"))
		proctest.Eventually(t, "socat listens", func() bool { return exists(server.Text) })
		s := activate(t, p, []streamtest.Address{streamtest.Free(t, streamtest.TCP4)}, server.Target())

		large := make([]byte, 48<<10) // 64 KB in base64
		_, _ = rand.Read(large)       // never fails
		for _, text := range []string{"hello", "bye", base64.StdEncoding.EncodeToString(large)} {
			cmd := exec.Command("socat", "-", "TCP:"+s.listen[0].Text)
			cmd.Stdin = bytes.NewBufferString(text)
			stdout, stderr, state := proctest.Output(t, cmd)
			if stdout != text || state != "exit status 0" {
				t.Errorf("%.20q came back as %.20q (%d bytes), %s\n%s", text, stdout, len(stdout), state, stderr)
			}
		}
	})
}
