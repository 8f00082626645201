package balancer

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Tunables are knobs with the names and meanings of IPVS's sysctls (ipvs.md section 7). Where a default differs from the
// kernel's, docs/differences.md says why.
type Tunables struct {
	// ConnReuseMode says what a SYN does that meets a connection of the same addresses and ports: 0 continues with its
	// server; 1 schedules anew if the connection is finished; bit 2 counts FIN_WAIT as finished too if the director
	// sees one direction only (ipvs.md 4.2).
	ConnReuseMode int
	// ExpireNodestConn ends connections whose server was removed, so that their clients are answered by another or
	// refused; without it their packets vanish (ipvs.md 5.3).
	ExpireNodestConn bool
	// ExpireQuiescentTemplate lets go of persistent clients of a server with weight 0.
	ExpireQuiescentTemplate bool
	// SloppyTCP lets any TCP packet but a reset open a connection.
	SloppyTCP bool
}

// DefaultTunables are lvsd's defaults.
func DefaultTunables() Tunables {
	return Tunables{ConnReuseMode: 1, ExpireNodestConn: true, ExpireQuiescentTemplate: true}
}

type tunable struct {
	name   string
	get    func(*Tunables) int
	set    func(*Tunables, int)
	values []int
}

func boolTunable(name string, field func(*Tunables) *bool) tunable {
	return tunable{
		name: name,
		get: func(t *Tunables) int {
			if *field(t) {
				return 1
			}
			return 0
		},
		set:    func(t *Tunables, v int) { *field(t) = v != 0 },
		values: []int{0, 1},
	}
}

// allTunables is in the order of names.
var allTunables = []tunable{
	{
		name:   "conn_reuse_mode",
		get:    func(t *Tunables) int { return t.ConnReuseMode },
		set:    func(t *Tunables, v int) { t.ConnReuseMode = v },
		values: []int{0, 1, 2, 3},
	},
	boolTunable("expire_nodest_conn", func(t *Tunables) *bool { return &t.ExpireNodestConn }),
	boolTunable("expire_quiescent_template", func(t *Tunables) *bool { return &t.ExpireQuiescentTemplate }),
	boolTunable("sloppy_tcp", func(t *Tunables) *bool { return &t.SloppyTCP }),
}

// TunableNames lists the names that Get and Set know.
func TunableNames() []string {
	names := make([]string, len(allTunables))
	for i, t := range allTunables {
		names[i] = t.name
	}
	return names
}

// ErrNoTunable is the error of Get and Set for a name they do not know.
var ErrNoTunable = errors.New("no such tunable")

func findTunable(name string) (*tunable, error) {
	i := slices.IndexFunc(allTunables, func(t tunable) bool { return t.name == name })
	if i < 0 {
		return nil, fmt.Errorf("%w: %q is not one of %s", ErrNoTunable, name, strings.Join(TunableNames(), ", "))
	}
	return &allTunables[i], nil
}

// Get returns the value of the tunable with an IPVS name.
func (t *Tunables) Get(name string) (int, error) {
	k, err := findTunable(name)
	if err != nil {
		return 0, err
	}
	return k.get(t), nil
}

// Set changes the tunable with an IPVS name.
func (t *Tunables) Set(name string, value int) error {
	k, err := findTunable(name)
	if err != nil {
		return err
	}
	if !slices.Contains(k.values, value) {
		return k.badValue()
	}
	k.set(t, value)
	return nil
}

func (k *tunable) badValue() error {
	words := make([]string, len(k.values))
	for i, v := range k.values {
		words[i] = strconv.Itoa(v)
	}
	return &FieldError{"tunables." + k.name, "must be one of " + strings.Join(words, ", ")}
}

func (t *Tunables) validate() error {
	var errs []error
	for _, k := range allTunables {
		if !slices.Contains(k.values, k.get(t)) {
			errs = append(errs, k.badValue())
		}
	}
	return errors.Join(errs...)
}
