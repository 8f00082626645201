package labtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/integration/lab"
)

func TestMain(m *testing.M) { Main(m) }

// A fakeTB notes what is done to a test, and runs what would be its cleanups.
type fakeTB struct {
	testing.TB
	skipped, failed bool
	log             strings.Builder
	cleanups        []func()
}

func (f *fakeTB) Helper()          {}
func (f *fakeTB) Failed() bool     { return f.failed }
func (f *fakeTB) Cleanup(c func()) { f.cleanups = append(f.cleanups, c) }
func (f *fakeTB) Skip(args ...any) {
	f.skipped = true
	fmt.Fprint(&f.log, args...)
	runtime.Goexit()
}
func (f *fakeTB) Logf(format string, args ...any) { fmt.Fprintf(&f.log, format+"\n", args...) }
func (f *fakeTB) Error(args ...any)               { f.failed = true; fmt.Fprintln(&f.log, args...) }
func (f *fakeTB) Fatal(args ...any)               { f.Error(args...); runtime.Goexit() }
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.failed = true
	f.Logf(format, args...)
	runtime.Goexit()
}

// run runs a test as package testing does: in a goroutine that may be ended, and then its cleanups.
func (f *fakeTB) run(test func(tb testing.TB)) {
	for next := func() { test(f) }; ; {
		done := make(chan struct{})
		go func() { defer close(done); next() }()
		<-done
		if len(f.cleanups) == 0 {
			return
		}
		next = f.cleanups[len(f.cleanups)-1]
		f.cleanups = f.cleanups[:len(f.cleanups)-1]
	}
}

func TestNeed(t *testing.T) {
	for _, tt := range []struct {
		name             string
		programs         []string
		strict           string
		skipped, failed  bool
		wantLog, wantSum string
	}{
		{"there", []string{"sh", "/bin/sh"}, "", false, false, "", ""},
		{"missing", []string{"sh", "no-such-program"}, "", true, false, "needs the program no-such-program", "needs the program no-such-program\n"},
		{"not strict", []string{"no-such-program"}, "0", true, false, "no-such-program", "needs the program no-such-program\n"},
		{"strict", []string{"no-such-program"}, "1", false, true, "LVSD_STRICT=1", "needs the program no-such-program\n"},
		{"strict and there", []string{"sh"}, "1", false, false, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			summary := filepath.Join(t.TempDir(), "skipped")
			t.Setenv("LVSD_SKIPPED", summary)
			t.Setenv("LVSD_STRICT", tt.strict)
			var f fakeTB
			f.run(func(tb testing.TB) { Need(tb, tt.programs...) })
			if f.skipped != tt.skipped || f.failed != tt.failed || !strings.Contains(f.log.String(), tt.wantLog) {
				t.Errorf("skipped %t, failed %t, log %q", f.skipped, f.failed, f.log.String())
			}
			if got, _ := os.ReadFile(summary); string(got) != tt.wantSum {
				t.Errorf("the list has %q, want %q", got, tt.wantSum)
			}
		})
	}
}

// TestSkipAppends adds to what others wrote, and fails where it cannot.
func TestSkipAppends(t *testing.T) {
	t.Setenv("LVSD_STRICT", "")
	summary := filepath.Join(t.TempDir(), "skipped")
	t.Setenv("LVSD_SKIPPED", summary)
	for range 2 {
		var f fakeTB
		f.run(func(tb testing.TB) { Skip(tb, "a reason") })
	}
	if got, _ := os.ReadFile(summary); string(got) != "a reason\na reason\n" {
		t.Errorf("the list has %q", got)
	}
	t.Setenv("LVSD_SKIPPED", filepath.Join(summary, "below a file"))
	var f fakeTB
	f.run(func(tb testing.TB) { Skip(tb, "a reason") })
	if f.skipped || !f.failed {
		t.Errorf("a reason that could not be noted: skipped %t, failed %t", f.skipped, f.failed)
	}
}

func TestPoll(t *testing.T) {
	calls := 0
	var f fakeTB
	f.run(func(tb testing.TB) {
		Poll(tb, time.Minute, func() error {
			if calls++; calls < 3 {
				return errors.New("not yet")
			}
			return nil
		})
	})
	if f.failed || calls != 3 {
		t.Errorf("failed %t after %d calls", f.failed, calls)
	}
	f = fakeTB{}
	f.run(func(tb testing.TB) { Poll(tb, 0, func() error { return errors.New("never") }) })
	if !f.failed || !strings.Contains(f.log.String(), "never") {
		t.Errorf("failed %t, log %q", f.failed, f.log.String())
	}
}

func TestNew(t *testing.T) {
	NeedLab(t)
	CheckLeaks(t)
	var f fakeTB
	f.run(func(tb testing.TB) {
		n := New(tb, lab.Options{Servers: 1})
		if _, err := n.Clients[0].Ping(t.Context(), n.Servers[0].IPv4); err != nil {
			t.Error(err)
		}
	})
	if f.failed || f.log.Len() > 0 {
		t.Errorf("a test that is fine: failed %t, log %q", f.failed, f.log.String())
	}

	f = fakeTB{}
	f.run(func(tb testing.TB) {
		New(tb, lab.Options{Servers: 1})
		tb.Error("something went wrong")
	})
	for _, want := range []string{"the network:", "== client1", "== server1", "10.0.2.254"} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("no %q in what a failed test logs: %s", want, f.log.String())
		}
	}

	f = fakeTB{}
	f.run(func(tb testing.TB) { New(tb, lab.Options{Servers: 1, MTU: lab.MTU{Servers: 1}}) })
	if !f.failed || !strings.Contains(f.log.String(), "MTU 1") {
		t.Errorf("a network that cannot be: failed %t, log %q", f.failed, f.log.String())
	}
}

// TestStrays finds a program that left its process group, and so outlived its host.
func TestStrays(t *testing.T) {
	NeedLab(t)
	Need(t, "setsid", "sleep")
	CheckLeaks(t)
	h, err := lab.NewHost("alone")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	namespace, err := os.Readlink(h.Path())
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.Command(t.Context(), "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{namespace: "alone"}
	h.Close()
	Poll(t, 10*time.Second, func() error {
		if err := strays(names); err == nil || !strings.Contains(err.Error(), "sleep") {
			return fmt.Errorf("sleep was not found: %v", err)
		}
		return nil
	})
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	Poll(t, 10*time.Second, func() error { return strays(names) })
}

// TestLeaks leaves one thing after another behind.
func TestLeaks(t *testing.T) {
	NeedLab(t)
	h, err := lab.NewHost("alone")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, tt := range []struct {
		name string
		leak func() (end func())
		want string
	}{
		{"nothing", func() func() { return func() {} }, ""},
		{"goroutine", func() func() {
			end := make(chan struct{})
			go func() { <-end }()
			return func() { close(end) }
		}, "unexpected goroutines"},
		{"socket", func() func() {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			return func() { c.Close() }
		}, "-> socket:["},
		{"file", func() func() {
			f, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			return func() { f.Close() }
		}, "-> /dev/null"},
		{"thread", func() func() {
			inside, end := make(chan struct{}), make(chan struct{})
			go h.Do(func() error { close(inside); <-end; return nil })
			<-inside
			return func() { close(end) }
		}, "a thread in another network namespace"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := takeBaseline()
			end := tt.leak()
			defer end()
			if err := before.leaks(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
