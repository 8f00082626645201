package tun

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestCloseLeavesNothing(t *testing.T) {
	b := newBed(t)
	before := b.state()
	device := b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	check(t, w.Close())
	check(t, device.Close())
	b.gone(testDevice)
	same(t, "state after Close", before, b.state())
	if _, err := w.Apply(both); err == nil {
		t.Error("Apply after Close succeeded")
	}
	check(t, w.Close())
}

// gone waits for a device to disappear.
func (b *bed) gone(name string) {
	b.t.Helper()
	eventually(b.t, func() (err error) {
		b.director.Do(func() {
			if _, found := netlink.LinkByName(name); found == nil {
				err = fmt.Errorf("%s is still there", name)
			}
		})
		return err
	})
}

// TestCloseKeepsWhatOthersChanged puts back no sysctl that has another value than ours by now.
func TestCloseKeepsWhatOthersChanged(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.sysctl("ipv4/neigh/dc/proxy_delay", "11")
	b.sysctl("ipv4/conf/dr/forwarding", "1") // by itself, without ip_forward
	b.sysctl("ipv4/conf/lo/forwarding", "1")
	b.apply(w, both)
	b.sysctl("ipv4/neigh/dc/proxy_delay", "22")
	b.sysctl("ipv4/conf/lo/forwarding", "0")
	check(t, w.Close())
	for name, want := range map[string]string{
		"ipv4/neigh/dc/proxy_delay": "22", "ipv4/ip_forward": "0", "ipv4/conf/dr/forwarding": "1", "ipv4/conf/dc/forwarding": "0",
		"ipv4/conf/lo/forwarding":  "0",
		"ipv6/conf/all/forwarding": "0", "ipv6/conf/all/proxy_ndp": "0",
	} {
		if got := b.sysctl(name, ""); got != want {
			t.Errorf("%s is %s after Close, want %s", name, got, want)
		}
	}
}

// sysctl reads a sysctl of the director's, and writes it if there is a value.
func (b *bed) sysctl(name, value string) (old string) {
	b.t.Helper()
	path := filepath.Join("/proc/sys/net", name)
	b.director.Do(func() {
		old = strings.TrimSpace(string(must(os.ReadFile(path))))
		if value != "" {
			check(b.t, os.WriteFile(path, []byte(value), 0o644))
		}
	})
	return old
}

// TestCrash ends a wiring without Close and has another one take over, with a smaller target.
func TestCrash(t *testing.T) {
	b := newBed(t)
	first := b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	kill(w, first)
	b.gone(testDevice)
	for _, vip := range slices.Concat(vips4, vips6) {
		b.director.Do(func() {
			if _, err := netlink.RouteGet(vip.AsSlice()); err != unix.EHOSTUNREACH {
				t.Errorf("with the director dead, the route to VIP %s is answered by %v", vip, err)
			}
		})
	}

	left := b.objects()
	check(t, b.wiring(WiringConfig{}).Close())
	same(t, "objects after a Close without Apply", left, b.objects())

	b.device(testDevice)
	r := b.record()
	w = b.wiring(WiringConfig{})
	b.apply(w, both)
	events := slices.DeleteFunc(r.events(), func(line string) bool { return strings.HasPrefix(line, "event of type") })
	same(t, "events of the next Apply", []string{
		"new route ::/0 type 1 table 100",
		"new route fd00:1::100/128 type 1 table 254", "new route fd00:96::10/128 type 1 table 254", "new route fd00:96::11/128 type 1 table 254",
	}, slices.DeleteFunc(events, func(line string) bool { return !strings.Contains(line, "::") || strings.Contains(line, " ff00::") }))
	after := b.state()

	kill(w, b.device("other")) // and the device survives
	w = b.wiring(WiringConfig{})
	b.apply(w, both)
	same(t, "state after the third start", slices.DeleteFunc(after, func(line string) bool { return strings.Contains(line, "accept_local") }),
		slices.DeleteFunc(b.state(), func(line string) bool {
			return strings.Contains(line, "other") || strings.Contains(line, "accept_local")
		}))
	small := Target{VIPs: addrs("10.96.0.10"), RIPs: addrs("10.0.2.2")}
	b.apply(w, small)
	var ours []string
	for _, line := range b.state() {
		if strings.Contains(line, "protocol 76") || strings.HasPrefix(line, "proxy") {
			ours = append(ours, line)
		}
	}
	same(t, "objects for a smaller target", []string{
		`route 0.0.0.0/0 type 1 dev "lvs0" table 100 metric 0 protocol 76`,
		`route 10.96.0.10/32 type 1 dev "lvs0" table 254 metric 0 protocol 76`,
		`route 10.96.0.10/32 type 7 dev "" table 254 metric 4196 protocol 76`,
		`rule 100 family 2 priority 100 from <nil> iif "dr" ipproto 0 table 100 protocol 76`,
	}, ours)
}

// TestLeftoverDevice starts a director whose predecessor used another device, which is still there.
func TestLeftoverDevice(t *testing.T) {
	b := newBed(t)
	old := b.device("lvsold")
	w := b.wiring(WiringConfig{Device: "lvsold"})
	b.apply(w, both)
	close(w.closed) // dead, but the device stays
	w.events.close()
	w.kernel.close()

	b.device(testDevice)
	w = b.wiring(WiringConfig{})
	if _, err := w.Apply(both); err == nil || !strings.Contains(err.Error(), "table 100") || !strings.Contains(err.Error(), "lvsold") {
		t.Fatalf("with a device in use for the same table, Apply says %v", err)
	}
	check(t, unix.IoctlSetInt(int(old.Fd()), unix.TUNSETPERSIST, 1))
	check(t, old.Close()) // which leaves the device and its routes, without carrier
	eventually(t, func() error {
		if lines := b.objects(); !slices.ContainsFunc(lines, containing(`dev "lvsold" table 100`)) {
			return &objectsError{"leftover routes", true, lines}
		}
		_, err := w.Apply(both)
		return err
	})
	lines := b.objects()
	if slices.ContainsFunc(lines, containing("lvsold")) || !slices.ContainsFunc(lines, containing(`route 10.96.0.10/32 type 1 dev "lvs0"`)) {
		t.Errorf("objects:\n%s", strings.Join(lines, "\n"))
	}
}

// TestOthersStay has two directors and an operator in one namespace.
func TestOthersStay(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	b.device("lvs1")
	second := b.wiring(WiringConfig{Device: "lvs1", Table: 1001})
	b.apply(second, Target{VIPs: addrs("10.97.0.10", "fd00:97::10", "10.0.1.101"), RIPs: addrs("10.0.2.4", "fd00:2::4")})
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.98.0.0/24"), Gw: net.ParseIP("10.0.1.2")})
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.98.0.10/32"), LinkIndex: b.index("dc"), Scope: netlink.SCOPE_LINK})
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.99.0.0/24"), Gw: net.ParseIP("10.0.1.2"), Table: 100}) // in our table
	b.director.Do(func() {
		rule := netlink.NewRule()
		rule.Priority, rule.Table, rule.IifName = 50, 300, "dr"
		check(t, netlink.RuleAdd(rule))
		check(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: b.index("dc"), IP: net.ParseIP("10.0.1.200"), Flags: netlink.NTF_PROXY}))
		check(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: b.index("dc"), IP: net.ParseIP("10.0.1.100"), Flags: netlink.NTF_PROXY}))
	})
	first := b.wiring(WiringConfig{Manual: true})
	b.apply(first, Target{}) // so that the device changes no more
	noSysctls := func() []string {
		return slices.DeleteFunc(b.state(), func(line string) bool {
			return strings.HasPrefix(line, "sysctl") || strings.Contains(line, "fe80") || strings.Contains(line, "ff00")
		})
	}
	before := noSysctls()

	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	with := noSysctls()
	for _, line := range before {
		if !slices.Contains(with, line) {
			t.Errorf("Apply removed: %s", line)
		}
	}
	if _, err := w.Apply(Target{VIPs: addrs("10.97.0.10", "fd00:97::10")}); err == nil || strings.Count(err.Error(), "another director's by lvs1") != 2 {
		t.Errorf("VIPs of another director's: %v", err)
	}
	b.apply(w, both)
	if rule := `rule 101 family 2 priority 101 from 10.0.2.2/32 iif "dr" ipproto 0 table 100 protocol 76`; !slices.Contains(with, rule) {
		t.Errorf("real servers behind one interface with another director's: no %s", rule)
	}
	check(t, w.Close())
	same(t, "state after Close", before, noSysctls())
	if got := b.sysctl("ipv4/ip_forward", ""); got != "1" {
		t.Errorf("Close of one director turned forwarding off for the other: %s", got)
	}
	check(t, second.Close())
	if got := b.sysctl("ipv4/ip_forward", ""); got != "0" {
		t.Errorf("Close of the last director, which turned forwarding on, left it %s", got)
	}
}

// TestCloseKeepsSysctlsForOthers closes the director that turned forwarding on, before the other one.
func TestCloseKeepsSysctlsForOthers(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	b.device("lvs1")
	first, second := b.wiring(WiringConfig{}), b.wiring(WiringConfig{Device: "lvs1", Table: 101})
	b.apply(first, Target{VIPs: addrs("10.96.0.10")})
	b.apply(second, Target{VIPs: addrs("10.97.0.10")})
	check(t, first.Close())
	if got := b.sysctl("ipv4/ip_forward", ""); got != "1" {
		t.Errorf("ip_forward is %s while a director still runs", got)
	}
}

func (b *bed) index(name string) (index int) {
	b.t.Helper()
	b.director.Do(func() { index = linkByName(b.t, name).Attrs().Index })
	return index
}

// TestConflicts has routes of the operator's in the way.
func TestConflicts(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	taken := netlink.Route{Dst: cidr("10.96.0.10/32"), LinkIndex: b.index("dc"), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC}
	addRoute(t, b.director, taken)
	w := b.wiring(WiringConfig{})
	_, err := w.Apply(both)
	if err == nil || !strings.Contains(err.Error(), "10.96.0.10/32") || !strings.Contains(err.Error(), "by dc") {
		t.Errorf("with a route to a VIP in the way, Apply says %v", err)
	}
	state := b.state()
	if !slices.Contains(state, `route 10.96.0.11/32 type 1 dev "lvs0" table 254 metric 0 protocol 76`) {
		t.Error("the other VIP has no route")
	}
	if !slices.Contains(state, `route 10.96.0.10/32 type 1 dev "dc" table 254 metric 0 protocol 4`) {
		t.Error("the operator's route is gone")
	}
	b.director.Do(func() { check(t, netlink.RouteDel(&taken)) })
	b.apply(w, both)

	// One that does what ours would is as good, and stays.
	b.director.Do(func() {
		check(t, netlink.RouteDel(&netlink.Route{Dst: cidr("10.96.0.10/32"), LinkIndex: b.index(testDevice), Scope: netlink.SCOPE_LINK}))
	})
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.96.0.10/32"), LinkIndex: b.index(testDevice), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC})
	b.apply(w, both)
	check(t, w.Close())
	if !slices.Contains(b.state(), `route 10.96.0.10/32 type 1 dev "lvs0" table 254 metric 0 protocol 4`) {
		t.Error("Close took the operator's route away")
	}
}
