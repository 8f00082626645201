package tun

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Commands returns the commands that wire the calling thread's network namespace by hand for a target, as
// [Wiring.Apply] would: what an operator runs beside a director with manual wiring. They use the ip and sysctl programs
// from iproute2 and procps. Lines that begin with # explain. The device need not exist yet; real servers are looked up
// now.
//
// What they make belongs to the operator. Neither Apply nor Close takes it away.
func Commands(c WiringConfig, t Target) ([]string, error) {
	c = c.withDefaults()
	c.Manual = false
	if err := c.validate(); err != nil {
		return nil, err
	}
	t, err := t.normalized()
	if err != nil {
		return nil, err
	}
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	defer k.close()
	defaults, err := k.defaultRoutes()
	if err != nil {
		return nil, err
	}
	f, err := k.facts(c, t, defaults)
	if err != nil {
		return nil, err
	}
	return c.commands(t, f), nil
}

func (c WiringConfig) commands(t Target, f *facts) (lines []string) {
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	// The plan is made as if the device were there and up, whatever it is.
	const imaginary = -1
	present := *f
	present.device = &link{index: imaginary, name: c.Device, up: true, running: true}
	if f.device != nil {
		present.device.index = f.device.index
	}
	p := c.plan(t, &present)

	add("ip link set dev %s mtu %d addrgenmode none up", c.Device, deviceMTU)
	done := make(map[string]bool)
	for _, s := range p.settings {
		if line := fmt.Sprintf("sysctl -w %s=%s", sysctlKey(s.name), s.value); !done[line] {
			add("%s", line)
			done[line] = true
		}
	}
	routes := slices.SortedFunc(maps.Keys(p.routes), compareRoutes)
	for _, r := range routes {
		if r.device == 0 {
			add("ip %sroute replace unreachable %s metric %d", flag6(r.prefix.Addr()), r.prefix, r.metric)
		}
	}
	for _, w := range p.ways {
		how := "all that comes in by it"
		if w.narrow != "" {
			how = "only packets from them and ICMP errors, because " + w.narrow
		}
		add("# %s behind %s: %s goes through the director", plural(len(w.rips), "real server"), w.link.name, how)
		for _, r := range slices.SortedFunc(maps.Keys(p.rules), compareRules) {
			if r.v6 == w.v6 && r.iif == w.link.name {
				add("%s", r.command())
			}
		}
	}
	for _, r := range routes {
		switch {
		case r.device == 0:
		case r.table == unix.RT_TABLE_MAIN:
			add("ip %sroute replace %s dev %s", flag6(r.prefix.Addr()), r.prefix, c.Device)
		default:
			add("ip %sroute replace default dev %s table %d", flag6(r.prefix.Addr()), c.Device, r.table)
		}
	}
	for _, n := range slices.SortedFunc(maps.Keys(p.proxies), compareProxies) {
		add("ip %sneigh replace proxy %s dev %s", flag6(n.addr), n.addr, f.name(n.index))
	}
	for _, r := range p.remarks {
		if r.About != c.Device {
			add("# %s", r)
		}
	}
	return lines
}

func (r rule) command() string {
	line := "ip -4 rule add"
	if r.v6 {
		line = "ip -6 rule add"
	}
	if r.from.IsValid() {
		line += fmt.Sprintf(" from %s", r.from)
	}
	line += " iif " + r.iif
	if r.icmp {
		line += " ipproto " + icmpName(r.v6)
	}
	return fmt.Sprintf("%s lookup %d pref %d", line, r.table, r.priority)
}

// flag6 is what ip needs to know that it is about IPv6 where it cannot tell, and likes to hear elsewhere.
func flag6(a netip.Addr) string {
	if a.Is6() {
		return "-6 "
	}
	return ""
}
