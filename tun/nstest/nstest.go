// Package nstest gives a test a network namespace of its own.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace in which only the loopback device is up. It ends with the test, or with the last socket,
// process or device descriptor in it.
type NS struct {
	t      testing.TB
	handle netns.NsHandle
}

// New makes a namespace. Where that is not permitted the test is [Missing] something.
func New(t testing.TB) *NS {
	t.Helper()
	ns := &NS{t: t, handle: netns.None()}
	err := onThread(func() (err error) {
		if ns.handle, err = netns.New(); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if errors.Is(err, unix.EPERM) {
		Missing(t, "network namespaces of its own (CAP_SYS_ADMIN and CAP_NET_ADMIN)")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.handle.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// Do runs f in the namespace, in the goroutine of the caller, so that f may end the test. What f opens and the programs
// it starts stay in the namespace; goroutines that it starts are not in it.
func (ns *NS) Do(f func()) {
	ns.t.Helper()
	err := onThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return fmt.Errorf("enter the namespace: %w", err)
		}
		f()
		return nil
	})
	if err != nil {
		ns.t.Fatal(err)
	}
}

// onThread runs f while the goroutine stays on its thread, and brings the thread back to the namespace it was in.
func onThread(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("find out the namespace of this thread: %w", err)
	}
	defer func() {
		// A thread that is lost in another namespace stays locked, and ends with the goroutine.
		if err := netns.Set(home); err == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
	}()
	return f()
}

// Missing ends a test for which this machine lacks something. It is a skipped test whose reason `make test` shows at
// the end, and a failed one if the environment variable LVSD_STRICT is 1, as it is in CI.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("LVSD_STRICT") == "1" {
		t.Fatalf("this test needs %s", what)
	}
	if list := os.Getenv("LVSD_SKIPPED"); list != "" {
		f, err := os.OpenFile(list, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := fmt.Fprintf(f, "%s: needs %s\n", t.Name(), what); err != nil {
			t.Fatal(err)
		}
	}
	t.Skipf("NOT TESTED: this test needs %s", what)
}
