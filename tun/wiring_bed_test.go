package tun

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/tun/nstest"
)

// bed is a director's namespace between one of a client and one of a server:
//
//	client  c ---- dc  director  dr ---- s  server
//	 10.0.1.2   10.0.1.1    10.0.2.1   10.0.2.2 ... 10.0.2.4
//	fd00:1::2   fd00:1::1   fd00:2::1  fd00:2::2 ... fd00:2::4
//
// In the director's namespace is a tun device lvs0 that the test reads.
type bed struct {
	t                        testing.TB
	director, client, server *nstest.NS
	log                      *lockedBuffer
}

const testDevice = "lvs0"

var (
	vips4 = addrs("10.96.0.10", "10.96.0.11", "10.0.1.100") // the last is in the client's subnet
	vips6 = addrs("fd00:96::10", "fd00:96::11", "fd00:1::100")
	rips4 = addrs("10.0.2.2", "10.0.2.3")
	rips6 = addrs("fd00:2::2", "fd00:2::3")
	both  = Target{VIPs: slices.Concat(vips4, vips6), RIPs: slices.Concat(rips4, rips6)}
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t, director: nstest.New(t), client: nstest.New(t), server: nstest.New(t), log: new(lockedBuffer)}
	for _, ns := range []*nstest.NS{b.director, b.client, b.server} {
		ns.Do(func() { // no duplicate address detection, which takes its time
			check(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644))
		})
	}
	b.connect("dc", b.client, "c")
	b.connect("dr", b.server, "s")
	addAddresses(t, b.director, "dc", "10.0.1.1/24", "fd00:1::1/64")
	addAddresses(t, b.director, "dr", "10.0.2.1/24", "fd00:2::1/64")
	addAddresses(t, b.client, "c", "10.0.1.2/24", "fd00:1::2/64")
	addAddresses(t, b.server, "s", "10.0.2.2/24", "10.0.2.3/24", "10.0.2.4/24", "fd00:2::2/64", "fd00:2::3/64", "fd00:2::4/64")
	addRoute(t, b.client, netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.0.1.1")})
	addRoute(t, b.client, netlink.Route{Dst: cidr("::/0"), Gw: net.ParseIP("fd00:1::1")})
	addRoute(t, b.server, netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.0.2.1")})
	addRoute(t, b.server, netlink.Route{Dst: cidr("::/0"), Gw: net.ParseIP("fd00:2::1")})
	b.settle()
	return b
}

// connect puts a veth pair between the director and another namespace.
func (b *bed) connect(name string, peer *nstest.NS, peerName string) {
	b.t.Helper()
	var target netns.NsHandle
	peer.Do(func() { target = must(netns.Get()) })
	defer target.Close()
	b.director.Do(func() {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peerName, PeerNamespace: netlink.NsFd(target)}
		check(b.t, netlink.LinkAdd(veth))
		check(b.t, netlink.LinkSetUp(veth))
	})
	peer.Do(func() { check(b.t, netlink.LinkSetUp(linkByName(b.t, peerName))) })
}

// settle waits until what the kernel does by itself after links come up is done: link-local addresses, and the routes to
// them.
func (b *bed) settle() {
	b.t.Helper()
	for _, ns := range []*nstest.NS{b.director, b.client, b.server} {
		eventually(b.t, func() error {
			var pending error
			ns.Do(func() {
				for _, l := range must(netlink.LinkList()) {
					found := l.Type() != "veth"
					for _, a := range must(netlink.AddrList(l, netlink.FAMILY_V6)) {
						found = found || a.IP.IsLinkLocalUnicast()
						if a.Flags&unix.IFA_F_TENTATIVE != 0 {
							pending = fmt.Errorf("%s is tentative", a.IP)
						}
					}
					if !found {
						pending = fmt.Errorf("%s has no link-local address", l.Attrs().Name)
					}
				}
			})
			return pending
		})
	}
}

// device makes a tun device that lives as long as its file is open.
func (b *bed) device(name string) *os.File {
	b.t.Helper()
	var file *os.File
	b.director.Do(func() {
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI,
			Queues: 1, NonPersist: true}
		check(b.t, netlink.LinkAdd(tap))
		file = tap.Fds[0]
	})
	b.t.Cleanup(func() { file.Close() })
	return file
}

// wiring opens a wiring in the director's namespace. It is closed at the end of the test at the latest.
func (b *bed) wiring(c WiringConfig) *Wiring {
	b.t.Helper()
	if c.Device == "" {
		c.Device = testDevice
	}
	var w *Wiring
	b.director.Do(func() { w = must(NewWiring(c, slog.New(slog.NewTextHandler(b.log, nil)))) })
	b.t.Cleanup(func() {
		if err := w.Close(); err != nil {
			b.t.Errorf("close: %v", err)
		}
	})
	return w
}

// apply applies a target about which there is nothing to remark.
func (b *bed) apply(w *Wiring, target Target) {
	b.t.Helper()
	remarks, err := w.Apply(target)
	check(b.t, err)
	if len(remarks) > 0 {
		b.t.Errorf("remarks: %v", remarks)
	}
}

// kill ends a wiring as the end of the process would.
func kill(w *Wiring, device *os.File) {
	close(w.closed)
	w.events.close()
	w.kernel.close()
	device.Close()
}

// watch runs Watch until the test ends, and returns a function that waits for paths that fulfil a condition.
func (b *bed) watch(w *Wiring) func(what string, ok func(Paths) bool) Paths {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var last *Paths
	ended := make(chan error, 1)
	go func() {
		ended <- w.Watch(ctx, func(p Paths) {
			mu.Lock()
			defer mu.Unlock()
			last = &p
		})
	}()
	b.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Errorf("Watch: %v", err)
		}
		if b.t.Failed() {
			b.t.Logf("log:\n%s", b.log)
		}
	})
	return func(what string, ok func(Paths) bool) (paths Paths) {
		b.t.Helper()
		eventually(b.t, func() error {
			mu.Lock()
			defer mu.Unlock()
			if last == nil {
				return fmt.Errorf("%s: no paths were reported", what)
			}
			if paths = *last; !ok(paths) {
				return fmt.Errorf("%s: last reported paths: %+v", what, paths)
			}
			return nil
		})
		return paths
	}
}

// eventually polls until there is no error any more.
func eventually(t testing.TB, poll func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := poll()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must is for calls that fail only if the test is wrong.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func cidr(text string) *net.IPNet { return ipNet(netip.MustParsePrefix(text)) }

func linkByName(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func addAddresses(t testing.TB, ns *nstest.NS, link string, prefixes ...string) {
	t.Helper()
	ns.Do(func() {
		for _, p := range prefixes {
			prefix := netip.MustParsePrefix(p)
			a := &netlink.Addr{IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}}
			if prefix.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			check(t, netlink.AddrAdd(linkByName(t, link), a))
		}
	})
}

func addRoute(t testing.TB, ns *nstest.NS, r netlink.Route) {
	t.Helper()
	ns.Do(func() { check(t, netlink.RouteAdd(&r)) })
}

// state is all that a director may change in a namespace, one line for each object.
func (b *bed) state() []string { b.t.Helper(); return b.stateOf(true) }

func (b *bed) stateOf(withSysctls bool) (lines []string) {
	b.t.Helper()
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	b.director.Do(func() {
		links := must(netlink.LinkList())
		names := map[int]string{}
		for _, l := range links {
			a := l.Attrs()
			names[a.Index] = a.Name
			add("link %s mtu %d flags %#x", a.Name, a.MTU, a.RawFlags)
			for _, addr := range must(netlink.AddrList(l, netlink.FAMILY_ALL)) {
				add("address %s on %s", addr.IPNet, a.Name)
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			for _, r := range must(netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)) {
				add("route %s type %d dev %q table %d metric %d protocol %d", r.Dst, r.Type, names[r.LinkIndex], r.Table, r.Priority, r.Protocol)
			}
			for _, r := range must(netlink.RuleList(family)) {
				add("rule %d family %d priority %d from %s iif %q ipproto %d table %d protocol %d", r.Priority, family, r.Priority, r.Src, r.IifName, r.IPProto, r.Table, r.Protocol)
			}
			for _, n := range must(netlink.NeighProxyList(0, family)) {
				add("proxy %s on %s", n.IP, names[n.LinkIndex])
			}
		}
		if !withSysctls {
			return
		}
		for _, root := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6"} {
			check(b.t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				text, err := os.ReadFile(path)
				if err == nil {
					add("sysctl %s = %s", path, strings.TrimSpace(string(text)))
				}
				if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EIO) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EINVAL) {
					return nil // it is only for writing, or its interface has gone
				}
				return err
			}))
		}
	})
	slices.Sort(lines)
	return lines
}

// same compares two states.
func same(t testing.TB, what string, want, got []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// lockedBuffer is a log that a test can read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// objects is the part of state that has our protocol, and the proxy neighbours.
func (b *bed) objects() []string {
	b.t.Helper()
	return slices.DeleteFunc(b.stateOf(false), func(line string) bool {
		return !strings.Contains(line, "protocol 76") && !strings.HasPrefix(line, "proxy")
	})
}

func containing(text string) func(string) bool {
	return func(line string) bool { return strings.Contains(line, text) }
}

// objectsError is an error about objects.
type objectsError struct {
	what  string
	want  bool
	lines []string
}

func (m *objectsError) Error() string {
	return fmt.Sprintf("%s: want %t; there are:\n%s", m.what, m.want, strings.Join(m.lines, "\n"))
}
