package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrClosed is the error of everything that is asked of a closed Host.
var ErrClosed = errors.New("the host is closed")

// A Host is a network namespace without a name: it exists as long as the Host is open, or a socket or program of it is
// left. All methods may be called from several goroutines at once.
type Host struct {
	Name string // for people; nothing depends on it

	// The first address of each family that AddAddress gave to a link; the zero Addr where there is none.
	IPv4, IPv6 netip.Addr

	ns     netns.NsHandle
	handle *netlink.Handle
	jobs   chan func()   // what the host's own thread has to do
	ended  chan struct{} // closed when that thread is done

	mu       sync.RWMutex // held for reading by whoever uses ns or jobs
	closed   bool
	programs map[*Cmd]struct{}
	services map[*Service]struct{}
}

// NewHost makes a network namespace, with its loopback device up. Forwarding is off, IPv6 addresses are usable at once
// (no duplicate address detection), router advertisements and ICMP redirects play no part, and ICMP errors are not rate
// limited, whatever the defaults of the machine are.
func NewHost(name string) (*Host, error) {
	h, err := newHost(name)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	return h, nil
}

func newHost(name string) (*Host, error) {
	h := &Host{
		Name:     name,
		ns:       netns.None(),
		jobs:     make(chan func()),
		ended:    make(chan struct{}),
		programs: make(map[*Cmd]struct{}),
		services: make(map[*Service]struct{}),
	}
	made := make(chan error)
	go func() {
		defer close(h.ended)
		onThread(func() {
			err := h.make()
			made <- err
			if err != nil {
				return
			}
			for job := range h.jobs {
				job()
			}
		})
	}()
	if err := <-made; err != nil {
		<-h.ended
		return nil, errors.Join(err, h.release())
	}
	return h, nil
}

// make runs on the host's own thread.
func (h *Host) make() error {
	var err error
	if h.ns, err = netns.New(); err != nil {
		return fmt.Errorf("make a network namespace: %w%s", err, namespaceHint(err))
	}
	if h.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := h.SetUp("lo"); err != nil {
		return err
	}
	for _, s := range hostSysctls(hasIPv6()) {
		if err := writeSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	// Package net finds out what the machine's network can do when it is first used, by binding sockets to ::1, and
	// remembers it for good. Let that not happen in a namespace whose loopback device is down.
	if probe, err := net.ListenPacket("udp", ":0"); err == nil {
		probe.Close()
	}
	return nil
}

func hostSysctls(ipv6 bool) [][2]string {
	list := [][2]string{
		{"net.ipv4.ip_forward", "0"},
		{"net.ipv4.icmp_ratelimit", "0"},
	}
	for _, conf := range []string{"net.ipv4.conf.all.", "net.ipv4.conf.default."} {
		list = append(list, [2]string{conf + "rp_filter", "0"}, [2]string{conf + "send_redirects", "0"},
			[2]string{conf + "accept_redirects", "0"})
	}
	if !ipv6 {
		return list
	}
	list = append(list, [2]string{"net.ipv6.icmp.ratelimit", "0"}, [2]string{"net.ipv6.conf.all.forwarding", "0"})
	for _, conf := range []string{"net.ipv6.conf.all.", "net.ipv6.conf.default."} {
		list = append(list, [2]string{conf + "disable_ipv6", "0"}, [2]string{conf + "accept_dad", "0"},
			[2]string{conf + "dad_transmits", "0"}, [2]string{conf + "accept_ra", "0"},
			[2]string{conf + "router_solicitations", "0"}, [2]string{conf + "accept_redirects", "0"})
	}
	return list
}

// Do runs f inside the namespace and returns its error. Sockets that f makes and programs that it starts belong to the
// namespace for good; goroutines that it starts are outside. If f ends its goroutine, as t.FailNow does, Do ends the
// caller's.
func (h *Host) Do(f func() error) error {
	var err error
	returned := false
	onThread(func() {
		if err = h.enter(); err == nil {
			err = f()
		}
		returned = true
	})
	if !returned {
		runtime.Goexit()
	}
	return err
}

// enter puts the calling thread into the namespace.
func (h *Host) enter() error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return fmt.Errorf("host %s: %w", h.Name, ErrClosed)
	}
	if err := netns.Set(h.ns); err != nil {
		return fmt.Errorf("host %s: enter its network namespace: %w", h.Name, err)
	}
	return nil
}

// Path names the namespace for programs outside of this process, as in `nsenter --net=PATH`. It is valid until Close.
func (h *Host) Path() string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(h.ns))
}

// Enter returns the beginning of a shell command that runs something inside the namespace, for people to copy. It
// enters the process's user namespace too if that is not the machine's first one.
func (h *Host) Enter() string {
	if inUserNamespace() {
		return fmt.Sprintf("nsenter --preserve-credentials --user --target %d --net=%s", os.Getpid(), h.Path())
	}
	return "nsenter --net=" + h.Path()
}

// Netlink is a netlink handle inside the namespace, for what the helpers of Host do not cover.
func (h *Host) Netlink() *netlink.Handle { return h.handle }

// Addresses returns IPv4 and IPv6, without the one that is missing.
func (h *Host) Addresses() []netip.Addr {
	var list []netip.Addr
	for _, a := range []netip.Addr{h.IPv4, h.IPv6} {
		if a.IsValid() {
			list = append(list, a)
		}
	}
	return list
}

// Close kills the host's programs, stops its services and lets go of the namespace. Sockets that [Host.Listen],
// [Host.Dial] and the like returned are their owners' to close; the namespace stays for as long as one is open. Only
// the first call does anything.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	programs, services := h.programs, h.services
	h.programs, h.services = nil, nil
	h.mu.Unlock()

	for p := range programs {
		p.end()
	}
	for s := range services {
		s.Close()
	}
	close(h.jobs)
	<-h.ended
	if err := h.release(); err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	return nil
}

func (h *Host) release() error {
	if h.handle != nil {
		h.handle.Close()
	}
	if !h.ns.IsOpen() {
		return nil
	}
	if err := unix.Close(int(h.ns)); err != nil {
		return fmt.Errorf("close a network namespace: %w", err)
	}
	return nil
}
