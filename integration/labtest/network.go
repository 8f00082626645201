package labtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lvsd/lvsd/integration/lab"
)

// New builds a network for a test and closes it at the test's end, after having logged its state if the test failed. A
// program that is then still inside one of its namespaces makes the test fail.
func New(tb testing.TB, options lab.Options) *lab.Network {
	tb.Helper()
	NeedLab(tb)
	n, err := lab.New(options)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			var state strings.Builder
			n.Dump(&state)
			tb.Logf("the network:\n%s", state.String())
		}
		namespaces := make(map[string]string)
		for _, h := range n.Hosts() {
			if target, err := os.Readlink(h.Path()); err == nil {
				namespaces[target] = h.Name
			}
		}
		if err := n.Close(); err != nil {
			tb.Error(err)
		}
		Poll(tb, 5*time.Second, func() error { return strays(namespaces) })
	})
	return n
}

// strays returns an error if a thread of any process is in one of these namespaces.
func strays(namespaces map[string]string) error {
	threads, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil {
		return err
	}
	var errs []error
	for _, thread := range threads {
		target, err := os.Readlink(thread + "/ns/net")
		if err != nil {
			continue // it is gone, or another user's
		}
		if host, ok := namespaces[target]; ok {
			name, _ := os.ReadFile(thread + "/comm")
			errs = append(errs, fmt.Errorf("%s is still in the namespace of %s: %s", thread, host, strings.TrimSpace(string(name))))
		}
	}
	return errors.Join(errs...)
}

// Poll calls f until it returns nil. If that takes longer than the timeout, the test fails with f's last error.
func Poll(tb testing.TB, timeout time.Duration, f func() error) {
	tb.Helper()
	if err := poll(timeout, f); err != nil {
		tb.Fatalf("after %v: %v", timeout, err)
	}
}

func poll(timeout time.Duration, f func() error) error {
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}
