package balancer

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestTunables(t *testing.T) {
	values := map[string]int{ // and the highest value of each
		"conn_reuse_mode": 3, "expire_nodest_conn": 1, "expire_quiescent_template": 1, "sloppy_tcp": 1,
	}
	defaults := map[string]int{"conn_reuse_mode": 1, "expire_nodest_conn": 1, "expire_quiescent_template": 1, "sloppy_tcp": 0}
	if got, want := TunableNames(), slices.Sorted(maps.Keys(values)); !slices.Equal(got, want) {
		t.Fatalf("the tunables are %v, want %v", got, want)
	}
	for name, highest := range values {
		tunables := DefaultTunables()
		if got, err := tunables.Get(name); err != nil || got != defaults[name] {
			t.Errorf("%s is %d by default, %v", name, got, err)
		}
		for value := range highest + 1 {
			if err := tunables.Set(name, value); err != nil {
				t.Errorf("%s = %d: %v", name, value, err)
			}
			if got, err := tunables.Get(name); err != nil || got != value {
				t.Errorf("%s was set to %d and is %d, %v", name, value, got, err)
			}
			if err := tunables.validate(); err != nil {
				t.Errorf("%s = %d: %v", name, value, err)
			}
			for other := range values {
				if got, _ := tunables.Get(other); other != name && got != defaults[other] {
					t.Errorf("setting %s changed %s", name, other)
				}
			}
		}
		for _, value := range []int{-1, highest + 1, 1 << 40} {
			before := tunables
			if got := fieldErrors(t, tunables.Set(name, value)); got["tunables."+name] == "" || tunables != before {
				t.Errorf("%s = %d: %v, is now %+v", name, value, got, tunables)
			}
		}
	}
	tunables := DefaultTunables()
	for _, err := range []error{tunables.Set("drop_entry", 1), second(tunables.Get("drop_entry"))} {
		if !errors.Is(err, ErrNoTunable) || !strings.Contains(err.Error(), "conn_reuse_mode, expire_nodest_conn") {
			t.Errorf("a tunable that does not exist: %v", err)
		}
	}
}

func second[A, B any](_ A, b B) B { return b }

func TestProtocolText(t *testing.T) {
	for text, protocol := range map[string]Protocol{`"tcp"`: TCP, `"udp"`: UDP} {
		var got Protocol
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != protocol {
			t.Errorf("%s is read as %v, %v", text, got, err)
		}
		if b, err := json.Marshal(protocol); err != nil || string(b) != text {
			t.Errorf("%v is written as %s, %v", protocol, b, err)
		}
	}
	var got Protocol
	for _, text := range []string{`"sctp"`, `"TCP"`, `""`} {
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s is read as %v", text, got)
		}
	}
}
