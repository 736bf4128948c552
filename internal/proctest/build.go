package proctest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Build makes programs of this project, such as "proxyd", as the Makefile does, or with the race detector where race is
// set. It leaves them in dir, in which every user may execute them.
func Build(dir string, race bool, programs ...string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	args, cgo := []string{"build", "-tags", "godbus_no_tcp", "-o", dir + string(filepath.Separator)}, "CGO_ENABLED=0"
	if race {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	for _, program := range programs {
		args = append(args, "example.org/socketproxy/cmd/"+program)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), cgo)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %q: %w\n%s", programs, err, output)
	}
	return nil
}
