package tun_test

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/tun"
	"github.com/lvsd/lvsd/tun/nstest"
)

// deviceName is the name of the device under test. Each test has a namespace of its own.
const deviceName = "lvs0"

// mustOpen opens a device in a namespace and closes it at the end of the test.
func mustOpen(t testing.TB, ns *nstest.NS, c tun.DeviceConfig) *tun.Device {
	t.Helper()
	c.Name = deviceName
	var d *tun.Device
	ns.Do(func() {
		var err error
		d, err = tun.Open(c)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENODEV) {
			nstest.Missing(t, "a tun device ("+err.Error()+")")
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// setUp sets the device up or down. Its MTU is the largest there is, and it never gets an IPv6 address by itself, so that the kernel sends nothing into it
// unasked.
func setUp(t testing.TB, ns *nstest.NS, on bool) {
	t.Helper()
	ns.Do(func() {
		link, err := netlink.LinkByName(deviceName)
		if err != nil {
			t.Fatal(err)
		}
		const none = 1 // IN6_ADDR_GEN_MODE_NONE
		if err := netlink.LinkSetIP6AddrGenMode(link, none); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetMTU(link, tun.MaxFrame-tun.HeaderLen); err != nil {
			t.Fatal(err)
		}
		set := netlink.LinkSetUp
		if !on {
			set = netlink.LinkSetDown
		}
		if err := set(link); err != nil {
			t.Fatal(err)
		}
	})
}

// exists tells whether there is a device in the namespace.
func exists(t testing.TB, ns *nstest.NS) (found bool) {
	t.Helper()
	ns.Do(func() {
		_, err := netlink.LinkByName(deviceName)
		if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Fatal(err)
		}
		found = err == nil
	})
	return found
}

func deleteDevice(t testing.TB, ns *nstest.NS) {
	t.Helper()
	ns.Do(func() {
		link, err := netlink.LinkByName(deviceName)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
	})
}

// openReal opens a device of the kernel and a packet socket on its other side. What is sent to the socket is what the
// network stack sends into the device; what is received is what was written.
func openReal(t *testing.T, queues int) endpoints {
	ns := nstest.New(t)
	d := mustOpen(t, ns, tun.DeviceConfig{Queues: queues, Offload: true})
	setUp(t, ns, true)
	socket := packetSocket(t, ns, d.Index(), unix.ETH_P_ALL)
	return endpoints{
		queues: d.Queues(),
		inject: func(frame []byte) bool {
			_, err := socket.Write(frame)
			switch {
			case errors.Is(err, unix.ENETDOWN):
				return false
			case err != nil:
				t.Fatal(err)
			}
			return true
		},
		receive: func() []byte {
			buffer := make([]byte, tun.MaxFrame)
			if err := socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			n, err := socket.Read(buffer)
			if err != nil {
				t.Fatal(err)
			}
			return buffer[:n]
		},
		setUp: func(on bool) {
			setUp(t, ns, on)
			// The socket has an error to tell, once, when the device went down.
			raw, err := socket.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			err = raw.Control(func(fd uintptr) { _, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) })
			if err != nil {
				t.Fatal(err)
			}
		},
		delete: func() { deleteDevice(t, ns) },
	}
}

// packetSocket returns a socket that sends frames into a device and receives what is written to it, of one protocol:
// ETH_P_ALL or, if it is only to send, 0.
func packetSocket(t testing.TB, ns *nstest.NS, index int, protocol uint16) *os.File {
	t.Helper()
	var fd int
	ns.Do(func() {
		var err error
		protocol = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}),
		)
		if err != nil {
			t.Fatal(err)
		}
	})
	socket := os.NewFile(uintptr(fd), "packet socket")
	t.Cleanup(func() { socket.Close() })
	return socket
}
