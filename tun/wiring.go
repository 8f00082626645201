package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of a [WiringConfig], and its bounds.
const (
	DefaultTable    = 100
	DefaultPriority = 100

	maxTable    = 1<<31 - 1
	maxPriority = 32764 // with the next, just before the main table, which would answer first otherwise
)

// RouteProtocol is the number under which lvsd makes its routes, rules and proxy neighbours ("proto 76" in the output of
// the ip program). It is free in the kernel's rtnetlink.h and in iproute2's rt_protos.
const RouteProtocol = 76

// deviceMTU is the most that a tun device takes. Nothing is dropped on the way into the director, which answers itself
// for the MTU of the way on.
const deviceMTU = 65535

// WiringConfig says how a network namespace is wired to a director.
type WiringConfig struct {
	// Device is the name of the tun device. It must exist when Apply is called.
	Device string
	// Manual leaves routes, rules, neighbours and sysctls to the operator. Only the device is set up.
	Manual bool
	// Table is the routing table for the way back from real servers; DefaultTable if 0. It is also what tells the
	// objects of this director from those of another in the same namespace, so each needs its own.
	Table int
	// Priority is that of the rules that lead into the table; DefaultPriority if 0. Rules for single real servers have
	// the next one.
	Priority int
}

func (c WiringConfig) withDefaults() WiringConfig {
	if c.Table == 0 {
		c.Table = DefaultTable
	}
	if c.Priority == 0 {
		c.Priority = DefaultPriority
	}
	return c
}

func (c WiringConfig) validate() error {
	var errs []error
	if err := (DeviceConfig{Name: c.Device}).check(); err != nil {
		errs = append(errs, fmt.Errorf("tun device %q: %w", c.Device, err))
	} else if slices.Contains([]string{"lo", "all", "default"}, c.Device) { // the last two mean others as sysctls
		errs = append(errs, fmt.Errorf("%q cannot be the name of the tun device", c.Device))
	}
	if c.Table < 1 || c.Table > maxTable || c.Table >= 253 && c.Table <= 255 {
		errs = append(errs, fmt.Errorf("routing table %d cannot be used: it must be 1 to %d and none of default (253), main (254), local (255)",
			c.Table, maxTable))
	}
	if c.Priority < 1 || c.Priority > maxPriority {
		errs = append(errs, fmt.Errorf("rule priority %d cannot be used: it must be 1 to %d, between the local and the main table",
			c.Priority, maxPriority))
	}
	return errors.Join(errs...)
}

// backstopMetric is the metric of the routes that hold a VIP when the device is gone. It is larger than those of all
// ordinary routes (0 for IPv4, 1024 for IPv6), and tells the director's table, so that the VIPs of a director that died
// can be told from those of another.
func (c WiringConfig) backstopMetric() int { return 4096 + c.Table }

// narrowPriority is the priority of rules with a source address. It only has to differ from that of rules without.
func (c WiringConfig) narrowPriority() int { return c.Priority + 1 }

// Target is what a namespace is wired for.
type Target struct {
	VIPs []netip.Addr // of virtual services
	RIPs []netip.Addr // of real servers
}

// normalized returns the target sorted and without duplicates, or what is wrong with it.
func (t Target) normalized() (Target, error) {
	var errs []error
	clean := func(what string, addrs []netip.Addr) []netip.Addr {
		out := make([]netip.Addr, 0, len(addrs))
		for _, a := range addrs {
			a = a.Unmap()
			if !a.IsGlobalUnicast() || a.Zone() != "" {
				errs = append(errs, fmt.Errorf("%s %s is not a unicast address that can be routed", what, a))
				continue
			}
			out = append(out, a)
		}
		slices.SortFunc(out, netip.Addr.Compare)
		return slices.Compact(out)
	}
	t = Target{VIPs: clean("VIP", t.VIPs), RIPs: clean("RIP", t.RIPs)}
	return t, errors.Join(errs...)
}

// Remark is something that is not as it should be, or that the operator may want to know. It is not an error: all that
// does not depend on it is in place.
type Remark struct {
	About   string // the address, interface, file or sysctl concerned
	Problem string
	Remedy  string // what to do about it, often a command; may be empty
}

func (r Remark) String() string {
	s := r.About + ": " + r.Problem
	if r.Remedy != "" {
		s += "; " + r.Remedy
	}
	return s
}

// Wiring makes a network namespace lead packets through a director's tun device, and takes all of it away again. Its
// methods may be called concurrently. They work in the namespace in which NewWiring was called, whatever thread calls.
type Wiring struct {
	config WiringConfig
	log    *slog.Logger
	kernel *kernel
	events *events

	watched atomic.Bool
	closed  chan struct{}

	mu       sync.Mutex // for all below, and for changing the namespace
	target   Target
	applied  bool           // Apply was called, so there is something to look after and to take away
	prepared int            // index of the device that was set up
	defaults []defaultRoute // as last read; to read them takes long on a router with many routes
	last     *facts         // as last gathered
	owned    []netip.Prefix // with them
	remarks  []Remark       // with them

	// For the goroutine that watches.
	lookAgain, probeAgain time.Time // when, without an event; probeAgain is zero if nothing is to be probed
	complaint             string    // the error that was logged last
}

// NewWiring opens what is needed to look after the calling thread's network namespace. It changes nothing yet. The log,
// which may be nil, gets what Watch did by itself.
func NewWiring(c WiringConfig, log *slog.Logger) (*Wiring, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	ev, err := subscribe()
	if err != nil {
		k.close()
		return nil, err
	}
	return &Wiring{config: c, log: log, kernel: k, events: ev, closed: make(chan struct{})}, nil
}

// Apply makes the namespace fit a target. It adds what is missing, removes what this director, or one before it with the
// same table, made and is no longer wanted, and touches nothing else. What stays is not interrupted.
//
// What a real server's address lacks now (no route, the director's own address) is a remark, and is looked at again by
// Watch. After an error the rest is still in place as far as it could be, and Apply can be called again.
func (w *Wiring) Apply(t Target) ([]Remark, error) {
	t, err := t.normalized()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isClosed() {
		return nil, errClosed
	}
	if w.kernel.sysctls.v6 == nil && slices.ContainsFunc(t.VIPs, netip.Addr.Is6) {
		return nil, errors.New("there are IPv6 VIPs, but the kernel has no IPv6: start it without ipv6.disable=1, or serve IPv4 only")
	}
	w.target, w.applied = t, true
	w.prepared = 0
	_, err = w.refresh(true)
	w.events.note(changedAll)
	return slices.Clone(w.remarks), err
}

var errClosed = errors.New("the wiring is closed")

func (w *Wiring) isClosed() bool {
	select {
	case <-w.closed:
		return true
	default:
		return false
	}
}

// refresh looks at the namespace, makes it fit the target, and tells how many things it had to change for that. Its
// caller holds the lock.
func (w *Wiring) refresh(withDefaults bool) (changed int, err error) {
	k, c := w.kernel, w.config
	if withDefaults || w.defaults == nil {
		if w.defaults, err = k.defaultRoutes(); err != nil {
			return 0, err
		}
	}
	f, err := k.facts(c, w.target, w.defaults)
	if err != nil {
		return 0, err
	}
	if w.applied {
		if f.device == nil {
			err = fmt.Errorf("there is no network interface %s: the tun device must be created first", c.Device)
		} else if w.prepared != f.device.index {
			if err = k.prepareDevice(f.device); err == nil {
				w.prepared = f.device.index
			}
		}
	}
	p := c.plan(w.target, f)
	w.events.follow(c, w.target, f, p)
	remarks := p.remarks
	if w.applied && err == nil && !c.Manual {
		set, fromSysctls, setErr := k.set(p.settings)
		wired, fromWiring, wireErr := k.wire(c, f, p.objects)
		changed, err = set+wired, errors.Join(setErr, wireErr)
		remarks = slices.Concat(remarks, fromSysctls, fromWiring)
	}
	owned, ownedErr := k.ownedPrefixes(c, f)
	w.last, w.owned, w.remarks = f, owned, remarks
	return changed, errors.Join(err, ownedErr)
}

// Close takes away all that Apply made, puts sysctls back to what they were before, and ends Watch. It does not touch
// the device. If Apply was never called, nothing is changed.
func (w *Wiring) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isClosed() {
		return nil
	}
	close(w.closed)
	w.events.close()
	defer w.kernel.close()
	if !w.applied || w.config.Manual {
		return nil
	}
	f, err := w.kernel.facts(w.config, Target{}, nil)
	if err != nil {
		return err
	}
	_, _, err = w.kernel.wire(w.config, f, objects{})
	others, othersErr := w.kernel.others(w.config, f)
	if err = errors.Join(err, othersErr); len(others) > 0 {
		// They found the sysctls as they need them, and do not expect them to change.
		w.log.Info("sysctls stay as they are for other directors in this network namespace", "tables", slices.Sorted(maps.Keys(others)))
		return err
	}
	return errors.Join(err, w.kernel.sysctls.restore())
}

// Paths looks at the namespace as Watch does, once, and changes nothing.
func (w *Wiring) Paths() (Paths, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isClosed() {
		return Paths{}, errClosed
	}
	k, c := w.kernel, w.config
	failed, err := k.failedNeighbours()
	if err != nil {
		return Paths{}, err
	}
	defaults, err := k.defaultRoutes()
	if err != nil {
		return Paths{}, err
	}
	f, err := k.facts(c, w.target, defaults)
	if err != nil {
		return Paths{}, err
	}
	owned, err := k.ownedPrefixes(c, f)
	if err != nil {
		return Paths{}, err
	}
	return k.paths(c, w.target, f, failed, owned, c.plan(w.target, f).remarks), nil
}

// plural returns "1 route" or "2 routes".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
