package stacktest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lvsd/lvsd/stack/packettest"
)

// Device is what the router leads packets into, seen from the kernel's side; package tuntest has one in memory. Frames
// that are injected stay the router's, and frames that are received are its own.
type Device interface {
	// Inject gives a frame to the device and tells whether it had room for it.
	Inject(frame []byte) bool
	// Receive waits for the next frame that was written to the device.
	Receive(ctx context.Context) ([]byte, error)
}

// Options are what a router is made with.
type Options struct {
	Addresses []netip.Addr // its own, of which it uses the first of a family
	VIPs      []netip.Addr // what it routes into the device
	Faults    Faults       // of all links
	Seed      uint64       // of the faults
}

// Router connects hosts and a device. Its methods may be called concurrently.
type Router struct {
	self    *hop
	device  Device
	vips    []netip.Addr
	seed    uint64
	faults  atomic.Pointer[Faults]
	later   *delayer
	trace   *trace
	stop    context.CancelFunc
	workers sync.WaitGroup

	mu         sync.Mutex
	hosts      []*Host
	counts     Counts
	violations []error
}

// NewRouter returns a router that works until Close. The device stays the caller's.
func NewRouter(device Device, o Options) *Router {
	ctx, stop := context.WithCancel(context.Background())
	r := &Router{device: device, vips: slices.Clone(o.VIPs), seed: o.Seed, later: newDelayer(), trace: newTrace(), stop: stop}
	r.self = &hop{name: "router", addresses: slices.Clone(o.Addresses), send: func(frame []byte) { r.route(r.self, frame) }}
	r.SetFaults(o.Faults)
	r.workers.Go(func() { r.later.run(ctx.Done()) })
	r.workers.Go(func() { r.receive(ctx) })
	return r
}

// Close ends all hosts and the router.
func (r *Router) Close() {
	r.mu.Lock()
	hosts := r.hosts
	r.mu.Unlock()
	for _, h := range hosts {
		h.close()
	}
	r.stop()
	r.workers.Wait()
}

// SetFaults replaces the faults of all links, for the frames that come from now on.
func (r *Router) SetFaults(f Faults) { r.faults.Store(&f) }

// Volume counts frames.
type Volume struct {
	Frames uint64
	Bytes  uint64 // of their packets
	Super  uint64 // how many of the frames were super-packets
}

func (v *Volume) add(frame []byte) {
	v.Frames++
	v.Bytes += uint64(len(frame) - offloadLen)
	if frame[1] != 0 {
		v.Super++
	}
}

// Counts are what a router has counted.
type Counts struct {
	ToDevice, FromDevice Volume

	// What links did to frames.
	Lost, Duplicated, HeldBack uint64
	// Frames that were lost because a queue was full: the device's, or one of this package.
	Overflowed uint64

	Local        uint64 // packets for the router itself, which it ignores
	NoRoute      uint64 // packets for nobody, likewise
	TimeExceeded uint64 // packets that were answered with this error
	TooBig       uint64 // and with fragmentation needed or packet too big
	Fragmented   uint64 // packets that were sent on as fragments
}

// Counts returns what was counted so far.
func (r *Router) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

func (r *Router) count(f func(*Counts)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.counts)
}

// maxViolations bounds how many are kept; the first ones say the most.
const maxViolations = 20

// Violations returns the first packets and frames that should never have been, each with what is wrong with it.
func (r *Router) Violations() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.violations)
}

func (r *Router) violation(packet []byte, format string, args ...any) {
	err := fmt.Errorf("%w: %s", fmt.Errorf(format, args...), describe(packet))
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.violations) < maxViolations {
		r.violations = append(r.violations, err)
	}
}

// receive routes what comes out of the device.
func (r *Router) receive(ctx context.Context) {
	for {
		frame, err := r.device.Receive(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.violation(nil, "the device failed: %w", err)
			}
			return
		}
		r.count(func(c *Counts) { c.FromDevice.add(frame) })
		r.route(deviceSide, frame)
	}
}

// A place is where a frame comes from or goes to.
type place interface{ String() string }

type deviceName string

func (n deviceName) String() string { return string(n) }

const deviceSide = deviceName("director")

// route sends a frame on that comes from a host, the device, or the router itself. It is the kernel's way of a packet.
func (r *Router) route(from place, frame []byte) {
	packet := frame[offloadLen:]
	h, err := check(frame)
	if err != nil {
		r.violation(packet, "a frame from %s that Linux refuses: %w", from, err)
		return
	}
	if from == deviceSide && slices.Contains(r.self.addresses, h.Src) {
		r.violation(packet, "a packet in the router's own name comes from the device")
		return
	}
	to, host := r.lookup(from, h.Dst)
	switch {
	case to == r.self:
		r.count(func(c *Counts) { c.Local++ })
		return
	case to == nil:
		r.trace.note(from, r.self, packet, "no route")
		r.count(func(c *Counts) { c.NoRoute++ })
		return
	case to == from && to == deviceSide:
		r.violation(packet, "a packet from the device is routed into it again")
		return
	}
	if from != r.self && !r.takeHop(r.self, from, frame) {
		return
	}
	if to == deviceSide {
		r.inject(from, frame)
		return
	}
	r.deliver(from, host, frame)
}

// check is what Linux asks of a frame before it routes the packet.
func check(frame []byte) (h packettest.Headers, err error) {
	if err := packettest.Refused(frame); err != nil {
		return h, err
	}
	packet := slices.Clip(frame[offloadLen:])
	if h, err = packettest.Walk(packet); err != nil {
		return h, err
	}
	if h.Src.Is4() && packettest.Sum(packet[:h.Transport]) != 0xffff {
		return h, errors.New("a wrong IPv4 header checksum")
	}
	return h, nil
}

// lookup returns where a packet goes: to the device, to the router itself, to a host, or nowhere.
func (r *Router) lookup(from place, dst netip.Addr) (place, *Host) {
	if slices.Contains(r.self.addresses, dst) {
		return r.self, nil
	}
	if h, ok := from.(*Host); ok && h.server || slices.Contains(r.vips, dst) {
		return deviceSide, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.hosts {
		if slices.Contains(h.addresses, dst) {
			return h, h
		}
	}
	return nil, nil
}

func (r *Router) inject(from place, frame []byte) {
	host, _ := from.(*Host)
	r.trace.frame(from, deviceSide, frame)
	if !r.device.Inject(frame) {
		r.trace.note(from, deviceSide, frame[offloadLen:], "refused")
		r.count(func(c *Counts) { c.Overflowed++ })
		return
	}
	r.count(func(c *Counts) {
		c.ToDevice.add(frame)
		if host != nil {
			host.counts.ToDevice.add(frame)
		}
	})
}

// deliver sends a frame over the link to a host, and over the router in between if there is one.
func (r *Router) deliver(from place, to *Host, frame []byte) {
	if from == deviceSide {
		r.count(func(*Counts) { to.counts.FromDevice.add(frame) })
	}
	last := r.self
	if to.behind != nil {
		last = to.behind
		if !r.takeHop(last, from, frame) {
			return
		}
	}
	packet := frame[offloadLen:]
	if largest(frame) > to.linkMTU && !mayFragment(packet) {
		r.trace.frame(from, last, frame)
		r.count(func(c *Counts) { c.TooBig++ })
		last.tooBig(packet, to.linkMTU)
		return
	}
	r.trace.frame(from, to, frame)
	packets, err := packettest.Send(frame)
	if err != nil {
		r.violation(packet, "a frame for %s that cannot be sent: %w", to, err)
		return
	}
	for _, p := range packets {
		pieces := fragment(p, to.linkMTU)
		if len(pieces) > 1 {
			r.count(func(c *Counts) { c.Fragmented++ })
		}
		for _, piece := range pieces {
			to.down.pass(slices.Concat(make([]byte, offloadLen), piece))
		}
	}
}

// takeHop takes one from a packet's TTL, or answers in the name of the router that did if there is none left.
func (r *Router) takeHop(at *hop, from place, frame []byte) bool {
	packet := frame[offloadLen:]
	if decrementTTL(packet) {
		return true
	}
	r.trace.frame(from, at, frame)
	r.count(func(c *Counts) { c.TimeExceeded++ })
	at.timeExceeded(packet)
	return false
}

// add makes a host known.
func (r *Router) add(h *Host) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range h.addresses {
		if slices.Contains(r.vips, a) || slices.Contains(r.self.addresses, a) ||
			slices.ContainsFunc(r.hosts, func(o *Host) bool { return slices.Contains(o.addresses, a) }) {
			return errors.New("the address " + a.String() + " is taken")
		}
	}
	h.number = len(r.hosts)
	r.hosts = append(r.hosts, h)
	return nil
}
