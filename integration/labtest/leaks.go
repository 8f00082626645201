package labtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// How long goroutines, threads and file descriptors may take to go away after whatever had them was closed.
const leakTimeout = 10 * time.Second

// Main is for a package's TestMain: it runs the tests and then, if they passed, fails if they left a goroutine, a file
// descriptor, or a thread in another network namespace. It does not return.
func Main(m *testing.M) {
	before := takeBaseline()
	code := m.Run()
	if code == 0 {
		if err := poll(leakTimeout, before.leaks); err != nil {
			fmt.Fprintf(os.Stderr, "FAIL: the tests left something behind:\n%v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// CheckLeaks does for one test what Main does for all: what is there more at the test's end, after its other cleanups,
// than when CheckLeaks was called makes the test fail. It is not for tests that run in parallel with others.
func CheckLeaks(tb testing.TB) {
	before := takeBaseline()
	tb.Cleanup(func() { Poll(tb, leakTimeout, before.leaks) })
}

// A baseline is what is not a leak.
type baseline struct {
	goroutines goleak.Option
	files      map[string]bool
	threads    map[string]bool
}

func takeBaseline() baseline {
	return baseline{goroutines: goleak.IgnoreCurrent(), files: openFiles(), threads: threadsElsewhere()}
}

// leaks returns an error for everything that is not in the baseline.
func (b baseline) leaks() error {
	var errs []error
	if err := goleak.Find(b.goroutines); err != nil {
		errs = append(errs, err)
	}
	for file := range openFiles() {
		if !b.files[file] {
			errs = append(errs, fmt.Errorf("an open file: %s", file))
		}
	}
	for thread := range threadsElsewhere() {
		if !b.threads[thread] {
			errs = append(errs, fmt.Errorf("a thread in another network namespace: %s", thread))
		}
	}
	return errors.Join(errs...)
}

// threadsElsewhere returns the threads that are not in the process's network namespace, each as "path -> namespace". It
// returns none where namespaces cannot be read.
func threadsElsewhere() map[string]bool {
	elsewhere := make(map[string]bool)
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return elsewhere
	}
	threads, _ := filepath.Glob("/proc/self/task/[0-9]*") // the pattern is sound
	for _, thread := range threads {
		if ns, err := os.Readlink(thread + "/ns/net"); err == nil && ns != home {
			elsewhere[thread+" -> "+ns] = true
		}
	}
	return elsewhere
}

// openFiles returns the process's file descriptors, each as "number -> what it is", without those that belong to Go's
// runtime: it makes its poller when it first needs one, and keeps it.
func openFiles() map[string]bool {
	files := make(map[string]bool)
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // closed since; such as that of ReadDir itself
		}
		if target == "anon_inode:[eventpoll]" || strings.HasPrefix(target, "anon_inode:[eventfd") {
			continue
		}
		files[e.Name()+" -> "+target] = true
	}
	return files
}
