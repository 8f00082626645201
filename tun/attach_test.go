package tun

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSetOffloadsAsksForLessAndLess(t *testing.T) {
	tso := Offloads{Checksum: true, TSO4: true, TSO6: true, ECN: true}
	all := tso
	all.USO = true
	for _, c := range []struct {
		name   string
		on     bool
		knows  int // the bits that the kernel knows
		err    error
		asked  []int
		agreed Offloads
	}{
		{"Linux 6.2", true, 0x7f, unix.EINVAL, []int{0x6f}, all},
		{"older", true, 0x1f, unix.EINVAL, []int{0x6f, 0x0f}, tso},
		{"none", true, 0, unix.EINVAL, []int{0x6f, 0x0f, 0}, Offloads{}},
		{"not wanted", false, 0x7f, unix.EINVAL, []int{0}, Offloads{}},
		{"dead", true, 0, unix.EBADFD, []int{0x6f}, Offloads{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked []int
			got, err := setOffloads(c.on, func(bits int) error {
				if asked = append(asked, bits); bits&^c.knows != 0 {
					return c.err
				}
				return nil
			})
			if got != c.agreed || !slices.Equal(asked, c.asked) {
				t.Errorf("asked for %#x, got %s", asked, got)
			}
			if dead := c.err == unix.EBADFD; dead != errors.Is(err, unix.EBADFD) || !dead && err != nil {
				t.Error(err)
			}
		})
	}
}
