package tun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// node is where tun devices are made and attached to.
const node = "/dev/net/tun"

// openNode returns a descriptor that is not attached to a device yet. It does not block.
func openNode() (int, error) {
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, advise("open "+node, err)
	}
	return fd, nil
}

// advise wraps an error of doing something with the device and adds what the user can do about it.
func advise(doing string, err error) error {
	advice := ""
	opening := strings.HasPrefix(doing, "open ")
	switch {
	case errors.Is(err, unix.ENOENT) && opening:
		advice = "a container needs `--device /dev/net/tun`; on a host, " +
			"`mkdir -p /dev/net && mknod -m 666 /dev/net/tun c 10 200` makes it"
	case errors.Is(err, unix.EISDIR) && opening:
		advice = "it was probably mounted from a host that has none; give the container `--device /dev/net/tun` instead"
	case errors.Is(err, unix.EACCES) && opening:
		advice = "its mode does not let this user in, and being root in a user namespace does not help; " +
			"`chmod 666 /dev/net/tun` on the host is the usual mode and safe, as devices take CAP_NET_ADMIN all the same"
	case errors.Is(err, unix.EPERM) && opening:
		advice = "the container's device rules forbid it; a container needs `--device /dev/net/tun`, a systemd unit " +
			"`DeviceAllow=/dev/net/tun rw`"
	case (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)) && opening:
		advice = "the kernel has no tun driver (CONFIG_TUN); `modprobe tun` on the host loads it if there is one"
	case errors.Is(err, unix.EPERM):
		advice = "this takes CAP_NET_ADMIN in the network namespace: run as root, give a container " +
			"`--cap-add NET_ADMIN`, a systemd unit `AmbientCapabilities=CAP_NET_ADMIN`; " +
			"or let root make the device for this user by `ip tuntap add`"
	case errors.Is(err, unix.ENOTTY):
		advice = node + " is not the tun driver; it must be the character device 10, 200"
	case errors.Is(err, unix.E2BIG):
		advice = fmt.Sprintf("the device has %d queues already", MaxQueues)
	case errors.Is(err, unix.EMFILE):
		advice = "this process has too many open files; raise its limit (`ulimit -n`, `LimitNOFILE=`)"
	}
	if advice == "" {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w (%s)", doing, err, advice)
}

// holders names the processes that have a descriptor of the device, as far as /proc shows them, for an error message.
func holders(name string) string {
	here, _ := os.Readlink("/proc/thread-self/ns/net")
	var who []string
	files, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	for _, file := range files {
		info, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(info), "\niff:\t"+name+"\n") {
			continue
		}
		process := filepath.Dir(filepath.Dir(file))
		if there, err := os.Readlink(process + "/ns/net"); err == nil && there != here {
			continue
		}
		command, _ := os.ReadFile(process + "/comm")
		one := fmt.Sprintf("process %s, %s", filepath.Base(process), strings.TrimSpace(string(command)))
		if !slices.Contains(who, one) {
			who = append(who, one)
		}
	}
	if who == nil {
		return ""
	}
	return " (" + strings.Join(who, "; ") + ")"
}
