package tun

import (
	"fmt"

	"net/netip"
	"slices"
	"strings"
	"testing"
)

// lab is a namespace that is not there: eth0 to the world, eth1 to real servers, lvs0.
func lab() *facts {
	ethernet := func(index int, name string) *link {
		return &link{index: index, name: name, mtu: 1500, up: true, running: true, asks: true}
	}
	f := &facts{
		links:     map[int]*link{2: ethernet(2, "eth0"), 3: ethernet(3, "eth1"), 9: {index: 9, name: "lvs0", mtu: 65535, up: true, running: true}},
		ways:      make(map[netip.Addr]way),
		accepting: make(map[int]bool),
	}
	f.device = f.links[9]
	f.own(2, "192.168.1.2/24", "2001:db8:1::2/64")
	f.own(3, "10.0.2.1/24", "fd00:2::1/64")
	return f
}

func (f *facts) own(index int, prefixes ...string) {
	for _, text := range prefixes {
		p := netip.MustParsePrefix(text)
		f.addresses = append(f.addresses, address{p.Addr(), index, p.Masked()})
	}
	slices.SortFunc(f.addresses, func(a, b address) int { return a.addr.Compare(b.addr) })
}

// printed lists what a plan has, one line for each object and setting.
func printed(p *plan, f *facts) (lines []string) {
	for r := range p.routes {
		lines = append(lines, r.String())
	}
	for r := range p.rules {
		lines = append(lines, fmt.Sprintf("%d %s", r.priority, r))
	}
	for n := range p.proxies {
		lines = append(lines, proxyName{n, f}.String())
	}
	for _, s := range p.settings {
		lines = append(lines, sysctlKey(s.name)+"="+s.value)
	}
	for _, r := range p.remarks {
		lines = append(lines, "remark about "+r.About)
	}
	slices.Sort(lines)
	return lines
}

var (
	in4 = []string{"route 172.20.0.10/32", "unreachable route 172.20.0.10/32", "net.ipv4.ip_forward=1", "net.ipv4.conf.lvs0.accept_local=1",
		"net.ipv4.conf.lvs0.forwarding=1", "net.ipv4.conf.lvs0.rp_filter=0"}
	in6 = []string{"route fd00:96::10/128", "unreachable route fd00:96::10/128", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.lvs0.forwarding=1",
		"net.ipv6.conf.lvs0.disable_ipv6=0"}
)

func TestPlan(t *testing.T) {
	behind := func(index int, gateway string) way {
		w := way{index: index, source: netip.MustParseAddr("10.0.2.1")}
		if gateway != "" {
			w.gateway = netip.MustParseAddr(gateway)
		}
		return w
	}
	vip4, vip6 := "172.20.0.10", "fd00:96::10"
	for _, c := range []struct {
		name  string
		vips  string
		rips  map[string]way
		facts func(*facts)
		want  []string
	}{
		{name: "nothing to do"},
		{name: "no VIPs, only servers", rips: map[string]way{"10.0.2.2": behind(3, "")}},
		{name: "no servers", vips: vip4, want: in4},
		{
			name: "gateway with two sides", vips: vip4, rips: map[string]way{"10.0.2.2": behind(3, ""), "10.0.2.3": behind(3, "")},
			facts: func(f *facts) { f.defaults = []defaultRoute{{index: 2}} },
			want:  append([]string{"100 rule iif eth1 lookup 100", "route 0.0.0.0/0 in table 100"}, in4...),
		},
		{
			name: "gateway with two sides, IPv6", vips: vip6, rips: map[string]way{"fd00:2::2": behind(3, "")},
			facts: func(f *facts) { f.defaults = []defaultRoute{{index: 2, v6: true}} },
			want:  append([]string{"100 rule iif eth1 lookup 100", "route ::/0 in table 100"}, in6...),
		},
		{
			name: "one interface for all", vips: vip4, rips: map[string]way{"192.168.1.7": behind(2, ""), "10.9.0.1": behind(2, "192.168.1.1")},
			facts: func(f *facts) { f.defaults = []defaultRoute{{index: 2}} },
			want: append([]string{"101 rule iif eth0 from 192.168.1.7 lookup 100", "101 rule iif eth0 from 10.9.0.1 lookup 100",
				"101 rule iif eth0 ipproto icmp lookup 100", "route 0.0.0.0/0 in table 100"}, in4...),
		},
		{
			name: "the default route of the other family does not count", vips: vip4, rips: map[string]way{"192.168.1.7": behind(2, "")},
			facts: func(f *facts) { f.defaults = []defaultRoute{{index: 2, v6: true}} },
			want:  append([]string{"100 rule iif eth0 lookup 100", "route 0.0.0.0/0 in table 100"}, in4...),
		},
		{
			name: "servers on both sides", vips: vip6, rips: map[string]way{"fd00:2::2": behind(3, ""), "2001:db8:1::7": behind(2, "")},
			facts: func(f *facts) { f.defaults = []defaultRoute{{index: 2, v6: true}} },
			want: append([]string{"100 rule iif eth1 lookup 100", "101 rule iif eth0 from 2001:db8:1::7 lookup 100",
				"101 rule iif eth0 ipproto ipv6-icmp lookup 100", "route ::/0 in table 100"}, in6...),
		},
		{
			name: "a VIP in the servers' subnet", vips: "10.0.2.100", rips: map[string]way{"10.0.2.2": behind(3, "")},
			want: append([]string{"101 rule iif eth1 from 10.0.2.2 lookup 100", "101 rule iif eth1 ipproto icmp lookup 100",
				"route 0.0.0.0/0 in table 100", "route 10.0.2.100/32", "unreachable route 10.0.2.100/32",
				"proxy neighbour 10.0.2.100 on eth1", "net.ipv4.neigh.eth1.proxy_delay=0"}, in4[2:]...),
		},
		{
			name: "another director behind the same interface", vips: vip4, rips: map[string]way{"10.0.2.2": behind(3, "")},
			facts: func(f *facts) {
				f.rules = []foundRule{{rule: rule{iif: "eth1", table: 101}, protocol: RouteProtocol}}
			},
			want: append([]string{"101 rule iif eth1 from 10.0.2.2 lookup 100", "101 rule iif eth1 ipproto icmp lookup 100",
				"route 0.0.0.0/0 in table 100"}, in4...),
		},
		{
			name: "our own and an operator's rules say nothing", vips: vip4, rips: map[string]way{"10.0.2.2": behind(3, "")},
			facts: func(f *facts) {
				f.rules = []foundRule{{rule: rule{iif: "eth1", table: 100}, protocol: RouteProtocol}, {rule: rule{iif: "eth1", table: 101}, protocol: 4}}
			},
			want: append([]string{"100 rule iif eth1 lookup 100", "route 0.0.0.0/0 in table 100"}, in4...),
		},
		{
			name: "a VIP in two nested subnets", vips: "2001:db8:1::100",
			facts: func(f *facts) { f.own(3, "2001:db8::7/32") },
			want: append([]string{"route 2001:db8:1::100/128", "unreachable route 2001:db8:1::100/128", "proxy neighbour 2001:db8:1::100 on eth0",
				"proxy neighbour 2001:db8:1::100 on eth1", "net.ipv6.conf.all.proxy_ndp=1", "net.ipv6.conf.all.proxy_ndp=1",
				"net.ipv6.neigh.eth0.proxy_delay=0", "net.ipv6.neigh.eth1.proxy_delay=0"}, in6[2:]...),
		},
		{
			name: "a VIP in the subnet of an interface without neighbours, of one that is down, and of a single address", vips: "10.0.2.100",
			facts: func(f *facts) {
				f.links[3].asks = false
				f.links[2].up = false
				f.own(2, "10.0.2.9/25", "10.0.2.100/32")
				f.addresses = slices.DeleteFunc(f.addresses, func(a address) bool { return a.addr.String() == "10.0.2.100" })
			},
			want: append([]string{"route 10.0.2.100/32", "unreachable route 10.0.2.100/32"}, in4[2:]...),
		},
		{
			name: "a VIP that is an address of the host", vips: "192.168.1.2",
			want: append([]string{"route 192.168.1.2/32", "unreachable route 192.168.1.2/32", "remark about 192.168.1.2"}, in4[2:]...),
		},
		{
			name: "servers that have no way, are local, or lie behind the device", vips: vip4,
			rips: map[string]way{"10.1.0.1": {problem: "no"}, "10.0.2.1": {index: 1, local: true}, "10.97.0.1": behind(9, "")},
			want: append([]string{"remark about 10.1.0.1", "remark about 10.0.2.1", "remark about 10.97.0.1"}, in4...),
		},
		{
			name: "device down", vips: vip4, rips: map[string]way{"10.0.2.2": behind(3, "")},
			facts: func(f *facts) { f.device.up = false },
			want:  append([]string{"100 rule iif eth1 lookup 100", "remark about lvs0"}, in4[1:]...),
		},
		{
			name: "device with an address", vips: vip4,
			facts: func(f *facts) { f.own(9, "172.20.0.1/24") },
			want:  append([]string{"remark about lvs0"}, in4...),
		},
		{
			name: "strict reverse path filter for all", vips: vip4,
			facts: func(f *facts) { f.strict = true },
			want:  in4[:5],
		},
		{
			name: "default route by router advertisement", vips: vip6,
			facts: func(f *facts) {
				f.defaults = []defaultRoute{{index: 2, v6: true, advertised: true}, {index: 3, v6: true, advertised: true}}
				f.accepting[2] = true
			},
			want: append([]string{"net.ipv6.conf.eth0.accept_ra=2"}, in6...),
		},
		{
			name: "many servers that need a rule each", vips: vip4,
			rips: func() map[string]way {
				m := make(map[string]way)
				for i := range manyNarrowRules {
					m[fmt.Sprintf("192.168.1.%d", 10+i)] = behind(2, "")
				}
				return m
			}(),
			facts: func(f *facts) { f.defaults = []defaultRoute{{index: 2}} },
			want: func() []string {
				lines := append([]string{"101 rule iif eth0 ipproto icmp lookup 100", "route 0.0.0.0/0 in table 100", "remark about eth0"}, in4...)
				for i := range manyNarrowRules {
					lines = append(lines, fmt.Sprintf("101 rule iif eth0 from 192.168.1.%d lookup 100", 10+i))
				}
				return lines
			}(),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := lab()
			if c.facts != nil {
				c.facts(f)
			}
			var target Target
			if c.vips != "" {
				target.VIPs = addrs(strings.Fields(c.vips)...)
			}
			for rip, w := range c.rips {
				f.ways[netip.MustParseAddr(rip)] = w
				target.RIPs = append(target.RIPs, netip.MustParseAddr(rip))
			}
			config := WiringConfig{Device: "lvs0"}.withDefaults()
			same(t, "plan", slices.Sorted(slices.Values(c.want)), printed(config.plan(target, f), f))
		})
	}
}

// TestPlanOfAVLANInterface has a dot in a name, which the sysctl program takes with slashes.
func TestPlanOfAVLANInterface(t *testing.T) {
	f := lab()
	f.links[2].name = "eth0.100"
	config := WiringConfig{Device: "lvs0"}.withDefaults()
	lines := config.commands(Target{VIPs: addrs("192.168.1.100")}, f)
	if !slices.Contains(lines, "sysctl -w net/ipv4/neigh/eth0.100/proxy_delay=0") {
		t.Error(lines)
	}
}

func TestBackstopMetricsDiffer(t *testing.T) {
	seen := make(map[int]int)
	for _, table := range []int{1, 100, 101, 252, 256, 4096, maxTable} {
		metric := WiringConfig{Table: table}.backstopMetric()
		if other, dup := seen[metric]; dup || metric <= 1024 || metric > 1<<32-2 {
			t.Errorf("table %d has metric %d, like table %d", table, metric, other)
		}
		seen[metric] = table
	}
}
