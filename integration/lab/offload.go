package lab

import (
	"fmt"
	"slices"

	"github.com/safchain/ethtool"
)

// offloads are the features of a link that let a sender leave work to the receiver: checksums and segmentation.
var offloads = []string{
	"tx-checksum-ipv4", "tx-checksum-ipv6", "tx-checksum-ip-generic",
	"tx-generic-segmentation",
	"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation",
	"tx-udp-segmentation",
	"rx-gro",
}

// Offloads returns those offload features that a link can switch, by their names in the kernel, with their states.
func (h *Host) Offloads(link string) (features map[string]bool, err error) {
	err = h.withEthtool(link, func(e *ethtool.Ethtool) error {
		features, err = switchable(e, link)
		return err
	})
	return features, err
}

// SetOffload switches checksum offload, TCP and UDP segmentation offload, GSO and GRO of this end of a link, as
// `ethtool -K LINK tx off gso off tso off gro off` does. With all of it off, packets on the link look as on a wire: none
// is larger than the MTU and each has its checksum.
func (h *Host) SetOffload(link string, on bool) error {
	return h.withEthtool(link, func(e *ethtool.Ethtool) error {
		want, err := switchable(e, link)
		if err != nil {
			return err
		}
		for name := range want {
			want[name] = on
		}
		if err := e.Change(link, want); err != nil {
			return fmt.Errorf("change features: %w", err)
		}
		// The kernel does not call it an error if it changes less than it was asked for.
		got, err := switchable(e, link)
		if err != nil {
			return err
		}
		for name := range want {
			if got[name] != on {
				return fmt.Errorf("feature %s stays %t", name, got[name])
			}
		}
		return nil
	})
}

func (h *Host) withEthtool(link string, f func(*ethtool.Ethtool) error) error {
	return h.Do(func() error {
		e, err := ethtool.NewEthtool()
		if err == nil {
			defer e.Close()
			err = f(e)
		}
		if err != nil {
			return fmt.Errorf("host %s: offload of link %s: %w", h.Name, link, err)
		}
		return nil
	})
}

func switchable(e *ethtool.Ethtool, link string) (map[string]bool, error) {
	all, err := e.FeaturesWithState(link)
	if err != nil {
		return nil, fmt.Errorf("read features: %w", err)
	}
	features := make(map[string]bool)
	for name, state := range all {
		if slices.Contains(offloads, name) && state.Available && !state.NeverChanged {
			features[name] = state.Active
		}
	}
	return features, nil
}
