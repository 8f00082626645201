package conf

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/lvsd/lvsd/balancer"
)

// sections are the tables of a file and their keys, in the order in which the example explains them. The file itself
// is the section "".
var sections = []struct {
	name string
	keys []string
}{
	{"", []string{"director", "timeouts", "tunables", "service"}},
	{"director", []string{"tun", "queues", "io", "offload", "routes", "table", "priority", "socket", "connections"}},
	{"timeouts", []string{"tcp", "tcpfin", "udp"}},
	{"tunables", balancer.TunableNames()},
	{"service", []string{"address", "protocol", "scheduler", "server"}},
	{"service.server", []string{"address", "weight"}},
}

func keysOf(section string) []string {
	for _, s := range sections {
		if s.name == section {
			return s.keys
		}
	}
	return nil
}

// parse is Parse but for the name of the file.
func parse(data []byte, opts Options) (*Config, []finding) {
	text, findings := textOf(data)
	if findings != nil {
		return nil, findings
	}
	src := source{text: text}
	if opts.ExpandEnv != nil {
		if src, findings = expandEnv(text, opts.ExpandEnv); findings != nil {
			return nil, findings
		}
	}
	doc, findings := parseTOML(src)
	if findings != nil {
		return nil, findings
	}
	cfg := Default()
	return cfg, decode(doc, cfg)
}

// decode walks through a document.
func decode(doc document, cfg *Config) []finding {
	r := &reader{root: doc.root, reported: make(map[string]bool)}
	file := table{reader: r, values: doc.values, at: doc.root}
	file.unknownKeys()
	if t, ok := file.table("director"); ok {
		t.director(&cfg.Director)
	}
	if t, ok := file.table("timeouts"); ok {
		t.timeouts(&cfg.Spec.Timeouts)
	}
	if t, ok := file.table("tunables"); ok {
		t.tunables(&cfg.Spec.Tunables)
	}
	for _, t := range file.tables("service", "service") {
		cfg.Spec.Services = append(cfg.Spec.Services, t.service())
	}
	r.validate(&cfg.Spec)
	return r.findings
}

func (t *table) director(d *Director) {
	t.unknownKeys()
	if t.text("tun", &d.Tun) {
		if problem := interfaceProblem(d.Tun); problem != "" {
			t.reportKey("tun", "%s %s; write a name such as \"lvs0\"", quote(d.Tun), problem)
		}
	}
	t.integerIn("queues", &d.Queues, 0, MaxQueues)
	choice(t, "io", &d.IO, IOAuto, IOPoll)
	t.boolean("offload", &d.Offload)
	choice(t, "routes", &d.Routes, RoutesAuto, RoutesManual)
	t.integerIn("table", &d.Table, 1, MaxTable)
	if d.Table >= 253 && d.Table <= 255 {
		t.reportKey("table", "%d is a table of the kernel itself (253 default, 254 main, 255 local); write another number", d.Table)
	}
	t.integerIn("priority", &d.Priority, 1, MaxPriority)
	if t.text("socket", &d.Socket) {
		if problem := socketProblem(d.Socket); problem != "" {
			t.reportKey("socket", "%s %s; write a path such as \"/run/lvsd/lvsd.sock\"", quote(d.Socket), problem)
		}
	}
	t.integerIn("connections", &d.Connections, MinConnections, MaxConnections)
}

// interfaceProblem says what keeps a name from being a network interface's: the kernel's dev_valid_name, and the
// names that /proc/sys/net/ipv4/conf and the loopback device have taken.
func interfaceProblem(name string) string {
	switch {
	case name == "":
		return "is empty"
	case len(name) > 15:
		return fmt.Sprintf("has %d bytes, an interface name at most 15", len(name))
	case name == "." || name == ".." || name == "all" || name == "default" || name == "lo":
		return "cannot be the name of an interface of its own"
	case strings.ContainsAny(name, "/:%"):
		return "has one of / : % in it"
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return "has a blank or a control character in it"
	}
	return ""
}

// socketProblem says what keeps a path from being a Unix socket's (unix(7)).
func socketProblem(p string) string {
	switch {
	case p == "":
		return "is empty"
	case len(p) > 107:
		return fmt.Sprintf("has %d bytes, the path of a socket at most 107", len(p))
	case strings.ContainsRune(p, 0):
		return "has a NUL byte in it"
	case !path.IsAbs(p):
		return "is not an absolute path"
	case strings.HasSuffix(p, "/"):
		return "is a directory"
	}
	return ""
}

func (t *table) timeouts(to *balancer.Timeouts) {
	t.unknownKeys()
	t.duration("tcp", &to.TCP)
	t.duration("tcpfin", &to.TCPFin)
	t.duration("udp", &to.UDP)
}

func (t *table) tunables(tunables *balancer.Tunables) {
	t.unknownKeys()
	for _, name := range keysOf("tunables") {
		v := 0
		if on, ok := t.values[name].(bool); ok && isSwitch(name) {
			if on {
				v = 1
			}
		} else if !t.integer(name, &v) {
			continue
		}
		var fieldErr *balancer.FieldError
		if err := tunables.Set(name, v); errors.As(err, &fieldErr) {
			t.reportKey(name, "%s, not %d", fieldErr.Problem, v)
		} else if err != nil {
			t.reportKey(name, "%v", err)
		}
	}
}

// isSwitch tells whether a tunable only knows 0 and 1.
func isSwitch(name string) bool {
	var scratch balancer.Tunables
	return scratch.Set(name, 1) == nil && scratch.Set(name, 2) != nil
}

func (t *table) service() balancer.ServiceSpec {
	if t.values == nil {
		return balancer.ServiceSpec{}
	}
	t.unknownKeys()
	svc := balancer.ServiceSpec{Protocol: balancer.TCP, Scheduler: balancer.DefaultScheduler}
	serverPort := uint16(1) // stands in for a port that could not be read, so that servers are not blamed for it
	if svc.Address = t.address(parseVIP); svc.Address.Port() != 0 {
		serverPort = svc.Address.Port()
	}
	protocol := svc.Protocol.String()
	choice(t, "protocol", &protocol, "tcp", "udp")
	if protocol == "udp" {
		svc.Protocol = balancer.UDP
	}
	if t.text("scheduler", &svc.Scheduler) && svc.Scheduler == "" {
		t.reportKey("scheduler", "is empty; leave the key out for %q", balancer.DefaultScheduler)
	}
	for _, st := range t.tables("server", "service.server") {
		svc.Servers = append(svc.Servers, st.server(serverPort))
	}
	return svc
}

func (t *table) server(port uint16) balancer.ServerSpec {
	if t.values == nil {
		return balancer.ServerSpec{}
	}
	t.unknownKeys()
	srv := balancer.ServerSpec{Weight: balancer.DefaultWeight}
	srv.Address = t.address(func(s string) (netip.AddrPort, string) { return parseRIP(s, port) })
	t.integerIn("weight", &srv.Weight, 0, balancer.MaxWeight)
	return srv
}

func (t *table) address(parse func(string) (netip.AddrPort, string)) netip.AddrPort {
	var s string
	if _, found := t.values["address"]; !found {
		example := `"10.0.0.11:8080"`
		if t.section == "service" {
			example = `"192.0.2.10:80"`
		}
		t.reportKey("address", "is missing; write address = %s", example)
		return netip.AddrPort{}
	}
	if !t.text("address", &s) {
		return netip.AddrPort{}
	}
	address, problem := parse(s)
	if problem != "" {
		t.reportKey("address", "%s", problem)
	}
	return address
}

// validate has the balancer judge the whole and puts its findings where they belong in the file. What was reported
// before is not reported in other words again.
func (r *reader) validate(spec *balancer.Spec) {
	for _, err := range flatten(spec.Validate()) {
		var fieldErr *balancer.FieldError
		if !errors.As(err, &fieldErr) {
			r.report(1, "", "%v", err)
			continue
		}
		at, rest := r.root.find(fieldErr.Field)
		key := at.path()
		if rest != "" {
			if r.reported[key] {
				continue // the table as a whole was not understood
			}
			key = joinKey(key, rest)
		}
		if r.reported[key] {
			continue
		}
		problem := fieldErr.Problem
		if i := 0; scanned(fmt.Sscanf(fieldErr.Field, "service[%d]", &i)) {
			problem = recount(problem, r.root, r.root.key("service").item(i))
			if strings.HasSuffix(fieldErr.Field, ".scheduler") {
				problem += schedulerHint(spec.Services[i].Scheduler)
			}
		}
		r.report(at.line, key, "%s", problem)
	}
}

func scanned(n int, err error) bool { return n > 0 && err == nil }

// flatten returns the errors that errors.Join has put together.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		if err == nil {
			return nil
		}
		return []error{err}
	}
	var errs []error
	for _, e := range joined.Unwrap() {
		errs = append(errs, flatten(e)...)
	}
	return errs
}

var indexed = regexp.MustCompile(`\b(service|server)\[(\d+)\]`)

// recount rewrites what the balancer says about other services and servers, which it counts from 0, as a reader of
// the file finds them.
func recount(problem string, root, service *place) string {
	return indexed.ReplaceAllStringFunc(problem, func(match string) string {
		m := indexed.FindStringSubmatch(match)
		array := root.key("service")
		if m[1] == "server" {
			array = service.key("server")
		}
		i, err := strconv.Atoi(m[2])
		if err != nil || array == nil {
			return match
		}
		return fmt.Sprintf("%s[%d] (line %d)", m[1], i+1, array.item(i).line)
	})
}
