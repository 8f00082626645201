package nstest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/lvsd/lvsd/tun/nstest"
)

// here returns what identifies the namespace of the calling thread.
func here(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDoEntersAndLeaves(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home := here(t)
	one, two := nstest.New(t), nstest.New(t)
	var inOne, inTwo, inOneAgain string
	one.Do(func() {
		inOne = here(t)
		two.Do(func() { inTwo = here(t) })
		inOneAgain = here(t)
	})
	if inOne == home || inTwo == home || inOne == inTwo {
		t.Errorf("outside is %s, the one namespace %s, the other %s", home, inOne, inTwo)
	}
	if inOneAgain != inOne || here(t) != home {
		t.Errorf("came back to %s and %s, not to %s and %s", inOneAgain, here(t), inOne, home)
	}
	one.Do(func() {
		links, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			if up := link.Attrs().RawFlags&1 != 0; up != (link.Attrs().Name == "lo") {
				t.Errorf("%s is up: %v", link.Attrs().Name, up)
			}
		}
	})
	func() {
		defer func() { _ = recover() }()
		one.Do(func() { panic("out of here") })
	}()
	if here(t) != home {
		t.Errorf("a panic left the thread in %s", here(t))
	}
}

// verdict is a testing.TB that remembers how a test ended.
type verdict struct {
	testing.TB
	said string
}

func (v *verdict) Skipf(format string, args ...any) { v.end("skip: "+format, args...) }

func (v *verdict) Fatalf(format string, args ...any) { v.end("fail: "+format, args...) }

func (v *verdict) end(format string, args ...any) {
	v.said = fmt.Sprintf(format, args...)
	panic(v.said)
}

func TestMissing(t *testing.T) {
	list := filepath.Join(t.TempDir(), "skipped")
	t.Setenv("LVSD_SKIPPED", list)
	for _, c := range []struct{ strict, said, noted string }{
		{"1", "fail: ", ""},
		{"", "skip: ", "TestMissing: needs a flying carpet\n"},
	} {
		t.Setenv("LVSD_STRICT", c.strict)
		v := &verdict{TB: t}
		func() {
			defer func() { _ = recover() }() // where a test would end
			nstest.Missing(v, "a flying carpet")
		}()
		if !strings.HasPrefix(v.said, c.said) || !strings.Contains(v.said, "a flying carpet") {
			t.Errorf("LVSD_STRICT=%s: %q", c.strict, v.said)
		}
		if noted, _ := os.ReadFile(list); string(noted) != c.noted {
			t.Errorf("LVSD_STRICT=%s: noted %q", c.strict, noted)
		}
	}
}
