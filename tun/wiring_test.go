package tun

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/tun/nstest"
)

// TestApply looks at what Apply made with the ip program, which shares no code with us.
func TestApply(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	if _, err := exec.LookPath("ip"); err != nil {
		nstest.Missing(t, "the ip program of iproute2")
	}
	ip := func(args ...string) []map[string]any {
		var out []byte
		b.director.Do(func() { out = must(exec.Command("ip", append([]string{"-d", "-j"}, args...)...).Output()) })
		var objects []map[string]any
		check(t, json.Unmarshal(out, &objects))
		return objects
	}

	links := ip("link", "show", "dev", testDevice)
	if l := links[0]; l["mtu"] != 65535.0 || l["inet6_addr_gen_mode"] != "none" || !slices.Contains(l["flags"].([]any), any("UP")) {
		t.Errorf("device: %v", l)
	}
	if addrs := ip("address", "show", "dev", testDevice)[0]["addr_info"].([]any); len(addrs) > 0 {
		t.Errorf("device has addresses %v", addrs)
	}

	describe := func(objects []map[string]any, keys ...string) (lines []string) {
		for _, o := range objects {
			if o["protocol"] != "76" {
				continue
			}
			var words []string
			for _, k := range keys {
				words = append(words, fmt.Sprint(o[k]))
			}
			lines = append(lines, strings.Join(words, " "))
		}
		slices.Sort(lines)
		return lines
	}
	same(t, "IPv4 routes", []string{
		"unicast 10.0.1.100 lvs0 main <nil>", "unicast 10.96.0.10 lvs0 main <nil>", "unicast 10.96.0.11 lvs0 main <nil>",
		"unicast default lvs0 100 <nil>",
		"unreachable 10.0.1.100 <nil> main 4196", "unreachable 10.96.0.10 <nil> main 4196", "unreachable 10.96.0.11 <nil> main 4196",
	}, describe(ip("-4", "route", "show", "table", "all"), "type", "dst", "dev", "table", "metric"))
	same(t, "IPv6 routes", []string{
		"unicast default lvs0 100 1024",
		"unicast fd00:1::100 lvs0 main 1024", "unicast fd00:96::10 lvs0 main 1024", "unicast fd00:96::11 lvs0 main 1024",
		"unreachable fd00:1::100 lo main 4196", "unreachable fd00:96::10 lo main 4196", "unreachable fd00:96::11 lo main 4196",
	}, describe(ip("-6", "route", "show", "table", "all"), "type", "dst", "dev", "table", "metric"))
	for _, family := range []string{"-4", "-6"} {
		same(t, "rules "+family, []string{"100 all dr 100"}, describe(ip(family, "rule", "show"), "priority", "src", "iif", "table"))
	}
	same(t, "proxy neighbours", []string{"10.0.1.100 dc", "fd00:1::100 dc"}, describe(ip("neigh", "show", "proxy"), "dst", "dev"))

	b.director.Do(func() {
		for name, want := range map[string]string{
			"ipv4/ip_forward":             "1",
			"ipv6/conf/all/forwarding":    "1",
			"ipv6/conf/lvs0/forwarding":   "1",
			"ipv4/conf/lvs0/accept_local": "1",
			"ipv4/conf/lvs0/rp_filter":    "0",
			"ipv6/conf/all/proxy_ndp":     "1",
			"ipv4/neigh/dc/proxy_delay":   "0",
			"ipv6/neigh/dc/proxy_delay":   "0",
		} {
			if got := strings.TrimSpace(string(must(os.ReadFile("/proc/sys/net/" + name)))); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
	})
}

// recorder collects the events of a namespace.
type recorder struct {
	b      *bed
	socket *nl.NetlinkSocket
	marks  int
}

func (b *bed) record() *recorder {
	b.t.Helper()
	r := &recorder{b: b}
	b.director.Do(func() {
		r.socket = must(nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
			unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF))
	})
	b.t.Cleanup(r.socket.Close)
	return r
}

// events returns what happened since it was called last.
func (r *recorder) events() (lines []string) {
	r.b.t.Helper()
	// A rule of our own marks the place up to which to read.
	r.marks++
	mark := netlink.NewRule()
	mark.Priority, mark.Table = 20000+r.marks, 200
	r.b.director.Do(func() { check(r.b.t, netlink.RuleAdd(mark)) })
	defer r.b.director.Do(func() {
		check(r.b.t, netlink.RuleDel(mark))
		for {
			if _, _, err := r.receive(); err != nil {
				r.b.t.Fatal(err)
			} else {
				return
			}
		}
	})
	for {
		kind, line, err := r.receive()
		if err != nil {
			r.b.t.Fatal(err)
		}
		if kind == unix.RTM_NEWRULE && strings.Contains(line, fmt.Sprintf("priority:%d ", mark.Priority)) {
			slices.Sort(lines)
			return lines
		}
		lines = append(lines, line)
	}
}

// receive returns the next event, which comes alone.
func (r *recorder) receive() (kind uint16, line string, err error) {
	messages, _, err := r.socket.Receive()
	if err != nil {
		return 0, "", err
	}
	m := messages[0]
	verb := map[bool]string{true: "new", false: "del"}
	switch kind = m.Header.Type; kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		header := nl.DeserializeRtMsg(m.Data)
		dst := map[uint8]netip.Addr{unix.AF_INET: netip.IPv4Unspecified(), unix.AF_INET6: netip.IPv6Unspecified()}[header.Family]
		for _, a := range must(nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])) {
			if a.Attr.Type == unix.RTA_DST {
				dst, _ = netip.AddrFromSlice(a.Value)
			}
		}
		line = fmt.Sprintf("%s route %s/%d type %d table %d", verb[kind == unix.RTM_NEWROUTE], dst, header.Dst_len, header.Type, header.Table)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		rule, _ := parseRule(m.Data)
		line = fmt.Sprintf("%s rule priority:%d %s", verb[kind == unix.RTM_NEWRULE], rule.priority, rule)
	default:
		line = fmt.Sprintf("event of type %d", kind)
	}
	return kind, line, nil
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	r := b.record()
	before := b.state()
	b.apply(w, both)
	same(t, "events of the second Apply", nil, r.events())
	same(t, "state after the second Apply", before, b.state())
}

func TestApplyChangesOnlyWhatDiffers(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, Target{VIPs: addrs("10.96.0.10", "10.96.0.11", "fd00:96::10"), RIPs: addrs("10.0.2.2", "fd00:2::2")})
	r := b.record()

	b.apply(w, Target{VIPs: addrs("10.96.0.11", "10.96.0.12", "fd00:96::10"), RIPs: addrs("10.0.2.2", "10.0.2.3", "fd00:2::2")})
	same(t, "events when a VIP changes", []string{
		"del route 10.96.0.10/32 type 1 table 254", "del route 10.96.0.10/32 type 7 table 254",
		"new route 10.96.0.12/32 type 1 table 254", "new route 10.96.0.12/32 type 7 table 254",
	}, r.events())

	b.apply(w, Target{VIPs: addrs("10.96.0.11", "10.96.0.12"), RIPs: addrs("10.0.1.2")})
	same(t, "events when the server moves and IPv6 goes", []string{
		"del route ::/0 type 1 table 100",
		"del route fd00:96::10/128 type 1 table 254", "del route fd00:96::10/128 type 7 table 254",
		"del rule priority:100 rule iif dr lookup 100", "del rule priority:100 rule iif dr lookup 100",
		"new rule priority:100 rule iif dc lookup 100",
	}, slices.DeleteFunc(r.events(), func(line string) bool { return strings.HasPrefix(line, "event of type") }))
}

// TestNarrowing changes an interface from one rule for all to one for each server and back.
func TestNarrowing(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	target := Target{VIPs: addrs("10.96.0.10", "fd00:96::10"), RIPs: slices.Concat(rips4, rips6)}
	b.apply(w, target)
	r := b.record()

	uplink := netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.0.2.4")}
	addRoute(t, b.director, uplink)
	r.events()
	b.apply(w, target)
	same(t, "events after a default route by dr came", []string{
		"del rule priority:100 rule iif dr lookup 100",
		"new rule priority:101 rule iif dr from 10.0.2.2 lookup 100",
		"new rule priority:101 rule iif dr from 10.0.2.3 lookup 100",
		"new rule priority:101 rule iif dr ipproto icmp lookup 100",
	}, r.events())
	b.apply(w, target)
	same(t, "events when nothing changed", nil, r.events())

	b.director.Do(func() { check(t, netlink.RouteDel(&uplink)) })
	r.events()
	b.apply(w, target)
	if got := r.events(); len(got) != 4 || !slices.Contains(got, "new rule priority:100 rule iif dr lookup 100") {
		t.Errorf("events after the default route went: %v", got)
	}
}

func TestRemarks(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	addAddresses(t, b.director, "dr", "10.96.0.10/32")
	w := b.wiring(WiringConfig{})
	remarks, err := w.Apply(Target{VIPs: addrs("10.96.0.10", "10.96.0.11"), RIPs: addrs("10.0.2.1", "10.77.0.1", "10.96.0.11", "10.0.2.2")})
	check(t, err)
	found := make(map[string]string)
	for _, r := range remarks {
		found[r.About] += r.String()
	}
	for about, want := range map[string]string{
		"10.96.0.10": "ip address del 10.96.0.10/32 dev dr",
		"10.0.2.1":   "an address of the director itself",
		"10.77.0.1":  "no route leads to it",
		"10.96.0.11": "it is a VIP",
	} {
		if !strings.Contains(found[about], want) {
			t.Errorf("remark about %s is %q, want %q in it", about, found[about], want)
		}
	}
	if len(remarks) != 4 {
		t.Errorf("%d remarks: %v", len(remarks), remarks)
	}
}

// TestManyAddresses wires for many services, and looks only at what they come to.
func TestManyAddresses(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	target := manyAddresses()
	remarks, err := w.Apply(target)
	check(t, err)
	if len(remarks) > 0 {
		t.Errorf("remarks: %v", remarks[0])
	}
	paths, err := w.Paths()
	check(t, err)
	if len(paths.Owned) != len(target.VIPs) || len(paths.Servers) != len(target.RIPs) {
		t.Errorf("%d prefixes and %d paths", len(paths.Owned), len(paths.Servers))
	}
	check(t, w.Close())
	if left := slices.DeleteFunc(b.state(), func(line string) bool { return !strings.Contains(line, "protocol 76") }); len(left) > 0 {
		t.Errorf("%d objects are left", len(left))
	}
}

// manyAddresses is 10,000 VIPs and 400 RIPs.
func manyAddresses() (t Target) {
	grow := func(list *[]netip.Addr, first string, n int) {
		for a := netip.MustParseAddr(first); n > 0; n-- {
			*list = append(*list, a)
			a = a.Next()
		}
	}
	grow(&t.VIPs, "10.96.0.1", 5000)
	grow(&t.VIPs, "fd00:96::1", 5000)
	grow(&t.RIPs, "10.0.2.2", 200)
	grow(&t.RIPs, "fd00:2::2", 200)
	return t
}

func TestDifference(t *testing.T) {
	set := func(names ...string) map[string]struct{} {
		m := make(map[string]struct{})
		for _, n := range names {
			m[n] = struct{}{}
		}
		return m
	}
	add, remove := difference(set("a", "b", "c"), set("b", "d"), strings.Compare)
	if diff := cmp.Diff([][]string{{"a", "c"}, {"d"}}, [][]string{add, remove}); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkApply(b *testing.B) {
	bed := newBed(b)
	bed.device(testDevice)
	w := bed.wiring(WiringConfig{})
	many := manyAddresses()
	apply := func(t Target) {
		if _, err := w.Apply(t); err != nil {
			b.Fatal(err)
		}
	}
	fewer := Target{VIPs: many.VIPs[1:], RIPs: many.RIPs}
	b.Run("10000 VIPs anew", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			apply(Target{})
			b.StartTimer()
			apply(many)
		}
	})
	b.Run("10000 VIPs again", func(b *testing.B) {
		for b.Loop() {
			apply(many)
		}
	})
	b.Run("one VIP more or less", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			apply([]Target{fewer, many}[i%2])
		}
	})
	b.Run("paths to 400 servers", func(b *testing.B) {
		for b.Loop() {
			if _, err := w.Paths(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
