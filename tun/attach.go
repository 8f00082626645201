package tun

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// How a device comes to be (dataplane.md section 3). Package water makes devices, but cannot ask for a virtio_net_hdr
// in front of the packets, and flags of a device change only when a descriptor is attached while there is no other. So
// water makes a persistent device and lets go of it; our descriptor is the first to be attached after that and
// says which flags hold; then the device is made to end with its descriptors. A crash in between leaves a persistent
// device that nobody holds, which the next start takes over by the same steps.

// ErrBusy is the error of Open when another process holds the device.
var ErrBusy = errors.New("another process holds it")

// How long claim waits for another holder. The descriptors of a process that was killed may outlive it for a moment,
// those that were registered with an io_uring for most of a second (echo.md section 5).
const (
	busyPatience = 3 * time.Second
	busyInterval = 50 * time.Millisecond
)

// claim makes the device, or takes over one that nobody holds, and returns its only descriptor. The device ends with
// its last descriptor, unless it is somebody's own.
func claim(name string, multi bool) (fd int, err error) {
	for giveUp := time.Now().Add(busyPatience); ; time.Sleep(busyInterval) {
		fd, err = tryClaim(name, multi)
		if !errors.Is(err, ErrBusy) {
			return fd, err
		}
		if time.Now().After(giveUp) {
			return -1, fmt.Errorf("%w%s; end that, or choose another name", err, holders(name))
		}
	}
}

func tryClaim(name string, multi bool) (fd int, err error) {
	found, err := find(name)
	if err != nil {
		return -1, err
	}
	owned := found != nil && (found.Owner != 0 || found.Group != 0)
	if found != nil && isMulti(found) != multi {
		if owned {
			return -1, mismatch(name, multi)
		}
		if err := remove(name, isMulti(found)); err != nil {
			return -1, err
		}
		found = nil
	}
	if found == nil {
		if err := create(name, multi); err != nil {
			return -1, err
		}
	}
	fd, err = attachAlone(name, multi)
	if err != nil {
		if found == nil {
			_ = remove(name, multi)
		}
		return -1, err
	}
	if !owned {
		if err := unpersist(fd); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// find returns the tun device, or nil if there is no interface of that name.
func find(name string) (*netlink.Tuntap, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look the interface up: %w", err)
	}
	device, ok := link.(*netlink.Tuntap)
	kind := link.Type()
	if ok && device.Mode == netlink.TUNTAP_MODE_TAP {
		ok, kind = false, "tap"
	}
	if !ok {
		return nil, fmt.Errorf("%w: an interface of this name is there and is no tun device (its kind is %s); "+
			"choose another name, or remove it", unix.EEXIST, kind)
	}
	return device, nil
}

func isMulti(device *netlink.Tuntap) bool { return device.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 }

// create makes a persistent device that nobody holds.
func create(name string, multi bool) error {
	if err := mayCreate(name); err != nil {
		return err
	}
	// No program may be started while water has its descriptor open, for it would inherit it and hold the device.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	device, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, Persist: true, MultiQueue: multi},
	})
	if err != nil {
		return advise("make the device", err, deviceAdvice)
	}
	return device.Close()
}

// mayCreate asks the kernel for permission only: it is what TUNSETIFF looks at before it finds that an interface which
// is neither tun nor tap cannot be made. Package water leaks its descriptor when it is the one to be refused.
func mayCreate(name string) error {
	fd, err := openNode()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setInterface(fd, name, unix.IFF_NO_PI); err != nil && !errors.Is(err, unix.EINVAL) {
		return advise("make the device", err, deviceAdvice)
	}
	return nil
}

// remove removes a persistent device that nobody holds.
func remove(name string, multi bool) error {
	fd, err := attachAlone(name, multi)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unpersist(fd)
}

// unpersist makes a device end with its last descriptor.
func unpersist(fd int) error {
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
		return fmt.Errorf("make the device end with its last queue: %w", err)
	}
	return nil
}

// attachAlone attaches a descriptor to a device that has no other, or returns ErrBusy.
func attachAlone(name string, multi bool) (fd int, err error) {
	// Another process's device with several queues would let us in, and give us some of its flows.
	if err := heldByMoreThan(0, name); err != nil {
		return -1, err
	}
	if fd, err = attach(name, multi); err != nil {
		return -1, err
	}
	if err = heldByMoreThan(1, name); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// heldByMoreThan returns ErrBusy if a device with several queues has more than n descriptors. Other devices cannot have
// more than one, and kernels before 4.17 do not tell.
func heldByMoreThan(n int, name string) error {
	device, err := find(name)
	if err == nil && device != nil && device.Queues+device.DisabledQueues > n {
		err = ErrBusy
	}
	return err
}

// attach attaches a new descriptor to the device, with a virtio_net_hdr in front of the packets.
func attach(name string, multi bool) (fd int, err error) {
	fd, err = openNode()
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	switch err := setInterface(fd, name, flags); {
	case errors.Is(err, unix.EBUSY):
		return -1, ErrBusy
	case err != nil:
		return -1, advise("attach to the device", err, deviceAdvice)
	}
	// Without the header the offloads would be granted all the same, and packets come incomplete and undescribed.
	got, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, got)
	}
	if err != nil {
		return -1, fmt.Errorf("read the device's flags: %w", err)
	}
	if got.Uint16()&unix.IFF_VNET_HDR == 0 {
		return -1, fmt.Errorf("%w: the kernel does not put a virtio_net_hdr in front of packets (its flags are %#x)",
			errors.ErrUnsupported, got.Uint16())
	}
	return fd, nil
}

func setInterface(fd int, name string, flags uint16) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
}

// setOffloads switches offloads on or off, for all queues of a device, and returns what the kernel agreed to. set is
// TUNSETOFFLOAD.
func setOffloads(on bool, set func(bits int) error) (Offloads, error) {
	const (
		tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		uso = unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	wanted := []int{tso | uso, tso, 0}
	if !on {
		wanted = []int{0}
	}
	var err error
	for _, bits := range wanted {
		if err = set(bits); err == nil {
			return Offloads{
				Checksum: bits&unix.TUN_F_CSUM != 0,
				TSO4:     bits&unix.TUN_F_TSO4 != 0,
				TSO6:     bits&unix.TUN_F_TSO6 != 0,
				ECN:      bits&unix.TUN_F_TSO_ECN != 0,
				USO:      bits&uso != 0,
			}, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return Offloads{}, fmt.Errorf("set the device's offloads: %w", err)
}

// mismatch is the error of a device that is not ours to make anew.
func mismatch(name string, multi bool) error {
	has, how := "several queues", "mode tun"
	if multi {
		has, how = "one queue only", "mode tun multi_queue"
	}
	return fmt.Errorf("%w: the device was made for a user and for %s; let it be made again by "+
		"`ip tuntap del dev %s mode tun` and `ip tuntap add dev %s %s user USER`, or ask for another number of queues", unix.EINVAL, has, name, name, how)
}
