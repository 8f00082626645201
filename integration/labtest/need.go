package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/lvsd/lvsd/integration/lab"
)

// Need skips a test where a program is not installed; see [Skip].
func Need(tb testing.TB, programs ...string) {
	tb.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			Skip(tb, fmt.Sprintf("needs the program %s", p))
		}
	}
}

// NeedLab skips a test where this process cannot make network namespaces.
func NeedLab(tb testing.TB) {
	tb.Helper()
	if err := lab.Check(); err != nil {
		Skip(tb, fmt.Sprintf("needs network namespaces: %v", err))
	}
}

// NeedTun skips a test where this process cannot open /dev/net/tun.
func NeedTun(tb testing.TB) {
	tb.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		Skip(tb, fmt.Sprintf("needs a tun device: %v", err))
	}
	f.Close()
}

// Skip skips a test because of something that this machine lacks. The reason is a line for the file that the environment
// variable LVSD_SKIPPED names, from which a list is made at the end of all tests. With LVSD_STRICT=1 the test fails
// instead: where everything is said to be installed, nothing may go untested.
func Skip(tb testing.TB, reason string) {
	tb.Helper()
	if path := os.Getenv("LVSD_SKIPPED"); path != "" {
		if err := appendLine(path, reason); err != nil {
			tb.Fatalf("%s; and that cannot be noted in LVSD_SKIPPED: %v", reason, err)
		}
	}
	if os.Getenv("LVSD_STRICT") == "1" {
		tb.Fatalf("%s, and LVSD_STRICT=1 allows no test to be skipped", reason)
	}
	tb.Skip(reason)
}

// appendLine writes in one piece, as the tests of other packages write to the same file.
func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(line + "\n")
	return err
}
