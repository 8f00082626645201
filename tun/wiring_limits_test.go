package tun

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/tun/nstest"
)

func TestBadConfigAndTarget(t *testing.T) {
	for _, c := range []WiringConfig{
		{Device: ""}, {Device: "has space"}, {Device: "all"}, {Device: "sixteencharacter"},
		{Device: "lvs0", Table: 254}, {Device: "lvs0", Table: -1}, {Device: "lvs0", Priority: 32766}, {Device: "lvs0", Priority: -5},
	} {
		if w, err := NewWiring(c, nil); err == nil {
			w.Close()
			t.Errorf("%+v was accepted", c)
		}
	}
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	before := b.state()
	for _, bad := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "fe80::1%eth0", "::1", "ff02::1"} {
		if _, err := w.Apply(Target{VIPs: addrs("10.96.0.10", bad)}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("VIP %s: %v", bad, err)
		}
	}
	same(t, "state after refused targets", before, b.state())
	b.apply(w, Target{VIPs: []netip.Addr{netip.MustParseAddr("::ffff:10.96.0.10")}, RIPs: addrs("10.0.2.2", "10.0.2.2")})
	if !slices.Contains(b.state(), `route 10.96.0.10/32 type 1 dev "lvs0" table 254 metric 0 protocol 76`) {
		t.Error("a mapped address is not taken as the IPv4 address it is")
	}
}

// TestIPv6Disabled has new interfaces come without IPv6, as in many containers.
func TestIPv6Disabled(t *testing.T) {
	b := newBed(t)
	b.sysctl("ipv6/conf/default/disable_ipv6", "1")
	b.device(testDevice)
	b.apply(b.wiring(WiringConfig{}), both)
	b.has(`route fd00:96::10/128 type 1 dev "lvs0"`, true)
}

func TestNoIPv6(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	v6 := w.kernel.sysctls.v6
	w.kernel.sysctls.v6 = nil // as where there is no /proc/sys/net/ipv6
	defer v6.Close()
	if _, err := w.Apply(both); err == nil || !strings.Contains(err.Error(), "IPv6") {
		t.Errorf("Apply says %v", err)
	}
	b.apply(w, Target{VIPs: vips4, RIPs: rips4})
}

func TestNoDevice(t *testing.T) {
	b := newBed(t)
	w := b.wiring(WiringConfig{})
	if _, err := w.Apply(both); err == nil || !strings.Contains(err.Error(), testDevice) {
		t.Errorf("without a device, Apply says %v", err)
	}
	b.device(testDevice)
	b.apply(w, both)
}

// withCapabilities runs f in the director's namespace on a thread that has no other capabilities than those given.
func (b *bed) withCapabilities(capabilities uint32, f func()) {
	b.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks, so that the thread ends with the goroutine
		var err error
		defer func() { done <- err }()
		b.director.Do(func() {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var before, now [2]unix.CapUserData
			if err = unix.Capget(&header, &before[0]); err != nil {
				return
			}
			now[0].Permitted, now[1].Permitted = before[0].Permitted, before[1].Permitted // for the way back
			now[0].Effective = capabilities
			if err = unix.Capset(&header, &now[0]); err != nil {
				return
			}
			f()
			err = unix.Capset(&header, &before[0])
		})
	}()
	check(b.t, <-done)
}

func TestUnprivileged(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	before := b.state()
	var w *Wiring
	var survey *Survey
	var err error
	b.withCapabilities(0, func() {
		w = must(NewWiring(WiringConfig{Device: testDevice}, nil))
		survey = must(SurveyNamespace(WiringConfig{Device: testDevice}, both))
		_, err = w.Apply(both)
	})
	if err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("without CAP_NET_ADMIN, Apply says %v", err)
	}
	if survey.NetAdmin || survey.NetRaw || !slices.ContainsFunc(survey.Remarks, func(r Remark) bool { return r.About == "CAP_NET_ADMIN" }) {
		t.Errorf("without CAP_NET_ADMIN, the survey is %+v", survey)
	}
	same(t, "state", before, b.state())
	w.applied = false // nothing was made, and this thread may do what that one could not
	check(t, w.Close())
}

// TestUnprivilegedOnceUp finds the device as it should be, so that the first thing that fails is one of thousands.
func TestUnprivilegedOnceUp(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	b.apply(b.wiring(WiringConfig{Manual: true}), Target{})
	b.sysctl("ipv4/ip_forward", "1")
	b.sysctl("ipv6/conf/all/forwarding", "1")
	var err error
	b.withCapabilities(0, func() {
		w := must(NewWiring(WiringConfig{Device: testDevice}, nil))
		defer w.kernel.close()
		_, err = w.Apply(manyAddresses())
	})
	if err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") || strings.Count(err.Error(), "\n") > 3 {
		t.Errorf("without CAP_NET_ADMIN, Apply says %v", err)
	}
}

// TestOnlyNetAdmin has the one capability that lvsd asks for. The only thing missing is announcements.
func TestOnlyNetAdmin(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	var w *Wiring
	b.withCapabilities(1<<unix.CAP_NET_ADMIN, func() {
		w = must(NewWiring(WiringConfig{Device: testDevice}, nil))
		survey := must(SurveyNamespace(WiringConfig{Device: testDevice}, both))
		if !survey.NetAdmin || survey.NetRaw || !survey.Sysctls {
			t.Errorf("survey: %+v", survey)
		}
		remarks, err := w.Apply(both)
		if err != nil || len(remarks) != 1 || !strings.Contains(remarks[0].Remedy, "CAP_NET_RAW") {
			t.Errorf("Apply: %v %v", remarks, err)
		}
	})
	if n := len(b.objects()); n != 18 {
		t.Errorf("%d objects", n)
	}
	b.withCapabilities(1<<unix.CAP_NET_ADMIN, func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	if lines := b.objects(); len(lines) != 0 {
		t.Errorf("left: %v", lines)
	}
}

// TestReadOnlySysctls runs with a /proc/sys as containers have it.
func TestReadOnlySysctls(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	readOnly := func(f func()) {
		done := make(chan error)
		go func() {
			// The thread gets its own view of the file system, and ends with the goroutine, for it is never unlocked.
			runtime.LockOSThread()
			var err error
			defer func() { done <- err }()
			for _, step := range []func() error{
				func() error { return unix.Unshare(unix.CLONE_NEWNS) },
				func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
				func() error { return unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, "") },
				func() error { return unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "") },
			} {
				if err = step(); err != nil {
					return
				}
			}
			b.director.Do(f)
		}()
		check(t, <-done)
	}
	var remarks []Remark
	var err error
	var survey *Survey
	try := func() {
		var w *Wiring
		if w, err = NewWiring(WiringConfig{Device: testDevice}, nil); err != nil {
			return
		}
		if survey, err = SurveyNamespace(WiringConfig{Device: testDevice}, both); err != nil {
			return
		}
		remarks, err = w.Apply(both)
		if closeErr := w.Close(); closeErr != nil {
			err = closeErr
		}
	}

	readOnly(try)
	for _, want := range []string{"net.ipv4.ip_forward to 1", "/proc/sys/net/ipv4/ip_forward", "read-only", "--sysctl net.ipv4.ip_forward=1",
		"sysctl -w net.ipv6.conf.all.forwarding=1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with a read-only /proc/sys, Apply says nothing of %q: %v", want, err)
		}
	}
	if survey.Sysctls || survey.Forwarding4 || !slices.ContainsFunc(survey.Remarks, func(r Remark) bool { return r.About == "net.ipv4.ip_forward" }) {
		t.Errorf("survey: %+v", survey)
	}

	// With forwarding on, the rest is a remark.
	b.sysctl("ipv4/ip_forward", "1")
	b.sysctl("ipv6/conf/all/forwarding", "1")
	readOnly(try)
	if err != nil {
		t.Errorf("with forwarding on and a read-only /proc/sys, Apply says %v", err)
	}
	about := make([]string, 0, len(remarks))
	for _, r := range remarks {
		about = append(about, r.About)
	}
	slices.Sort(about)
	same(t, "what there are remarks about", []string{"net.ipv4.conf.lvs0.accept_local", "net.ipv4.neigh.dc.proxy_delay",
		"net.ipv6.conf.all.proxy_ndp", "net.ipv6.neigh.dc.proxy_delay"}, about)
	if !slices.ContainsFunc(remarks, func(r Remark) bool {
		return strings.Contains(r.Remedy, "--sysctl net.ipv4.conf.default.accept_local=1")
	}) {
		t.Errorf("no remark tells how to set accept_local: %v", remarks)
	}
}

// TestManual changes nothing but the device, and runs the commands for the rest.
func TestManual(t *testing.T) {
	t.Run("wide rules", func(t *testing.T) { testManual(t, newBed(t)) })
	t.Run("narrow rules", func(t *testing.T) {
		b := newBed(t)
		addRoute(t, b.director, netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.0.2.4")})
		addRoute(t, b.director, netlink.Route{Dst: cidr("::/0"), Gw: net.ParseIP("fd00:2::4")})
		testManual(t, b)
	})
}

func testManual(t *testing.T, b *bed) {
	b.device(testDevice)
	auto := b.wiring(WiringConfig{})
	b.apply(auto, both)
	relevant := func() (lines []string) {
		for _, line := range b.state() {
			if strings.Contains(line, "lvs0") || strings.Contains(line, "table 100 ") || strings.Contains(line, "metric 4196") ||
				strings.Contains(line, "proxy ") || strings.Contains(line, "ip_forward") || strings.Contains(line, "all/forwarding") {
				line = strings.ReplaceAll(line, "protocol 76", "protocol 3") // RTPROT_BOOT, as ip makes them
				lines = append(lines, strings.TrimSuffix(line, "protocol 0"))
			}
		}
		slices.Sort(lines)
		return lines
	}
	want := relevant()
	check(t, auto.Close())
	b.director.Do(func() {
		check(t, netlink.LinkSetDown(linkByName(t, testDevice)))
		check(t, netlink.LinkSetMTU(linkByName(t, testDevice), 1500))
	})
	notDevice := func() []string {
		return slices.DeleteFunc(b.state(), func(line string) bool { return strings.Contains(line, "lvs0") })
	}
	before := notDevice()

	w := b.wiring(WiringConfig{Manual: true})
	b.apply(w, both)
	same(t, "state but for the device", before, notDevice())
	b.director.Do(func() {
		if a := linkByName(t, testDevice).Attrs(); a.MTU != 65535 || a.RawFlags&unix.IFF_UP == 0 {
			t.Errorf("device: MTU %d, flags %#x", a.MTU, a.RawFlags)
		}
	})

	var commands []string
	b.director.Do(func() { commands = must(Commands(WiringConfig{Device: testDevice, Manual: true}, both)) })
	if _, err := exec.LookPath("ip"); err != nil {
		nstest.Missing(t, "the ip program of iproute2")
	}
	if _, err := exec.LookPath("sysctl"); err != nil {
		nstest.Missing(t, "the sysctl program of procps")
	}
	b.director.Do(func() {
		sh := exec.Command("sh", "-e", "-c", strings.Join(commands, "\n"))
		if out, err := sh.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, strings.Join(commands, "\n"))
		}
	})
	sameRules := func(lines []string) []string {
		for i, line := range lines { // ip makes rules without a protocol
			if strings.HasPrefix(line, "rule") {
				lines[i], _, _ = strings.Cut(line, " protocol")
				lines[i] = strings.TrimSpace(lines[i])
			}
		}
		return lines
	}
	same(t, "what the commands make", sameRules(want), sameRules(relevant()))

	paths, err := w.Paths()
	check(t, err)
	if want := []netip.Prefix{}; len(paths.Owned) != len(vips4)+len(vips6) {
		t.Errorf("owned: %v, want %v", paths.Owned, want)
	}
	addRoute(t, b.director, netlink.Route{Dst: cidr("10.97.0.0/24"), LinkIndex: b.index(testDevice), Scope: netlink.SCOPE_LINK})
	addRoute(t, b.director, netlink.Route{Dst: cidr("0.0.0.0/0"), LinkIndex: b.index(testDevice), Scope: netlink.SCOPE_LINK, Priority: 7})
	paths, err = w.Paths()
	check(t, err)
	if !slices.Contains(paths.Owned, netip.MustParsePrefix("10.97.0.0/24")) || slices.Contains(paths.Owned, netip.MustParsePrefix("0.0.0.0/0")) {
		t.Errorf("owned: %v", paths.Owned)
	}
	check(t, w.Close())
	if !slices.ContainsFunc(b.state(), func(line string) bool { return strings.Contains(line, "10.97.0.0/24") }) {
		t.Error("Close took an operator's route away")
	}
}

// TestRouterAdvertisements keeps a default route that the kernel would drop when it becomes a router.
func TestRouterAdvertisements(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	b.advertiseRouter()
	w := b.wiring(WiringConfig{})
	defaultRoute := func() bool {
		return slices.ContainsFunc(b.state(), func(line string) bool {
			return strings.HasPrefix(line, `route ::/0 type 1 dev "dc" table 254`)
		})
	}
	eventually(t, func() error {
		if !defaultRoute() {
			return fmt.Errorf("no default route from a router advertisement")
		}
		return nil
	})
	remarks, err := w.Apply(both)
	check(t, err)
	if !slices.ContainsFunc(remarks, func(r Remark) bool { return r.About == "net.ipv6.conf.dc.accept_ra" }) {
		t.Errorf("remarks: %v", remarks)
	}
	if !defaultRoute() {
		t.Error("the default route is gone")
	}
	check(t, w.Close())
	if got := b.sysctl("ipv6/conf/dc/accept_ra", ""); got != "1" {
		t.Errorf("accept_ra is %s after Close", got)
	}
}

// advertiseRouter sends a router advertisement from the client's end.
func (b *bed) advertiseRouter() {
	b.t.Helper()
	b.client.Do(func() {
		conn := must(net.ListenPacket("ip6:ipv6-icmp", "::"))
		defer conn.Close()
		raw := must(conn.(*net.IPConn).SyscallConn())
		check(b.t, raw.Control(func(fd uintptr) {
			check(b.t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255))
		}))
		// RFC 4861, 4.2: hop limit 64, no flags, lifetime 1800 s. The kernel puts the checksum in.
		advertisement := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
		_, err := conn.WriteTo(advertisement, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "c"})
		check(b.t, err)
	})
}
