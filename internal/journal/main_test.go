package journal

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	os.Unsetenv("JOURNAL_STREAM") // that of the tests' own service manager
	goleak.VerifyTestMain(m)
}
