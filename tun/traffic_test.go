package tun_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/tun"
	"github.com/lvsd/lvsd/tun/nstest"
)

// seen is what mirrors saw in the headers of frames.
type seen struct {
	frames    atomic.Uint64
	described atomic.Uint64     // with a header that is not zero
	partial   atomic.Uint64     // with a partial checksum
	longest   [256]atomic.Int64 // length of the longest frame of a kind of segments
	segment   [256]atomic.Int64 // size of its segments
}

// mirror sends every packet back to its sender, as if it came from where it went to: a kernel that talks to a neighbour
// behind the device talks to itself. No checksum changes when two addresses are swapped.
func (s *seen) mirror(q tun.Queue) {
	for {
		frames, err := q.Read()
		if err != nil {
			return
		}
		for _, frame := range frames {
			s.frames.Add(1)
			if !bytes.Equal(frame[:tun.HeaderLen], make([]byte, tun.HeaderLen)) {
				s.described.Add(1)
			}
			if frame[0]&1 != 0 {
				s.partial.Add(1)
			}
			if kind := frame[1] &^ 0x80; int64(len(frame)) > s.longest[kind].Load() {
				s.longest[kind].Store(int64(len(frame)))
				s.segment[kind].Store(int64(binary.NativeEndian.Uint16(frame[4:])))
			}
			from, length := 12, 4
			if frame[tun.HeaderLen]>>4 == 6 {
				from, length = 8, 16
			}
			source := frame[tun.HeaderLen+from:][:length]
			destination := frame[tun.HeaderLen+from+length:][:length]
			for i := range source {
				source[i], destination[i] = destination[i], source[i]
			}
		}
		if q.Write(frames) != nil {
			return
		}
	}
}

// The namespace's own addresses, and those of the neighbour that the mirror makes it see.
var (
	selves     = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	neighbours = []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}
)

const mtu = 1500

// addSelves gives the device the namespace's addresses and an ordinary MTU.
func addSelves(t testing.TB, ns *nstest.NS) {
	t.Helper()
	ns.Do(func() {
		link, err := netlink.LinkByName(deviceName)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			t.Fatal(err)
		}
		for _, self := range selves {
			address := &netlink.Addr{
				IPNet: &net.IPNet{IP: self.AsSlice(), Mask: net.CIDRMask(self.BitLen()-8, self.BitLen())},
				Flags: unix.IFA_F_NODAD,
			}
			if err := netlink.AddrAdd(link, address); err != nil {
				t.Fatal(err)
			}
			// The kernel takes packets for an IPv6 address only a moment later.
			eventually(t, self.String()+" is local", func() bool {
				routes, err := netlink.RouteGet(self.AsSlice())
				return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
			})
		}
	})
}

// openMirror opens a device with a mirror behind it.
func openMirror(t testing.TB, c tun.DeviceConfig) (*nstest.NS, *tun.Device, *seen) {
	ns := nstest.New(t)
	d := mustOpen(t, ns, c)
	setUp(t, ns, true)
	addSelves(t, ns)
	s := new(seen)
	var mirrors sync.WaitGroup
	for _, q := range d.Queues() {
		mirrors.Go(func() { s.mirror(q) })
	}
	t.Cleanup(func() {
		d.Close()
		mirrors.Wait()
	})
	return ns, d, s
}

// checksumErrors returns how many packets the namespace found to have a wrong checksum.
func checksumErrors(t testing.TB, ns *nstest.NS) (total int) {
	t.Helper()
	ns.Do(func() {
		// A line of names and a line of numbers for each protocol in the one file, a line for each counter in the other.
		v4, err4 := os.ReadFile("/proc/thread-self/net/snmp")
		v6, err6 := os.ReadFile("/proc/thread-self/net/snmp6")
		if err := errors.Join(err4, err6); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(v4), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			numbers := strings.Fields(lines[i+1])
			for j, name := range strings.Fields(lines[i]) {
				if name == "InCsumErrors" {
					total += atoi(t, numbers[j])
				}
			}
		}
		for line := range strings.Lines(string(v6)) {
			if name, number, _ := strings.Cut(line, " "); strings.HasSuffix(strings.TrimSpace(name), "InCsumErrors") {
				total += atoi(t, strings.TrimSpace(number))
			}
		}
	})
	return total
}

func atoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// connect returns both ends of a TCP connection to the neighbour, which is this namespace.
func connect(t testing.TB, ns *nstest.NS, family int) (from, to net.Conn) {
	t.Helper()
	var listener net.Listener
	ns.Do(func() {
		var err error
		if listener, err = net.Listen("tcp", netip.AddrPortFrom(selves[family], 0).String()); err != nil {
			t.Fatal(err)
		}
	})
	defer listener.Close()
	ns.Do(func() {
		var err error
		port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
		if from, err = net.DialTimeout("tcp", netip.AddrPortFrom(neighbours[family], port).String(), patience); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { from.Close() })
	to, err := listener.Accept() // the kernel has accepted it already
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close() })
	return from, to
}

// transfer sends bytes to the neighbour over TCP and compares what arrives.
func transfer(t *testing.T, ns *nstest.NS, family int, size int64) {
	t.Helper()
	from, to := connect(t, ns, family)
	deadline := time.Now().Add(patience)
	if err := errors.Join(from.SetDeadline(deadline), to.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	arrived := sha256.New()
	received := make(chan error, 1)
	go func() {
		n, err := io.Copy(arrived, to)
		if err == nil && n != size {
			err = fmt.Errorf("%d bytes of %d arrived", n, size)
		}
		received <- err
	}()
	sent := sha256.New()
	random := rand.NewChaCha8([32]byte{byte(family)})
	_, err := io.Copy(io.MultiWriter(from, sent), io.LimitReader(random, size))
	if err = errors.Join(err, from.Close(), <-received); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(arrived.Sum(nil), sent.Sum(nil)) {
		t.Fatal("what arrived is not what was sent")
	}
}

func TestTCPWithOffload(t *testing.T) {
	for family, kind := range []byte{1, 4} {
		for _, queues := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d queues", selves[family], queues), func(t *testing.T) {
				ns, d, s := openMirror(t, tun.DeviceConfig{Queues: queues, Offload: true})
				transfer(t, ns, family, 8<<20)
				if longest := s.longest[kind].Load(); longest < 10<<10 || longest > tun.MaxFrame {
					t.Errorf("the longest TCP super-packet has %d bytes", longest)
				}
				if size := s.segment[kind].Load(); size < 1000 || size > mtu-40 {
					t.Errorf("its segments have %d", size)
				}
				if frames, partial := s.frames.Load(), s.partial.Load(); partial < frames*9/10 {
					t.Errorf("%d of %d frames have a partial checksum", partial, frames)
				}
				if n := checksumErrors(t, ns); n != 0 {
					t.Errorf("%d wrong checksums", n)
				}
				for _, q := range d.Queues() {
					if got := q.Stats(); got.Refused.Total() != 0 || got.Unreadable != 0 {
						t.Errorf("counted %+v", got)
					}
				}
			})
		}
	}
}

func TestTCPWithoutOffload(t *testing.T) {
	for family, self := range selves {
		t.Run(self.String(), func(t *testing.T) {
			ns, _, s := openMirror(t, tun.DeviceConfig{})
			transfer(t, ns, family, 2<<20)
			if frames, described := s.frames.Load(), s.described.Load(); frames < 2<<20/mtu || described != 0 {
				t.Errorf("%d of %d frames have something in their header", described, frames)
			}
			if longest := s.longest[0].Load(); longest > tun.HeaderLen+mtu {
				t.Errorf("the longest frame has %d bytes", longest)
			}
			if n := checksumErrors(t, ns); n != 0 {
				t.Errorf("%d wrong checksums", n)
			}
		})
	}
}

// TestChecksumErrorsAreSeen is about the tests above: they could not find a wrong checksum otherwise.
func TestChecksumErrorsAreSeen(t *testing.T) {
	ns := nstest.New(t)
	d := mustOpen(t, ns, tun.DeviceConfig{Offload: true})
	setUp(t, ns, true)
	addSelves(t, ns)
	wrong := udp(7, 1, 100)
	wrong[tun.HeaderLen+26] = 0x55
	if err := d.Queues()[0].Write([][]byte{wrong}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the wrong checksum is counted", func() bool { return checksumErrors(t, ns) == 1 })
}

func TestUDPSegments(t *testing.T) {
	const segment, segments = 1400, 20 // and a short one; all have to fit into the receiver's buffer
	for family, self := range selves {
		t.Run(self.String(), func(t *testing.T) {
			ns, d, s := openMirror(t, tun.DeviceConfig{Offload: true})
			if !d.Offloads().USO {
				nstest.Missing(t, "a kernel with UDP segmentation offload for tun devices (6.2)")
			}
			var from, to *net.UDPConn
			ns.Do(func() {
				for _, c := range []**net.UDPConn{&from, &to} {
					var err error
					*c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(self, 0)))
					if err != nil {
						t.Fatal(err)
					}
				}
			})
			defer from.Close()
			defer to.Close()
			raw, err := from.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var optionErr error
			err = raw.Control(func(fd uintptr) {
				optionErr = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, segment)
			})
			if err := errors.Join(err, optionErr); err != nil {
				t.Fatal(err)
			}
			data := make([]byte, segments*segment+100)
			_, _ = rand.NewChaCha8([32]byte{}).Read(data)
			port := to.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			if _, err := from.WriteToUDPAddrPort(data, netip.AddrPortFrom(neighbours[family], port)); err != nil {
				t.Fatal(err)
			}
			var got []byte
			buffer := make([]byte, 2*segment)
			to.SetReadDeadline(time.Now().Add(patience))
			for i := range segments + 1 {
				n, sender, err := to.ReadFromUDPAddrPort(buffer)
				if err != nil {
					t.Fatal(err)
				}
				if i < segments && n != segment {
					t.Errorf("datagram %d has %d bytes", i, n)
				}
				if sender.Addr().Unmap() != neighbours[family] {
					t.Errorf("datagram %d came from %s", i, sender)
				}
				got = append(got, buffer[:n]...)
			}
			if !bytes.Equal(got, data) {
				t.Error("what arrived is not what was sent")
			}
			const kind = 5
			headers := tun.HeaderLen + 8 + []int{20, 40}[family]
			if s.longest[kind].Load() != int64(headers+len(data)) || s.segment[kind].Load() != segment {
				t.Errorf("the longest UDP super-packet has %d bytes and segments of %d",
					s.longest[kind].Load(), s.segment[kind].Load())
			}
			if n := checksumErrors(t, ns); n != 0 {
				t.Errorf("%d wrong checksums", n)
			}
		})
	}
}

// TestNothingIsAllocated moves ready frames.
func TestNothingIsAllocated(t *testing.T) {
	ns := nstest.New(t)
	d := mustOpen(t, ns, tun.DeviceConfig{Offload: true})
	setUp(t, ns, true)
	socket := packetSocket(t, ns, d.Index(), 0)
	q := d.Queues()[0]
	frame := udp(7, 1, 1000)
	frames := 0
	allocations := testing.AllocsPerRun(200, func() {
		for range 10 {
			if _, err := socket.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		batch, err := q.Read()
		if err != nil {
			t.Fatal(err)
		}
		frames += len(batch)
		if err := q.Write(batch); err != nil {
			t.Fatal(err)
		}
		if _ = q.Stats(); q.Stats().Refused.Total() != 0 {
			t.Fatalf("refused: %+v", q.Stats().Refused)
		}
	})
	if allocations != 0 || frames != 201*10 {
		t.Errorf("%v allocations a batch, %d frames", allocations, frames)
	}
}
