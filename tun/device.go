package tun

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxQueues is how many queues the kernel lets a tun device have.
const MaxQueues = 256

// DeviceConfig describes a device to open.
type DeviceConfig struct {
	// Name is the interface's: 1 to 15 bytes without space, slash, colon and percent sign.
	Name string
	// Queues is how many queues the device gets, 1 to MaxQueues; 0 means 1.
	Queues int
	// Offload asks for checksum and segmentation offload, as much of it as the kernel has. Without it every frame is
	// one packet as it was on the wire, with a full checksum. A frame begins with a virtio_net_hdr either way.
	Offload bool
}

// Device is a tun device with its queues. All methods may be called by several goroutines.
type Device struct {
	name     string
	index    int
	offloads Offloads
	queues   []Queue
}

// Open makes a tun device in the network namespace of the calling thread, or takes over one of the same name that
// nobody holds. The device is down and has no address; it disappears when the last of its queues is closed, also by the
// end of the process.
//
// A device that somebody made for an ordinary user (`ip tuntap add dev lvs0 mode tun user lvsd`) is used as it is and
// stays when its queues are closed. It saves that user the CAP_NET_ADMIN that making one takes.
//
// If another process holds the device, Open waits a few seconds for it to end, and fails with ErrBusy. Other errors wrap
// the kernel's and say what the machine lacks and how to give it.
func Open(c DeviceConfig) (*Device, error) {
	d, err := open(c)
	if err != nil {
		return nil, fmt.Errorf("open tun device %q: %w", c.Name, err)
	}
	return d, nil
}

func open(c DeviceConfig) (d *Device, err error) {
	c.Queues = max(c.Queues, 1)
	if err := c.check(); err != nil {
		return nil, err
	}
	multi := c.Queues > 1
	first, err := claim(c.Name, multi)
	if err != nil {
		return nil, err
	}
	d = &Device{name: c.Name}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if err := d.add(first); err != nil {
		return nil, err
	}
	for len(d.queues) < c.Queues {
		fd, err := attach(c.Name, multi)
		if err != nil {
			return nil, fmt.Errorf("queue %d of %d: %w", len(d.queues)+1, c.Queues, err)
		}
		if err := d.add(fd); err != nil {
			return nil, err
		}
	}
	d.offloads, err = setOffloads(c.Offload, func(bits int) error {
		return unix.IoctlSetInt(first, unix.TUNSETOFFLOAD, bits)
	})
	if err != nil {
		return nil, err
	}
	made, err := find(c.Name)
	if err == nil && made == nil {
		err = ErrGone
	}
	if err != nil {
		return nil, err
	}
	d.index = made.Attrs().Index
	return d, nil
}

// add makes a queue of a descriptor, which it closes if it cannot.
func (d *Device) add(fd int) error {
	q, err := newPollQueue(fd, fmt.Sprintf("queue %d of %s", len(d.queues), d.name))
	if err != nil {
		unix.Close(fd)
		return err
	}
	d.queues = append(d.queues, q)
	return nil
}

func (c DeviceConfig) check() error {
	if c.Name == "" || len(c.Name) >= unix.IFNAMSIZ || c.Name == "." || c.Name == ".." ||
		strings.ContainsAny(c.Name, "/:% \t\n\v\f\r") {
		return errors.New("this cannot be the name of an interface: it takes 1 to 15 bytes, no space and none of / : %")
	}
	if c.Queues > MaxQueues {
		return fmt.Errorf("%d queues are too many: a tun device has at most %d", c.Queues, MaxQueues)
	}
	return nil
}

// Name returns the interface's name as it was when the device was opened.
func (d *Device) Name() string { return d.name }

// Index returns the interface's index, which stays the same if somebody renames it.
func (d *Device) Index() int { return d.index }

// Offloads returns what the kernel granted.
func (d *Device) Offloads() Offloads { return d.offloads }

// Queues returns the device's queues, each for a goroutine of its own.
func (d *Device) Queues() []Queue { return d.queues }

// Close closes all queues, which wakes those who read, and with them the device. Closing again does nothing.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

// Offloads tells which work the kernel leaves to the other end of a frame, and lets us leave to it.
type Offloads struct {
	Checksum bool // partial transport checksums
	TSO4     bool // TCP super-packets over IPv4
	TSO6     bool // and over IPv6
	ECN      bool // also those that carry CWR
	USO      bool // UDP super-packets over either (Linux 6.2)
}

// String lists the offloads, or says "none".
func (o Offloads) String() string {
	var names []string
	for _, x := range []struct {
		on   bool
		name string
	}{{o.Checksum, "checksum"}, {o.TSO4, "tso4"}, {o.TSO6, "tso6"}, {o.ECN, "ecn"}, {o.USO, "uso"}} {
		if x.on {
			names = append(names, x.name)
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, " ")
}
