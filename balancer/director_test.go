package balancer

import (
	"fmt"
	"strings"
	"testing"
)

func TestMaxConnections(t *testing.T) {
	for _, n := range []int{-1, -1 << 40} {
		d, err := func() (d *Director, err error) {
			defer func() {
				if p := recover(); p != nil {
					err = fmt.Errorf("panic: %v", p)
					t.Errorf("MaxConnections %d: %v", n, err)
				}
			}()
			return New(Options{MaxConnections: n})
		}()
		if err == nil {
			t.Errorf("MaxConnections %d is taken", n)
			d.Close()
		}
	}
	if d, err := New(Options{MaxConnections: 1 << 50}); err == nil {
		t.Error("MaxConnections of 2^50 is taken")
		d.Close()
	} else if !strings.Contains(err.Error(), "director.connections") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	d, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n, limit := d.ConnCount(); n != 0 || limit != DefaultMaxConnections {
		t.Errorf("by default there are %d of %d connections", n, limit)
	}
}
