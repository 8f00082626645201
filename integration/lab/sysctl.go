package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Sysctl reads a kernel parameter of the namespace, such as "net.ipv4.ip_forward". Where a part of the name has a dot in
// it, as a link's name may, the parts are separated by slashes instead.
func (h *Host) Sysctl(name string) (value string, err error) {
	err = h.Do(func() error {
		value, err = readSysctl(name)
		return err
	})
	return value, err
}

// SetSysctl sets a kernel parameter of the namespace; names are as in [Host.Sysctl].
func (h *Host) SetSysctl(name, value string) error {
	return h.Do(func() error { return writeSysctl(name, value) })
}

// sysctlPath is below /proc/sys, which shows each thread the namespace it is in.
func sysctlPath(name string) string {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	return "/proc/sys/" + name
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlPath(name))
	if err != nil {
		return "", fmt.Errorf("read the kernel parameter %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// writeSysctl leaves a parameter alone that has the value already, for the sake of containers where /proc/sys is
// read-only.
func writeSysctl(name, value string) error {
	old, err := readSysctl(name)
	if err == nil && old == value {
		return nil
	}
	if err := os.WriteFile(sysctlPath(name), []byte(value), 0); err != nil {
		hint := ""
		if errors.Is(err, unix.EROFS) {
			hint = "; /proc/sys is read-only here, as it is in most containers: use one that may write to it" +
				" (podman --security-opt unmask=ALL, docker --privileged)"
		}
		return fmt.Errorf("set the kernel parameter %s to %s: %w%s", name, value, err, hint)
	}
	return nil
}

// hasIPv6 reports whether the kernel has IPv6, and was not told on its command line to do without.
func hasIPv6() bool {
	_, err := os.Stat("/proc/thread-self/net/if_inet6")
	return err == nil
}
