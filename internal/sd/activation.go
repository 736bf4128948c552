package sd

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstPassedFD is SD_LISTEN_FDS_START of sd_listen_fds(3).
const firstPassedFD = 3

// PassedFiles returns the sockets that the service manager passed in, under their names from FileDescriptorName=, and
// takes them out of the environment, as sd_listen_fds_with_names(3) does.
//
// It stands in for go-systemd's activation, which brings crypto/tls along: 0.9 MB of program and 0.8 MB of memory.
func PassedFiles() ([]*os.File, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, variable := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(variable) // fails only for invalid names
	}
	passed, err := passedNames(pid, count, names)
	files := make([]*os.File, len(passed))
	for i, name := range passed {
		fd := firstPassedFD + i
		unix.CloseOnExec(fd)
		files[i] = os.NewFile(uintptr(fd), name)
	}
	return files, err
}

// passedNames has a name for each socket that the variables announce; none if they are meant for another process, or nothing
// was passed.
func passedNames(pid, count, names string) ([]string, error) {
	if pid != strconv.Itoa(os.Getpid()) || count == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(count, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS=%s is not a number of them", count)
	}
	given := strings.Split(names, ":")
	passed := make([]string, n)
	for i := range passed {
		passed[i] = "unknown" // systemd's word for it
		if i < len(given) && given[i] != "" {
			passed[i] = given[i]
		}
	}
	return passed, nil
}
