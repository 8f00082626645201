package balancer

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/lvsd/lvsd/balancer/sched"
	"github.com/lvsd/lvsd/stack"
)

// Spec is the whole desired state of a director, as plain values. What runs is what the last [Director.Apply] was given.
type Spec struct {
	Services []ServiceSpec
	Timeouts Timeouts
	Tunables Tunables
}

// ServiceSpec describes a virtual service. Protocol and Address are its identity.
type ServiceSpec struct {
	Protocol  Protocol
	Address   netip.AddrPort // VIP and port
	Scheduler string         // a name that sched.Names lists; empty for DefaultScheduler
	Servers   []ServerSpec   // in the order in which they were added; schedulers see the newest first, as in IPVS
}

// ServerSpec describes a real server of a service. Address is its identity within the service.
type ServerSpec struct {
	Address netip.AddrPort // RIP and port
	Weight  int            // 0 quiesces: connections go on, new ones go elsewhere
}

// Timeouts are the idle times that `ipvsadm --set` knows (ipvs.md 4.5). They hold from a connection's next packet on.
// Zero fields are taken as the defaults of 15 minutes, 2 minutes and 5 minutes.
type Timeouts struct {
	TCP    time.Duration // established
	TCPFin time.Duration // after a FIN from the server
	UDP    time.Duration
}

// Bounds on what a Spec may ask for.
const (
	DefaultScheduler = "wlc"
	DefaultWeight    = 1
	MaxWeight        = 1<<31 - 1
	MaxTimeout       = 31 * 24 * time.Hour // as in ipvsadm
)

// DefaultTimeouts are those of IPVS.
func DefaultTimeouts() Timeouts {
	return Timeouts{TCP: 15 * time.Minute, TCPFin: 2 * time.Minute, UDP: 5 * time.Minute}
}

// DefaultSpec is a director without services.
func DefaultSpec() Spec {
	return Spec{Timeouts: DefaultTimeouts(), Tunables: DefaultTunables()}
}

// Protocol is a transport protocol that can be balanced, by its IP protocol number.
type Protocol uint8

const (
	TCP Protocol = stack.ProtocolTCP
	UDP Protocol = stack.ProtocolUDP
)

func (p Protocol) String() string { return stack.ProtocolName(uint8(p)) }

// MarshalText writes "tcp" or "udp".
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads "tcp" or "udp".
func (p *Protocol) UnmarshalText(text []byte) error {
	switch s := string(text); s {
	case "tcp":
		*p = TCP
	case "udp":
		*p = UDP
	default:
		return fmt.Errorf("protocol %q is not one of tcp, udp", s)
	}
	return nil
}

// FieldError is one thing that is wrong with a Spec.
type FieldError struct {
	Field   string // which value, such as "service[2].server[0].weight"; indices count from 0
	Problem string // what is wrong with it and what would be right
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

// Validate returns every [FieldError] of the spec, joined, or nil.
func (s *Spec) Validate() error {
	var errs []error
	report := func(field, format string, args ...any) {
		errs = append(errs, &FieldError{field, fmt.Sprintf(format, args...)})
	}
	services := make(map[serviceKey]int)
	vips := make(map[netip.Addr]bool)
	for _, svc := range s.Services {
		vips[svc.Address.Addr()] = true
	}
	for i, svc := range s.Services {
		field := fmt.Sprintf("service[%d]", i)
		if svc.Protocol != TCP && svc.Protocol != UDP {
			report(field+".protocol", "must be tcp or udp")
		}
		if problem := addressProblem(svc.Address); problem != "" {
			report(field+".address", "%s", problem)
		} else if first, dup := services[svc.key()]; dup {
			report(field+".address", "%s %s is already service[%d]; put all its servers there", svc.Protocol, svc.Address, first)
		} else {
			services[svc.key()] = i
		}
		if name := cmp.Or(svc.Scheduler, DefaultScheduler); !sched.Known(name) {
			report(field+".scheduler", "%q is not one of %s", name, strings.Join(sched.Names(), ", "))
		}
		servers := make(map[netip.AddrPort]int)
		for j, srv := range svc.Servers {
			field := fmt.Sprintf("%s.server[%d]", field, j)
			if problem := addressProblem(srv.Address); problem != "" {
				report(field+".address", "%s", problem)
			} else if srv.Address.Addr().Is4() != svc.Address.Addr().Is4() && svc.Address.IsValid() {
				report(field+".address", "%s is of another address family than the service's %s", srv.Address.Addr(), svc.Address.Addr())
			} else if vips[srv.Address.Addr()] {
				report(field+".address", "%s is a VIP of this configuration, so packets for it would come back to the director", srv.Address.Addr())
			} else if first, dup := servers[srv.Address]; dup {
				report(field+".address", "%s is already server[%d] of this service", srv.Address, first)
			} else {
				servers[srv.Address] = j
			}
			if srv.Weight < 0 || srv.Weight > MaxWeight {
				report(field+".weight", "must be 0 to %d", MaxWeight)
			}
		}
	}
	for _, t := range []struct {
		name  string
		value time.Duration
	}{{"tcp", s.Timeouts.TCP}, {"tcpfin", s.Timeouts.TCPFin}, {"udp", s.Timeouts.UDP}} {
		if t.value < 0 || t.value > MaxTimeout || t.value%time.Second != 0 {
			report("timeouts."+t.name, "must be whole seconds, 1s to %v", MaxTimeout)
		}
	}
	if err := s.Tunables.validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// addressProblem says what keeps an address and port from being a VIP's or a RIP's, or nothing.
func addressProblem(a netip.AddrPort) string {
	addr := a.Addr()
	switch {
	case !a.IsValid():
		return `must be an address and a port, such as "10.0.0.1:80" or "[2001:db8::1]:80"`
	case addr.Zone() != "" || addr.IsLinkLocalUnicast() && addr.Is6():
		return fmt.Sprintf("%s is link-local; packets to it are never routed", addr)
	case addr.Is4In6():
		return fmt.Sprintf("%s is an IPv4 address in IPv6 form; write %s", addr, addr.Unmap())
	case addr.IsUnspecified(), addr.IsLoopback(), addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Sprintf("%s is not an address that packets can be routed to", addr)
	case a.Port() == 0:
		return "port 0 is not a port; write 1 to 65535"
	}
	return ""
}

// serviceKey is a service's identity in the form the packet path looks it up by.
type serviceKey struct {
	addr     stack.Addr
	port     uint16
	protocol uint8
}

func (s *ServiceSpec) key() serviceKey {
	return serviceKey{stack.AddrFrom(s.Address.Addr()), s.Address.Port(), uint8(s.Protocol)}
}
