package tun

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Whose an object of lvsd's protocol is, when several directors share a namespace:
//
//   - a rule, and a route in a table of its own, tell it by the number of the table;
//   - an unreachable route in the main table tells it by its metric, see WiringConfig.backstopMetric;
//   - a route into a device in the main table, and a proxy neighbour, cannot tell it themselves. They are of the director
//     that has an unreachable route for the same address. That route is made first and removed last, and no event in
//     the life of a device takes it away, so it also tells what a director left that died.

// owned returns the objects in the kernel that a director made, or one before it with the same table.
func (k *kernel) owned(c WiringConfig, f *facts) (objects, error) {
	have := newObjects()
	proxies, err := k.listProxies() // before the routes, which another director adds before its proxies
	if err != nil {
		return have, err
	}
	routes, err := k.listRoutes(netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return have, err
	}
	mine, others := make(map[netip.Addr]bool), make(map[netip.Addr]bool)
	var leading []route
	for _, m := range routes {
		prefix, ok := prefixOf(m.Dst)
		if !ok {
			continue
		}
		r := route{prefix, m.Table, m.Priority, m.LinkIndex}
		if m.Type == unix.RTN_UNREACHABLE {
			r.device = 0 // the kernel says that of lo for IPv6
		}
		switch {
		case r.table == c.Table, r.table == unix.RT_TABLE_MAIN && r.device == 0 && r.metric == c.backstopMetric():
			have.routes[r] = struct{}{}
			mine[prefix.Addr()] = true
		case r.table != unix.RT_TABLE_MAIN:
		case r.device == 0:
			others[prefix.Addr()] = true
		default:
			leading = append(leading, r)
		}
	}
	for _, r := range leading {
		if vip := r.prefix.Addr(); f.device != nil && r.device == f.device.index || mine[vip] && !others[vip] {
			have.routes[r] = struct{}{}
		}
	}
	for p, ours := range proxies {
		if ours && !others[p.addr] {
			have.proxies[p] = struct{}{}
		}
	}
	for _, r := range f.rules {
		if r.protocol == RouteProtocol && r.table == c.Table {
			have.rules[r.rule] = struct{}{}
		}
	}
	return have, nil
}

// others returns the tables of other directors that have something in the namespace.
func (k *kernel) others(c WiringConfig, f *facts) (map[int]bool, error) {
	tables := make(map[int]bool)
	for _, r := range f.rules {
		if r.protocol == RouteProtocol && r.table != c.Table {
			tables[r.table] = true
		}
	}
	routes, err := k.listRoutes(netlink.Route{Protocol: RouteProtocol, Type: unix.RTN_UNREACHABLE},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
	for _, r := range routes {
		if table := r.Priority - (WiringConfig{}).backstopMetric(); table != c.Table {
			tables[table] = true
		}
	}
	return tables, err
}

// wire makes the objects that a director owns be those that it wants, and returns how many it added or removed. What is
// new comes first and what is old goes last, so that traffic that both carry is not interrupted.
func (k *kernel) wire(c WiringConfig, f *facts, want objects) (changed int, remarks []Remark, err error) {
	have, err := k.owned(c, f)
	if err != nil {
		return 0, nil, err
	}
	// A director whose table another one uses would take its routes away, and lose its own.
	for r := range have.routes {
		if l := f.links[r.device]; l != nil && r.table == c.Table && l.running && (f.device == nil || l.index != f.device.index) {
			return 0, nil, fmt.Errorf("another director uses routing table %d, for the device %s: give each director a table of its own, "+
				"or remove %s if nothing uses it any more", c.Table, l.name, l.name)
		}
	}
	var failures failures
	do := func(what string, object fmt.Stringer, change func() error) {
		if failures.hopeless() {
			return
		}
		switch err := change(); {
		case err == nil:
			changed++
		case err != errAsGood:
			failures.add(fmt.Errorf("%s %s: %w", what, object, err))
		}
	}
	addRoutes, removeRoutes := difference(want.routes, have.routes, compareRoutes)
	addRules, removeRules := difference(want.rules, have.rules, compareRules)
	addProxies, removeProxies := difference(want.proxies, have.proxies, compareProxies)

	ours := func(r route) bool { return r.device == 0 || f.device != nil && r.device == f.device.index }
	backstop := func(r route) bool { return r.device == 0 }
	reply := func(r route) bool { return r.device != 0 && r.table == c.Table }
	leading := func(r route) bool { return r.device != 0 && r.table != c.Table }
	taken := k.takenBy(f)
	add := func(kind func(route) bool) {
		for _, r := range addRoutes {
			if !kind(r) {
				continue
			}
			do("add", r, func() error {
				err := k.addRoute(r)
				if errors.Is(err, unix.EEXIST) {
					return taken(r)
				}
				return err
			})
		}
	}
	remove := func(kind func(route) bool) {
		for _, r := range removeRoutes {
			if kind(r) {
				do("remove", r, func() error { return k.deleteRoute(r) })
			}
		}
	}

	// A route to the same place by another device, which a director left that died, stands in the way of the new one.
	remove(func(r route) bool { return !ours(r) })
	add(backstop)
	add(reply)
	for _, r := range addRules {
		as := func(x foundRule) bool { return x.rule == r && !x.selects }
		if !slices.ContainsFunc(f.rules, as) { // or one of the operator's does as well
			do("add", r, func() error { return k.addRule(r) })
		}
	}
	add(leading)
	var silent error
	if len(addProxies) > 0 {
		all, err := k.listProxies()
		if err != nil {
			failures.add(err)
			addProxies = nil
		}
		for _, p := range addProxies {
			if _, found := all[p]; found { // one of the operator's does as well
				continue
			}
			do("add", proxyName{p, f}, func() error {
				if err := k.addProxy(p); err != nil {
					return err
				}
				if err := k.announce.announce(p.addr, f.links[p.index], f.linkLocal(p.index)); err != nil {
					silent = err
				}
				return nil
			})
		}
	}

	for _, p := range removeProxies {
		do("remove", proxyName{p, f}, func() error { return k.deleteProxy(p) })
	}
	remove(func(r route) bool { return ours(r) && leading(r) })
	for _, r := range removeRules {
		do("remove", r, func() error { return k.deleteRule(r) })
	}
	remove(func(r route) bool { return ours(r) && reply(r) })
	remove(backstop)
	if silent != nil {
		remarks = []Remark{{
			About:   "announcements",
			Problem: fmt.Sprintf("hosts are not told that a VIP in their subnet is here now (%v); one that moved is found when they ask again", silent),
			Remedy:  "give lvsd CAP_NET_RAW if VIPs move between directors",
		}}
	}
	return changed, remarks, failures.err()
}

// errAsGood says that something is there already that does as well, and is the operator's.
var errAsGood = errors.New("there is one already")

// takenBy returns a function that looks what is in the way of a route of ours. It lists the routes once.
func (k *kernel) takenBy(f *facts) func(route) error {
	var foreign map[route]netlink.Route
	return func(r route) error {
		if foreign == nil {
			foreign = make(map[route]netlink.Route)
			for _, table := range []int{unix.RT_TABLE_MAIN, r.table} {
				routes, err := k.listRoutes(netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
				if err != nil {
					return err
				}
				for _, m := range routes {
					if prefix, ok := prefixOf(m.Dst); ok {
						foreign[route{prefix, m.Table, m.Priority, 0}] = m
					}
				}
			}
		}
		key := r
		key.device = 0
		m, ok := foreign[key]
		switch {
		case !ok:
			return errors.New("there is such a route already, and it is changing now")
		case m.LinkIndex == r.device && m.Type == unix.RTN_UNICAST || r.device == 0 && m.Type == unix.RTN_UNREACHABLE:
			return errAsGood
		}
		whose, what := fmt.Sprintf("of protocol %s", m.Protocol), "remove it, or use another address or table"
		if m.Protocol == RouteProtocol {
			whose, what = "of another director's", "let only one of them serve it"
		}
		if m.LinkIndex != 0 {
			whose += " by " + f.name(m.LinkIndex)
		}
		return fmt.Errorf("there is a route %s already: %s", whose, what)
	}
}

// difference returns what is to be added to have, and removed from it, to become want.
func difference[T comparable](want, have map[T]struct{}, compare func(a, b T) int) (add, remove []T) {
	missing := func(of, from map[T]struct{}) (out []T) {
		for o := range maps.Keys(of) {
			if _, ok := from[o]; !ok {
				out = append(out, o)
			}
		}
		slices.SortFunc(out, compare)
		return out
	}
	return missing(want, have), missing(have, want)
}

func compareRoutes(a, b route) int {
	return cmp.Or(cmp.Compare(a.table, b.table), a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.metric, b.metric))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func compareRules(a, b rule) int {
	return cmp.Or(cmp.Compare(btoi(a.v6), btoi(b.v6)), cmp.Compare(a.iif, b.iif), a.from.Compare(b.from))
}

func compareProxies(a, b proxy) int {
	return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.index, b.index))
}

// proxyName prints a proxy neighbour with the name of its interface.
type proxyName struct {
	proxy
	*facts
}

func (p proxyName) String() string {
	return fmt.Sprintf("proxy neighbour %s on %s", p.addr, p.name(p.index))
}

// failures collects errors, of which there can be one for each of thousands of addresses.
type failures struct {
	errs []error
	more int
	stop bool
}

func (f *failures) add(err error) {
	const most = 5
	f.stop = f.stop || errors.Is(err, unix.EPERM)
	if len(f.errs) < most {
		f.errs = append(f.errs, permission(err))
	} else {
		f.more++
	}
}

// hopeless tells that nothing else will succeed either.
func (f *failures) hopeless() bool { return f.stop }

func (f *failures) err() error {
	if f.more > 0 {
		f.errs = append(f.errs, fmt.Errorf("and %s like that", plural(f.more, "more error")))
		f.more = 0
	}
	return errors.Join(f.errs...)
}
