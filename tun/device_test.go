package tun_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/tun"
	"github.com/lvsd/lvsd/tun/nstest"
)

// device returns what the kernel says about the device.
func device(t testing.TB, ns *nstest.NS) (d *netlink.Tuntap) {
	t.Helper()
	ns.Do(func() {
		link, err := netlink.LinkByName(deviceName)
		if err != nil {
			t.Fatal(err)
		}
		d = link.(*netlink.Tuntap)
	})
	return d
}

// openIn opens a device in a namespace.
func openIn(ns *nstest.NS, c tun.DeviceConfig) (d *tun.Device, err error) {
	c.Name = deviceName
	ns.Do(func() { d, err = tun.Open(c) })
	return d, err
}

func TestOpenMakesADeviceThatEndsWithItsQueues(t *testing.T) {
	for _, queues := range []int{0, 1, 2, 8, tun.MaxQueues} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			ns := nstest.New(t)
			d := mustOpen(t, ns, tun.DeviceConfig{Queues: queues, Offload: true})
			got := device(t, ns)
			flags := netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_NO_PI
			if queues > 1 {
				flags |= netlink.TUNTAP_MULTI_QUEUE
				if got.Queues != queues {
					t.Errorf("the device has %d queues", got.Queues)
				}
			}
			if got.Flags != flags || got.Mode != netlink.TUNTAP_MODE_TUN || !got.NonPersist {
				t.Errorf("the kernel says %+v", got)
			}
			if d.Name() != deviceName || d.Index() != got.Attrs().Index || len(d.Queues()) != max(queues, 1) {
				t.Errorf("the device says %s, index %d, %d queues; the index is %d",
					d.Name(), d.Index(), len(d.Queues()), got.Attrs().Index)
			}
			for i, q := range d.Queues() {
				if !exists(t, ns) {
					t.Fatalf("the device is gone with %d queues left", len(d.Queues())-i)
				}
				if err := q.Close(); err != nil {
					t.Error(err)
				}
			}
			if exists(t, ns) {
				t.Error("the device is still there")
			}
			for range 2 {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestOffloads(t *testing.T) {
	ns := nstest.New(t)
	d := mustOpen(t, ns, tun.DeviceConfig{Offload: true})
	if got := d.Offloads(); !got.Checksum || !got.TSO4 || !got.TSO6 || !got.ECN {
		t.Errorf("granted: %s", got)
	}
	d.Close()
	d = mustOpen(t, ns, tun.DeviceConfig{})
	if got := d.Offloads(); got != (tun.Offloads{}) || got.String() != "none" {
		t.Errorf("granted although not wanted: %s", got)
	}
	all := tun.Offloads{Checksum: true, TSO4: true, TSO6: true, ECN: true, USO: true}
	if got := all.String(); got != "checksum tso4 tso6 ecn uso" {
		t.Errorf("all offloads: %q", got)
	}
}

func TestOpenRefusesWhatCannotBe(t *testing.T) {
	for _, c := range []tun.DeviceConfig{
		{Name: ""},
		{Name: "."},
		{Name: ".."},
		{Name: "a/b"},
		{Name: "a b"},
		{Name: "a\n"},
		{Name: "eth0:1"},
		{Name: "tun%d"},
		{Name: "sixteenbytesname"},
		{Name: "lvs0", Queues: tun.MaxQueues + 1},
	} {
		before := openFiles(t)
		d, err := tun.Open(c)
		if err == nil {
			d.Close()
			t.Errorf("%+v: no error", c)
			continue
		}
		if !strings.Contains(err.Error(), fmt.Sprintf("%q", c.Name)) {
			t.Errorf("%+v: the error does not say what was tried: %v", c, err)
		}
		if after := openFiles(t); after != before {
			t.Errorf("%+v: %d descriptors were open, and %d after it", c, before, after)
		}
	}
}

func TestOpenRefusesTheNameOfAnotherKindOfInterface(t *testing.T) {
	for kind, link := range map[string]netlink.Link{
		"tap":  &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: deviceName}, Mode: netlink.TUNTAP_MODE_TAP},
		"veth": &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: deviceName}, PeerName: "peer"},
	} {
		t.Run(kind, func(t *testing.T) {
			ns := nstest.New(t)
			ns.Do(func() {
				if err := netlink.LinkAdd(link); err != nil {
					t.Fatal(err)
				}
			})
			for _, queues := range []int{1, 2} {
				d, err := openIn(ns, tun.DeviceConfig{Queues: queues})
				if err == nil {
					d.Close()
				}
				if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), kind) {
					t.Errorf("%d queues: %v", queues, err)
				}
				if !exists(t, ns) {
					t.Fatal("the interface was removed")
				}
			}
		})
	}
}

// leave leaves a persistent device behind that nobody holds, as `ip tuntap add` and a crash do.
func leave(t *testing.T, ns *nstest.NS, flags uint16, owner int) {
	t.Helper()
	fd := hold(t, ns, flags)
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		t.Fatal(err)
	}
	if owner != 0 {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, owner); err != nil {
			nstest.Missing(t, fmt.Sprintf("a user namespace with the user %d (%v)", owner, err))
		}
	}
}

// hold attaches a descriptor to a device, which is made if there is none.
func hold(t *testing.T, ns *nstest.NS, flags uint16) (fd int) {
	t.Helper()
	ns.Do(func() {
		var err error
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			nstest.Missing(t, "a tun device ("+err.Error()+")")
		}
		request, err := unix.NewIfreq(deviceName)
		if err != nil {
			t.Fatal(err)
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			t.Fatal(err)
		}
	})
	return fd
}

func TestOpenTakesOverWhatACrashLeft(t *testing.T) {
	for _, left := range []struct {
		name  string
		flags uint16
	}{
		{"one queue without header", 0},
		{"one queue", unix.IFF_VNET_HDR},
		{"several queues without header", unix.IFF_MULTI_QUEUE},
		{"several queues", unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR},
	} {
		for _, queues := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d wanted", left.name, queues), func(t *testing.T) {
				ns := nstest.New(t)
				leave(t, ns, left.flags, 0)
				d := mustOpen(t, ns, tun.DeviceConfig{Queues: queues, Offload: true})
				got := device(t, ns)
				if got.Flags&netlink.TUNTAP_VNET_HDR == 0 || (got.Flags&netlink.TUNTAP_MULTI_QUEUE != 0) != (queues > 1) {
					t.Errorf("its flags are %#x", got.Flags)
				}
				d.Close()
				if exists(t, ns) {
					t.Error("the device is still there")
				}
			})
		}
	}
}

func TestOpenFailsIfTheDeviceIsHeld(t *testing.T) {
	for _, held := range []struct {
		name  string
		flags uint16
	}{
		{"one queue", unix.IFF_VNET_HDR},
		{"several queues", unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR},
	} {
		for _, queues := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d wanted", held.name, queues), func(t *testing.T) {
				t.Parallel() // each takes as long as Open is patient
				ns := nstest.New(t)
				fd := hold(t, ns, held.flags)
				defer unix.Close(fd)
				if held.flags&unix.IFF_MULTI_QUEUE != 0 && queues == 3 {
					// A queue that is detached for the moment is held as well.
					request, _ := unix.NewIfreq(deviceName)
					request.SetUint16(unix.IFF_DETACH_QUEUE)
					if err := unix.IoctlIfreq(fd, unix.TUNSETQUEUE, request); err != nil {
						t.Fatal(err)
					}
				}
				d, err := openIn(ns, tun.DeviceConfig{Queues: queues})
				if err == nil {
					d.Close()
				}
				if !errors.Is(err, tun.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d,", os.Getpid())) {
					t.Errorf("the error is %v", err)
				}
				if !exists(t, ns) {
					t.Error("the device was taken away from its holder")
				}
			})
		}
	}
}

func TestOpenWaitsForAHolderThatEnds(t *testing.T) {
	for _, queues := range []int{1, 3} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			ns := nstest.New(t)
			first := mustOpen(t, ns, tun.DeviceConfig{Queues: queues})
			type result struct {
				d   *tun.Device
				err error
			}
			second := make(chan result)
			go func() {
				d, err := openIn(ns, tun.DeviceConfig{Queues: queues})
				second <- result{d, err}
			}()
			first.Close()
			r := <-second
			if r.err != nil {
				t.Fatal(r.err)
			}
			r.d.Close()
		})
	}
}

func TestReopenAtOnce(t *testing.T) {
	ns := nstest.New(t)
	mustOpen(t, ns, tun.DeviceConfig{}).Close() // or it is missing
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	before := openFiles(t)
	for i := range 30 {
		queues := i%3 + 1
		d := mustOpen(t, ns, tun.DeviceConfig{Queues: queues, Offload: i%2 == 0})
		switch i % 5 {
		case 0:
			deleteDevice(t, ns) // and the name is free again, although the queues are not closed
			mustOpen(t, ns, tun.DeviceConfig{Queues: queues}).Close()
		case 1:
			d.Queues()[0].Close()
		}
		d.Close()
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors were open, and %d after it", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// TestMemoryIsGivenBack checks that the buffers of closed queues do not stay.
func TestMemoryIsGivenBack(t *testing.T) {
	ns := nstest.New(t)
	mustOpen(t, ns, tun.DeviceConfig{}).Close() // or it is missing
	anonymous := func() (total int) {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(maps)) {
			var from, to uint64
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				t.Fatal(err)
			}
			if fields := strings.Fields(line); len(fields) == 5 && fields[1] == "rw-p" {
				total += int(to - from)
			}
		}
		return total
	}
	const queues, least = 64, 64 * 64 * tun.MaxFrame
	before := anonymous()
	d, err := openIn(ns, tun.DeviceConfig{Queues: queues})
	if err != nil {
		t.Fatal(err)
	}
	during := anonymous()
	d.Close()
	if during-before < least {
		t.Fatalf("%d queues made the process grow by %d bytes only", queues, during-before)
	}
	eventually(t, "the memory of the queues goes", func() bool {
		runtime.GC()
		return during-anonymous() >= least
	})
}

// TestProcessHolds is not a test but a process that holds a device until it is killed.
func TestProcessHolds(t *testing.T) {
	if os.Getenv("TUN_TEST_HOLD") == "" {
		return // this is for another test
	}
	d, err := tun.Open(tun.DeviceConfig{Name: deviceName, Queues: 2, Offload: true})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("holding")
	_, err = d.Queues()[0].Read()
	t.Fatal(err)
}

func TestDeviceEndsWithAKilledProcess(t *testing.T) {
	ns := nstest.New(t)
	mustOpen(t, ns, tun.DeviceConfig{}).Close() // or it is missing
	command := exec.Command(os.Args[0], "-test.run=^TestProcessHolds$", "-test.v")
	command.Env = append(os.Environ(), "TUN_TEST_HOLD=1")
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ns.Do(func() {
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
	})
	var said []string
	for lines := bufio.NewScanner(output); lines.Scan(); {
		if said = append(said, lines.Text()); lines.Text() == "holding" {
			break
		}
	}
	held := exists(t, ns)
	if err := command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Without a wait for the end of the process: Open is patient.
	d, err := openIn(ns, tun.DeviceConfig{Queues: 2, Offload: true})
	_ = command.Wait()
	if !held {
		t.Fatalf("the other process had no device; it said %q", said)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if exists(t, ns) {
		t.Error("the device is still there")
	}
}

// onLostThread runs f on a thread that ends with it, so that f may change what belongs to a thread: privileges, mounts.
// f must not end the test.
func onLostThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() == os.Getpid() {
			// The first thread would stay, and stand for the process in /proc. Hold it while another one is lost.
			onLostThread(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

// ownDev gives the calling thread an empty /dev/net that no other sees.
func ownDev(options uintptr) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount("tmpfs", "/dev/net", "tmpfs", options, "")
}

func dropCapability(which int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	sets[which/32].Effective &^= 1 << (which % 32)
	return unix.Capset(&header, &sets[0])
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	ns := nstest.New(t)
	mustOpen(t, ns, tun.DeviceConfig{}).Close() // or it is missing
	dev := func(options uintptr, fill func() error) func() error {
		return func() error {
			if err := ownDev(options); err != nil {
				return err
			}
			return fill()
		}
	}
	node := func(minor uint32) func() error {
		return func() error { return unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o600, int(unix.Mkdev(10, minor))) }
	}
	const free = 241 // a minor number of no driver
	for _, c := range []struct {
		name    string
		prepare func() error
		want    error
		advice  string
	}{
		{"no capability", func() error { return dropCapability(unix.CAP_NET_ADMIN) }, unix.EPERM, "CAP_NET_ADMIN"},
		{"no node", dev(0, func() error { return nil }), unix.ENOENT, "--device /dev/net/tun"},
		{"a directory", dev(0, func() error { return unix.Mkdir("/dev/net/tun", 0o755) }), unix.EISDIR, "--device"},
		{"a file", dev(0, func() error { return os.WriteFile("/dev/net/tun", nil, 0o600) }), unix.ENOTTY, "10, 200"},
		{"no driver", dev(0, node(free)), unix.ENODEV, "modprobe tun"},
		{"nodev", dev(unix.MS_NODEV, node(200)), unix.EACCES, "chmod 666"},
		{"another user", dev(0, func() error {
			if err := node(200)(); err != nil {
				return err
			}
			if err := unix.Chown("/dev/net/tun", 1234, 1234); err != nil {
				return err
			}
			return errors.Join(dropCapability(unix.CAP_DAC_OVERRIDE), dropCapability(unix.CAP_DAC_READ_SEARCH))
		}), unix.EACCES, "chmod 666"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := openFiles(t)
			var setup, err error
			var d *tun.Device
			onLostThread(func() {
				ns.Do(func() {
					if setup = c.prepare(); setup == nil {
						d, err = tun.Open(tun.DeviceConfig{Name: deviceName, Queues: 2})
					}
				})
			})
			if errors.Is(setup, unix.EPERM) {
				nstest.Missing(t, "a root that may mount file systems and make device nodes")
			}
			if setup != nil {
				t.Fatalf("the test cannot be set up: %v", setup)
			}
			if err == nil {
				d.Close()
			}
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.advice) {
				t.Errorf("the error is %v", err)
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d descriptors were open, and %d after it", before, after)
			}
		})
	}
}

// TestDeviceOfAUser opens devices that root made for a user, as that user.
func TestDeviceOfAUser(t *testing.T) {
	const user = 65534
	for _, c := range []struct {
		name   string
		flags  uint16
		queues int
		want   error
	}{
		{"one queue", 0, 1, nil},
		{"several queues", unix.IFF_MULTI_QUEUE, 3, nil},
		{"one of several queues", unix.IFF_MULTI_QUEUE, 1, unix.EINVAL},
		{"more queues than one", 0, 3, unix.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := nstest.New(t)
			leave(t, ns, c.flags, user)
			var setup, err error
			var d *tun.Device
			onLostThread(func() {
				ns.Do(func() {
					setup = func() error {
						if err := ownDev(0); err != nil {
							return err
						}
						if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR, int(unix.Mkdev(10, 200))); err != nil {
							return err
						}
						if err := unix.Chmod("/dev/net/tun", 0o666); err != nil {
							return err
						}
						// The system call, as package unix would change all threads.
						if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, user, user, user); errno != 0 {
							return errno
						}
						return nil
					}()
					if setup == nil {
						d, err = tun.Open(tun.DeviceConfig{Name: deviceName, Queues: c.queues, Offload: true})
					}
				})
			})
			if errors.Is(setup, unix.EPERM) {
				nstest.Missing(t, "a root that may mount file systems and make device nodes")
			}
			if setup != nil {
				t.Fatalf("the test cannot be set up: %v", setup)
			}
			if err == nil {
				d.Close()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("the error is %v", err)
			}
			if !exists(t, ns) {
				t.Error("the device is not the user's any more")
			}
		})
	}
}
