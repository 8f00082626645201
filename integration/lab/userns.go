package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Check returns nil if this process can make hosts. Otherwise the error says what is missing and what to do.
func Check() error {
	h, err := newHost("check")
	if err != nil {
		return err
	}
	return h.Close()
}

// insideVariable is set in the environment of the program that EnterUserNamespace runs, so that it does not do so again.
const insideVariable = "LVSD_LAB_USER_NAMESPACE"

// EnterUserNamespace is how an ordinary user gets a lab: it runs this program again, as root of a user namespace and a
// network namespace of its own, with the same environment and standard files and with args after the program's name, and
// waits for it. There root's powers end at what belongs to the namespace: outside, files are read and written as the
// user. Where ctx is done, the program gets a SIGTERM.
//
// The error is nil if the program exited with 0, an [*exec.ExitError] if it did not, and otherwise says what keeps a
// user from having a namespace here, and what the machine's administrator can do about it.
func EnterUserNamespace(ctx context.Context, args ...string) error {
	if os.Getenv(insideVariable) != "" {
		if err := Check(); err != nil {
			return fmt.Errorf("inside a user namespace: %w", err)
		}
		return errors.New("already inside a user namespace, where hosts can be made")
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second

	runtime.LockOSThread() // the program dies with the thread that started it
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make a user namespace: %w%s", err, userNamespaceHint(err, os.DirFS("/proc/sys")))
	}
	return cmd.Wait()
}

// inUserNamespace reports whether the process is in another user namespace than the machine's first one, which alone
// maps all numbers to themselves.
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") != "0 0 4294967295"
}

// namespaceHint says what to do when a network namespace cannot be made, as a continuation of the error's sentence.
func namespaceHint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM) && inUserNamespace():
		return userNamespaceHint(err, os.DirFS("/proc/sys"))
	case errors.Is(err, unix.EPERM):
		return "; that needs CAP_SYS_ADMIN: be root, or enter a user namespace first, as `unshare -Urn PROGRAM` does"
	case errors.Is(err, unix.ENOSPC):
		return userNamespaceHint(err, os.DirFS("/proc/sys"))
	case errors.Is(err, unix.EINVAL):
		return "; the kernel was built without network namespaces (CONFIG_NET_NS)"
	}
	return ""
}

// userNamespaceHint finds out what forbids a user namespace, or a network namespace in one. sys is /proc/sys.
func userNamespaceHint(err error, sys fs.FS) string {
	is := func(name, value string) bool {
		b, err := fs.ReadFile(sys, name)
		return err == nil && strings.TrimSpace(string(b)) == value
	}
	const asRoot = "; the administrator can allow it: "
	switch {
	case is("user/max_user_namespaces", "0"):
		return asRoot + "sysctl user.max_user_namespaces=1000"
	case is("user/max_net_namespaces", "0"):
		return asRoot + "sysctl user.max_net_namespaces=1000"
	case errors.Is(err, unix.ENOSPC):
		return "; there are as many namespaces as sysctl user.max_user_namespaces and user.max_net_namespaces allow"
	case is("kernel/unprivileged_userns_clone", "0"):
		return asRoot + "sysctl kernel.unprivileged_userns_clone=1"
	case is("kernel/apparmor_restrict_unprivileged_userns", "1"):
		return asRoot + "an AppArmor profile with `userns,` for this program, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
	case errors.Is(err, unix.EINVAL):
		return "; the kernel was built without user or network namespaces (CONFIG_USER_NS, CONFIG_NET_NS)"
	case errors.Is(err, unix.EPERM):
		return "; something forbids it, such as a container's seccomp profile or a chroot: run as root," +
			" or give the container CAP_SYS_ADMIN or --security-opt seccomp=unconfined"
	}
	return ""
}
