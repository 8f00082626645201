package conf

import (
	_ "embed"
	"reflect"

	"github.com/lvsd/lvsd/balancer"
)

// Config is what a configuration file says, with a default for whatever it does not say.
type Config struct {
	Director Director
	Spec     balancer.Spec
}

// Director is how the director itself is set up: the [director] table. A running director takes none of it over from
// a new file; see [Director.RestartKeys].
type Director struct {
	Tun         string    `toml:"tun"`         // name of the tun device
	Queues      int       `toml:"queues"`      // of the device, each with a worker; 0 is automatic, see QueueCount
	IO          IOMode    `toml:"io"`          // how frames are moved
	Offload     bool      `toml:"offload"`     // let the kernel hand over super-packets and leave checksums to it
	Routes      RouteMode `toml:"routes"`      // who makes routes, rules and neighbour entries
	Table       int       `toml:"table"`       // number of the routing table of the reply path
	Priority    int       `toml:"priority"`    // of the ip rules that lead into Table
	Socket      string    `toml:"socket"`      // path of the admin socket
	Connections int       `toml:"connections"` // most connections at a time
}

// IOMode is a way to move frames between the tun device and the director.
type IOMode string

const (
	IOAuto IOMode = "auto" // the best that this kernel allows
	IOPoll IOMode = "poll" // nonblocking system calls and poll
)

// RouteMode says who wires the namespace.
type RouteMode string

const (
	RoutesAuto   RouteMode = "auto"   // the director makes what it needs and takes it away again
	RoutesManual RouteMode = "manual" // the operator does; the director changes nothing
)

// Bounds of the numbers in Director. Table must also differ from the kernel's own tables 253 to 255.
const (
	MaxQueues      = 256
	MaxTable       = 1<<31 - 1
	MaxPriority    = 32765 // the rule for the main table is 32766; behind it no reply would find ours
	MinConnections = 1 << 10
	MaxConnections = 1 << 27
)

// Default is what an empty file means.
func Default() *Config {
	return &Config{
		Director: Director{
			Tun:         "lvs0",
			IO:          IOAuto,
			Offload:     true,
			Routes:      RoutesAuto,
			Table:       196,
			Priority:    196,
			Socket:      "/run/lvsd/lvsd.sock",
			Connections: 1 << 20,
		},
		Spec: balancer.DefaultSpec(),
	}
}

// QueueCount returns the number of queues on a machine with so many CPUs: Queues, or if that is 0 half of the CPUs,
// so that the kernel's share of the work finds room.
func (d Director) QueueCount(cpus int) int {
	if d.Queues == 0 {
		return min(max(1, cpus/2), MaxQueues)
	}
	return d.Queues
}

// RestartKeys returns the keys, such as "director.queues", in which next differs from d. All of them hold from the
// start of a director to its end, so that a reload has to say that they wait for a restart.
func (d Director) RestartKeys(next Director) []string {
	var keys []string
	now, then := reflect.ValueOf(d), reflect.ValueOf(next)
	for i := range now.NumField() {
		if !now.Field(i).Equal(then.Field(i)) {
			keys = append(keys, "director."+now.Type().Field(i).Tag.Get("toml"))
		}
	}
	return keys
}

// Options change how a file is read.
type Options struct {
	// ExpandEnv, if not nil, turns the replacement of ${NAME} on. It returns a variable's value and whether it is
	// set, as os.LookupEnv does.
	ExpandEnv func(name string) (value string, set bool)
}

// Load reads the configuration file at path. On failure the error is of type [Errors] and there is no Config; a file
// that cannot be read makes a single error that wraps the cause.
func Load(path string, opts Options) (*Config, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, Errors{{File: path, Problem: err.Error(), cause: err}}
	}
	return Parse(path, data, opts)
}

// Parse is Load for a file that was read already. The name only appears in errors.
func Parse(name string, data []byte, opts Options) (*Config, error) {
	cfg, findings := parse(data, opts)
	if len(findings) > 0 {
		return nil, newErrors(name, findings)
	}
	return cfg, nil
}

//go:embed example.toml
var example string

// Example returns a configuration file that explains every key with its unit, default and range. It is valid as it
// is.
func Example() string { return example }
