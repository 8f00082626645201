package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// sysctls reads and writes the files below /proc/sys/net/ipv4 and ipv6, and remembers what it changed. The directories
// are held open because what is in them depends on the network namespace of the thread that opens them.
type sysctls struct {
	v4, v6 *os.Root // v6 is nil if the kernel has no IPv6
	undo   []undo
}

// undo is a changed sysctl, and those that the kernel changed with it.
type undo struct {
	name, old, new string
	followers      []undo
}

const sysctlDir = "/proc/sys/net/"

func openSysctls() (*sysctls, error) {
	v4, err := os.OpenRoot(sysctlDir + "ipv4")
	if err != nil {
		return nil, err
	}
	v6, err := os.OpenRoot(sysctlDir + "ipv6")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		v4.Close()
		return nil, err
	}
	return &sysctls{v4: v4, v6: v6}, nil
}

func (s *sysctls) close() {
	s.v4.Close()
	if s.v6 != nil {
		s.v6.Close()
	}
}

// open opens a file by its name below /proc/sys/net, such as ipv4/ip_forward.
func (s *sysctls) open(name string, flag int) (*os.File, error) {
	family, rest, _ := strings.Cut(name, "/")
	root := s.v4
	if family == "ipv6" {
		root = s.v6
	}
	if root == nil {
		return nil, &fs.PathError{Op: "open", Path: sysctlDir + name, Err: fs.ErrNotExist}
	}
	f, err := root.OpenFile(rest, flag, 0)
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = &fs.PathError{Op: "open", Path: sysctlDir + name, Err: pathErr.Err}
	}
	return f, err
}

func (s *sysctls) read(name string) (string, error) {
	f, err := s.open(name, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, 256)
	n, err := f.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

// number reads a sysctl that is a number; 0 if there is none.
func (s *sysctls) number(name string) (n int) {
	text, err := s.read(name)
	if err == nil {
		fmt.Sscan(text, &n)
	}
	return n
}

func (s *sysctls) write(name, value string) error {
	f, err := s.open(name, os.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// writable tells whether a sysctl may be written, without doing it.
func (s *sysctls) writable(name string) bool {
	f, err := s.open(name, os.O_WRONLY)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// set gives a sysctl another value, and remembers the old one.
func (s *sysctls) set(name, value string) error {
	old, err := s.read(name)
	if err != nil || old == value {
		return err
	}
	u := undo{name: name, old: old, new: value}
	switch name {
	case "ipv4/ip_forward":
		u.followers = s.snapshot("ipv4/conf", "forwarding", "accept_redirects")
	case "ipv6/conf/all/forwarding":
		u.followers = s.snapshot("ipv6/conf", "forwarding")
	}
	if err := s.write(name, value); err != nil {
		return err
	}
	for i := range u.followers {
		u.followers[i].new, _ = s.read(u.followers[i].name)
	}
	s.undo = append(s.undo, u)
	return nil
}

// snapshot reads some sysctls of every interface.
func (s *sysctls) snapshot(dir string, keys ...string) (values []undo) {
	d, err := s.open(dir, os.O_RDONLY)
	if err != nil {
		return nil
	}
	defer d.Close()
	interfaces, _ := d.Readdirnames(-1)
	for _, i := range interfaces {
		for _, key := range keys {
			name := path.Join(dir, i, key)
			if old, err := s.read(name); err == nil {
				values = append(values, undo{name: name, old: old})
			}
		}
	}
	return values
}

// restore puts back what was changed, in reverse order, unless somebody has changed it since.
func (s *sysctls) restore() error {
	var errs []error
	for _, u := range slices.Backward(s.undo) {
		followers := slices.DeleteFunc(u.followers, func(f undo) bool { return !s.has(f.name, f.new) })
		if !s.has(u.name, u.new) {
			continue
		}
		for _, u := range append([]undo{u}, followers...) {
			if s.has(u.name, u.old) {
				continue
			}
			if err := s.write(u.name, u.old); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("put %s back to %s: %w", sysctlKey(u.name), u.old, err))
			}
		}
	}
	s.undo = nil
	return errors.Join(errs...)
}

// has tells whether a sysctl has a value now.
func (s *sysctls) has(name, value string) bool {
	now, err := s.read(name)
	return err == nil && now == value
}

// sysctlKey is the name of a file below /proc/sys/net as the sysctl program takes it. Interface names may have dots,
// for which it takes slashes instead.
func sysctlKey(name string) string {
	name = "net/" + name
	if strings.Contains(name, ".") {
		return name
	}
	return strings.ReplaceAll(name, "/", ".")
}

// need tells what becomes of a sysctl that cannot be set.
type need int

const (
	helps  need = iota // a remark
	needed             // an error
)

// setting is a sysctl that a director wants to have a value.
type setting struct {
	name  string // below /proc/sys/net
	value string
	need  need
	why   string // what does not work without it
	// before is the sysctl to set before lvsd starts if lvsd itself may not; empty if it is the same.
	before string
	told   string // a remark about the change, if it was made
}

// set makes the settings that differ, and returns how many it changed. After a needed one that fails, the others of its
// family are left alone.
func (k *kernel) set(settings []setting) (changed int, remarks []Remark, err error) {
	var errs []error
	skip := make(map[string]bool)
	for _, s := range settings {
		family, _, _ := strings.Cut(s.name, "/")
		if skip[family] {
			continue
		}
		now, err := k.sysctls.read(s.name)
		if err == nil && now == s.value {
			continue
		}
		if err == nil {
			err = k.sysctls.set(s.name, s.value)
		}
		key := sysctlKey(s.name)
		switch {
		case err == nil:
			changed++
			if s.told != "" {
				remarks = append(remarks, Remark{About: key, Problem: s.told})
			}
		case s.need == needed:
			skip[family] = true
			errs = append(errs, fmt.Errorf("set %s to %s: %w; without it %s; %s", key, s.value, err, s.why, s.remedy()))
		case errors.Is(err, fs.ErrNotExist):
			// Only in the first user namespace does the kernel show all of these.
		default:
			remarks = append(remarks, Remark{
				About:   key,
				Problem: fmt.Sprintf("it is %s and cannot be set to %s (%v); without it %s", now, s.value, err, s.why),
				Remedy:  s.remedy(),
			})
		}
	}
	return changed, remarks, errors.Join(errs...)
}

// remedy tells how to make a setting from outside.
func (s setting) remedy() string {
	name := s.name
	if s.before != "" {
		name = s.before
	}
	assignment := sysctlKey(name) + "=" + s.value
	return fmt.Sprintf("set it before lvsd starts, with `sysctl -w %s` as root of the network namespace, or with `--sysctl %s` when the container is made",
		assignment, assignment)
}
