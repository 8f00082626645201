package tun

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// How changes are followed: one netlink socket brings events of all kinds. A goroutine reads them, drops those that
// cannot matter and those that our own changes made, and notes what kind of change the others are. The goroutine that
// called Watch then looks at the namespace as a whole, which is one way for all cases, also for events that were lost
// because there were too many. While there are no events, nothing happens but one look every safetyInterval.

const (
	// settleTime is how long events are collected before they are looked at.
	settleTime = 20 * time.Millisecond
	// restRatio bounds the share of time that goes into looking when events never end, as on a router: the next look
	// comes no sooner than this many times what the last one took.
	restRatio = 5
	// safetyInterval is for what makes no event: a path MTU that the kernel learned or forgot, a removed proxy
	// neighbour, some sysctls.
	safetyInterval = time.Minute
	// probeInterval is how often a next hop that failed is asked for. The kernel itself asks three times, a second each.
	probeInterval = 3 * time.Second
	// retryInterval is when something that failed is tried again.
	retryInterval = 5 * time.Second

	eventBuffer = 4 << 20
)

// change is what kinds of things have changed, as bits.
type change uint32

const (
	changedNamespace change = 1 << iota // anything that facts or objects may depend on
	changedDefaults                     // a default route
	changedNeighbour                    // the set of failed neighbours
	changedProbe                        // a failed neighbour is to be asked for at once
	changedUnknown                      // events were lost

	changedAll = changedNamespace | changedDefaults | changedNeighbour
)

// events reads netlink events and notes what they are about.
type events struct {
	socket *nl.NetlinkSocket
	noted  atomic.Uint32
	wake   chan struct{}
	filter atomic.Pointer[interest]

	mu     sync.Mutex
	failed map[hop]struct{} // neighbours
}

// interest is what tells events that matter from others.
type interest struct {
	table     int
	device    int
	vips      map[netip.Addr]struct{}
	rips      []netip.Addr // sorted
	wanted    objects
	addresses map[address]struct{}
	hops      map[hop]struct{} // of real servers
}

func subscribe() (*events, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_NETCONF,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return nil, fmt.Errorf("subscribe to network events: %w", err)
	}
	if socket.SetReceiveBufferSize(eventBuffer, true) != nil {
		_ = socket.SetReceiveBufferSize(eventBuffer, false) // what is lost is noticed
	}
	e := &events{socket: socket, wake: make(chan struct{}, 1), failed: make(map[hop]struct{})}
	e.filter.Store(new(interest))
	return e, nil
}

// close ends read.
func (e *events) close() { e.socket.Close() }

// note remembers a change and wakes the watcher.
func (e *events) note(c change) {
	e.noted.Or(uint32(c))
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// follow says what to look for from now on.
func (e *events) follow(c WiringConfig, t Target, f *facts, p *plan) {
	i := &interest{table: c.Table, rips: t.RIPs, vips: make(map[netip.Addr]struct{}, len(t.VIPs)),
		addresses: make(map[address]struct{}), hops: make(map[hop]struct{})}
	if f.device != nil {
		i.device = f.device.index
	}
	if !c.Manual {
		i.wanted = p.objects
	}
	for _, vip := range t.VIPs {
		i.vips[vip] = struct{}{}
	}
	for _, a := range f.addresses {
		i.addresses[a] = struct{}{}
	}
	for rip, w := range f.ways {
		if w.problem == "" {
			i.hops[w.nextHop(rip)] = struct{}{}
		}
	}
	e.filter.Store(i)
}

// read reads events until the socket is closed.
func (e *events) read() error {
	for {
		messages, from, err := e.socket.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			e.note(changedUnknown)
		case errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.EAGAIN):
			return nil // it was closed; the library says so by EAGAIN if it was waiting, and there is no other cause for that
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("read network events: %w", err)
		case from.Pid == nl.PidKernel:
			filter := e.filter.Load()
			for _, m := range messages {
				if c := e.classify(filter, m); c != 0 {
					e.note(c)
				}
			}
		}
	}
}

// classify tells what an event changes.
func (e *events) classify(i *interest, m syscall.NetlinkMessage) change {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return i.classifyRoute(m)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		r, ok := parseRule(m.Data)
		if ok && r.protocol == RouteProtocol && r.table == i.table {
			_, wanted := i.wanted.rules[r.rule]
			if wanted == (m.Header.Type == unix.RTM_NEWRULE) {
				return 0 // our own doing
			}
		}
		return changedNamespace
	case unix.RTM_NEWADDR:
		if a, ok := parseAddress(m.Data); ok {
			if _, known := i.addresses[a]; known {
				return 0 // its lifetime was extended
			}
		}
		return changedNamespace
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if n, ok := parseNeighbour(m.Data); ok {
			return e.neighbour(i, n, m.Header.Type == unix.RTM_DELNEIGH)
		}
		return 0
	default: // links, addresses that go, settings
		return changedNamespace | changedDefaults
	}
}

func (i *interest) classifyRoute(m syscall.NetlinkMessage) change {
	if len(m.Data) < unix.SizeofRtMsg {
		return 0
	}
	header := nl.DeserializeRtMsg(m.Data)
	if header.Flags&unix.RTM_F_CLONED != 0 {
		return 0
	}
	attributes, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return changedNamespace
	}
	addr := netip.IPv4Unspecified()
	if header.Family == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	r := route{table: int(header.Table)}
	for _, a := range attributes {
		switch a.Attr.Type {
		case unix.RTA_DST:
			addr, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_OIF:
			r.device = number(a.Value)
		case unix.RTA_TABLE:
			r.table = number(a.Value)
		case unix.RTA_PRIORITY:
			r.metric = number(a.Value)
		}
	}
	r.prefix = netip.PrefixFrom(addr, int(header.Dst_len))
	if header.Type == unix.RTN_UNREACHABLE {
		r.device = 0
	}
	if header.Protocol == RouteProtocol {
		_, wanted := i.wanted.routes[r]
		switch {
		case wanted == (m.Header.Type == unix.RTM_NEWROUTE):
			return 0 // our own doing
		case wanted:
			return changedNamespace
		}
	}
	_, vip := i.vips[addr]
	switch {
	case r.prefix.Bits() <= 1:
		return changedNamespace | changedDefaults
	case vip && r.prefix.IsSingleIP(), r.device != 0 && r.device == i.device, i.covers(r.prefix):
		return changedNamespace
	}
	return 0
}

// covers tells whether a prefix has a real server in it.
func (i *interest) covers(p netip.Prefix) bool {
	at, _ := slices.BinarySearchFunc(i.rips, p.Masked().Addr(), netip.Addr.Compare)
	return at < len(i.rips) && p.Contains(i.rips[at])
}

func parseAddress(m []byte) (address, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return address{}, false
	}
	header := nl.DeserializeIfAddrmsg(m)
	attributes, err := nl.ParseRouteAttr(m[unix.SizeofIfAddrmsg:])
	if err != nil {
		return address{}, false
	}
	// IFA_ADDRESS is the peer's address if there is one, and IFA_LOCAL then the own one.
	a := address{index: int(header.Index)}
	for _, attribute := range attributes {
		switch attribute.Attr.Type {
		case unix.IFA_ADDRESS:
			peer, _ := netip.AddrFromSlice(attribute.Value)
			a.subnet = netip.PrefixFrom(peer, int(header.Prefixlen)).Masked()
			if !a.addr.IsValid() {
				a.addr = peer
			}
		case unix.IFA_LOCAL:
			a.addr, _ = netip.AddrFromSlice(attribute.Value)
		}
	}
	return a, a.addr.IsValid()
}

const nudValid = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_PROBE | netlink.NUD_STALE | netlink.NUD_DELAY

// neighbour keeps the set of failed neighbours.
func (e *events) neighbour(i *interest, n neighbour, deleted bool) change {
	h := hop{n.addr, n.index}
	_, used := i.hops[h]
	e.mu.Lock()
	defer e.mu.Unlock()
	_, was := e.failed[h]
	switch {
	case deleted && was && used:
		return changedProbe // an entry that is gone says nothing about the neighbour
	case deleted || n.state&nudValid != 0:
		delete(e.failed, h)
		if !was {
			return 0
		}
	case n.state == netlink.NUD_FAILED && !was:
		e.failed[h] = struct{}{}
	default:
		return 0
	}
	if used {
		return changedNeighbour
	}
	return 0
}

// failing returns the failed neighbours that are next hops of real servers.
func (e *events) failing() map[hop]struct{} {
	i := e.filter.Load()
	e.mu.Lock()
	defer e.mu.Unlock()
	failing := make(map[hop]struct{})
	for h := range e.failed {
		if _, used := i.hops[h]; used {
			failing[h] = struct{}{}
		}
	}
	return failing
}

// reload reads all failed neighbours anew.
func (e *events) reload(k *kernel) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	failed, err := k.failedNeighbours()
	if err == nil {
		e.failed = failed
	}
	return err
}

// prune forgets neighbours on interfaces that are gone.
func (e *events) prune(links map[int]*link) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.failed, func(h hop, _ struct{}) bool { return links[h.index] == nil })
}

// Watch follows the namespace and reports the paths at once and then whenever they change, until the context is done or
// the wiring is closed; then it returns nil. It also puts back what somebody took away, such as the routes that are lost
// when the device is set down and up again. It does not set up a device that somebody set down; only one that is new
// under the configured name.
//
// Watch may be called once. It calls back from the goroutine that called it, and waits for that.
func (w *Wiring) Watch(ctx context.Context, report func(Paths)) error {
	if w.watched.Swap(true) {
		return errors.New("the wiring is watched already")
	}
	var readErr error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		readErr = w.events.read()
	}()
	defer func() {
		w.events.close()
		<-ended
	}()

	var reported *Paths
	timer := time.NewTimer(0)
	defer timer.Stop()
	for noted := changedAll | changedUnknown; ; {
		begun := time.Now()
		paths, err := w.look(noted, begun)
		if err != nil {
			return nil // closed
		}
		if reported == nil || !paths.equal(*reported) {
			report(paths)
			reported = &paths
		}
		rest := max(settleTime, restRatio*time.Since(begun))
		timer.Reset(time.Until(w.due()))
		select {
		case <-ctx.Done():
			return nil
		case <-w.closed:
			return nil
		case <-ended:
			if w.isClosed() {
				return nil
			}
			return readErr
		case <-timer.C:
			noted = change(w.events.noted.Swap(0))
			if !time.Now().Before(w.lookAgain) {
				noted |= changedAll
			}
		case <-w.events.wake:
			timer.Reset(rest)
			select {
			case <-ctx.Done():
				return nil
			case <-w.closed:
				return nil
			case <-timer.C:
			}
			noted = change(w.events.noted.Swap(0))
		}
	}
}

// due is when there is something to do without an event.
func (w *Wiring) due() time.Time {
	if w.probeAgain.IsZero() || w.lookAgain.Before(w.probeAgain) {
		return w.lookAgain
	}
	return w.probeAgain
}

// look does what the changes that were noted call for, and returns the paths as they are then. Its error says that the
// wiring is closed; others are logged, and what failed is tried again.
func (w *Wiring) look(noted change, now time.Time) (Paths, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isClosed() {
		return Paths{}, errClosed
	}
	const all = changedNamespace | changedDefaults | changedUnknown
	var err error
	if noted&changedUnknown != 0 {
		err = w.events.reload(w.kernel)
	}
	if noted&all != 0 || w.last == nil {
		changed, refreshErr := w.refresh(noted&(changedDefaults|changedUnknown) != 0)
		if changed > 0 {
			w.log.Info("the network namespace was wired anew", "changes", changed)
		}
		err = errors.Join(err, refreshErr)
		w.lookAgain = now.Add(safetyInterval)
	}
	if err != nil {
		w.lookAgain = now.Add(retryInterval)
		if message := err.Error(); message != w.complaint {
			w.log.Error("the network namespace cannot be wired; it is tried again", "error", err, "every", retryInterval)
		}
		w.complaint = err.Error()
	} else if noted&all != 0 {
		w.complaint = ""
	}
	if w.last == nil {
		return Paths{}, nil
	}
	w.events.prune(w.last.links)
	failing := w.events.failing()
	switch {
	case len(failing) == 0:
		w.probeAgain = time.Time{}
	case noted&(changedProbe|changedNamespace) != 0, !w.probeAgain.IsZero() && !now.Before(w.probeAgain):
		for h := range failing {
			// An error, such as that the interface is down, is told by the path.
			_ = w.kernel.probe(h)
		}
		fallthrough
	case w.probeAgain.IsZero():
		w.probeAgain = now.Add(probeInterval)
	}
	return w.kernel.paths(w.config, w.target, w.last, failing, w.owned, w.remarks), nil
}
