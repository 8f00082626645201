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

// What the user can do about an error of opening the node, and of making a device or attaching to it.
var (
	nodeAdvice = map[unix.Errno]string{
		unix.ENOENT: "a container needs `--device /dev/net/tun`; on a host, `mkdir -p /dev/net && " +
			"mknod -m 666 /dev/net/tun c 10 200` makes it",
		unix.EISDIR: "it was probably mounted from a host that has none; give the container `--device /dev/net/tun` instead",
		unix.EACCES: "its mode does not let this user in, and being root in a user namespace does not help; " +
			"`chmod 666 /dev/net/tun` on the host is the usual mode and safe, as making a device takes CAP_NET_ADMIN all the same",
		unix.EPERM: "the container's device rules forbid it; a container needs `--device /dev/net/tun`, a systemd unit " +
			"`DeviceAllow=/dev/net/tun rw`",
		unix.ENODEV: noDriver,
		unix.ENXIO:  noDriver,
		unix.EMFILE: noFiles,
	}
	deviceAdvice = map[unix.Errno]string{
		unix.EPERM: "this takes CAP_NET_ADMIN in the network namespace: run as root, give a container " +
			"`--cap-add NET_ADMIN`, a systemd unit `AmbientCapabilities=CAP_NET_ADMIN`, " +
			"or let root make the device for this user by `ip tuntap add`",
		unix.ENOTTY: node + " is not the tun driver; it must be the character device 10, 200",
		unix.EINVAL: "this kernel's tun devices cannot have a virtio_net_hdr or several queues, " +
			"or an interface of the same name is in the way",
		unix.EMFILE: noFiles,
	}
)

const (
	noDriver = "the kernel has no tun driver (CONFIG_TUN); `modprobe tun` on the host loads it if there is one"
	noFiles  = "this process has too many open files; raise the limit by `ulimit -n` or a systemd unit's `LimitNOFILE=`"
)

// advise says what was tried, and adds advice to the error if there is any.
func advise(trying string, err error, advice map[unix.Errno]string) error {
	var errno unix.Errno
	if errors.As(err, &errno) && advice[errno] != "" {
		return fmt.Errorf("%s: %w (%s)", trying, err, advice[errno])
	}
	return fmt.Errorf("%s: %w", trying, err)
}

// openNode returns a descriptor that is not attached to a device yet. It does not block.
func openNode() (int, error) {
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, advise("open "+node, err, nodeAdvice)
	}
	return fd, nil
}

// holders names the processes that have a descriptor of the device, as far as /proc shows them, for an error message.
func holders(name string) string {
	var who []string
	files, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	for _, file := range files {
		info, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(info), "\niff:\t"+name+"\n") {
			continue
		}
		process := filepath.Dir(filepath.Dir(file))
		if !isHere(process) {
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

// isHere tells whether a thread of a process is in the network namespace of the calling thread.
func isHere(process string) bool {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return false
	}
	threads, _ := filepath.Glob(process + "/task/*/ns/net")
	return slices.ContainsFunc(threads, func(thread string) bool {
		there, err := os.Readlink(thread)
		return err == nil && there == here
	})
}
