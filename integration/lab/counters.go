package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Counters are a namespace's protocol counters, those of /proc/net/snmp, netstat and snmp6, named as nstat does, such as
// "TcpRetransSegs", "TcpExtTCPTimeouts", "UdpInCsumErrors" or "Ip6OutForwDatagrams". TCP over IPv6 counts as Tcp.
type Counters map[string]int64

// Counters reads the namespace's counters.
func (h *Host) Counters() (c Counters, err error) {
	err = h.Do(func() error {
		c, err = readCounters(os.DirFS("/proc/thread-self/net"))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: read protocol counters: %w", h.Name, err)
	}
	return c, nil
}

// Get returns a counter. It panics if the kernel has none of this name: one that is misspelled would always be 0.
func (c Counters) Get(name string) int64 {
	value, ok := c[name]
	// Counters by ICMP type come into being with the first such message.
	byType := strings.HasPrefix(name, "IcmpMsg") || strings.HasPrefix(name, "Icmp6InType") || strings.HasPrefix(name, "Icmp6OutType")
	if !ok && !byType {
		panic(fmt.Sprintf("the kernel has no counter %q", name))
	}
	return value
}

// Since returns the counters that are not as they were before, with their differences.
func (c Counters) Since(before Counters) Counters {
	diff := make(Counters)
	for name, value := range c {
		if d := value - before[name]; d != 0 {
			diff[name] = d
		}
	}
	return diff
}

// ChecksumErrors returns the counters of packets that arrived with a wrong checksum, of every protocol, without those
// that are 0.
func (c Counters) ChecksumErrors() Counters {
	wrong := make(Counters)
	for name, value := range c {
		if value != 0 && strings.HasSuffix(name, "InCsumErrors") {
			wrong[name] = value
		}
	}
	return wrong
}

// String lists the counters, sorted, as "name=value".
func (c Counters) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%d", name, c[name])
	}
	return b.String()
}

// readCounters reads the three files in a /proc/net.
func readCounters(proc fs.FS) (Counters, error) {
	c := make(Counters)
	for _, f := range []struct {
		name  string
		parse func([]byte) error
	}{{"snmp", c.parsePairs}, {"netstat", c.parsePairs}, {"snmp6", c.parseLines}} {
		data, err := fs.ReadFile(proc, f.name)
		if f.name == "snmp6" && errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		if err := f.parse(data); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return c, nil
}

// parsePairs reads pairs of lines, "Tcp: name name ..." and "Tcp: value value ...".
func (c Counters) parsePairs(data []byte) error {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		names := strings.Fields(lines.Text())
		if !lines.Scan() {
			return fmt.Errorf("no values after %q", names)
		}
		values := strings.Fields(lines.Text())
		if len(names) == 0 || len(names) != len(values) || names[0] != values[0] {
			return fmt.Errorf("names %q do not match values %q", names, values)
		}
		for i := 1; i < len(names); i++ {
			if err := c.set(strings.TrimSuffix(names[0], ":")+names[i], values[i]); err != nil {
				return err
			}
		}
	}
	return lines.Err()
}

// parseLines reads lines of a name and a value.
func (c Counters) parseLines(data []byte) error {
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) != 2 {
			return fmt.Errorf("%q is not a name and a value", line)
		}
		if err := c.set(f[0], f[1]); err != nil {
			return err
		}
	}
	return nil
}

func (c Counters) set(name, text string) error {
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		var unsigned uint64 // the kernel's counters wrap at 64 bits, and so do these
		if unsigned, err = strconv.ParseUint(text, 10, 64); err != nil {
			return fmt.Errorf("counter %s: %w", name, err)
		}
		value = int64(unsigned)
	}
	c[name] = value
	return nil
}
