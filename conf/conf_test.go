package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lvsd/lvsd/balancer"
)

func mustParse(t testing.TB, text string) *Config {
	t.Helper()
	cfg, err := Parse("lvsd.toml", []byte(text), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestSmallest is the six lines of the package documentation.
func TestSmallest(t *testing.T) {
	got := mustParse(t, `[[service]]
address = "192.0.2.10:80"
[[service.server]]
address = "10.0.0.11:8080"
[[service.server]]
address = "10.0.0.12"
`)
	want := Default()
	want.Spec.Services = []balancer.ServiceSpec{{
		Protocol:  balancer.TCP,
		Address:   netip.MustParseAddrPort("192.0.2.10:80"),
		Scheduler: "wlc",
		Servers: []balancer.ServerSpec{
			{Address: netip.MustParseAddrPort("10.0.0.11:8080"), Weight: 1},
			{Address: netip.MustParseAddrPort("10.0.0.12:80"), Weight: 1},
		},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestEmptyFileIsDefault(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\r\n", "\ufeff", "[director]\n[timeouts]\n[tunables]\n", "service = []\n"} {
		if got := mustParse(t, text); !reflect.DeepEqual(got, Default()) {
			t.Errorf("%q: got %+v", text, got)
		}
	}
	if err := Default().Spec.Validate(); err != nil {
		t.Error(err)
	}
}

func TestEveryKey(t *testing.T) {
	got := mustParse(t, `
[director]
tun = "lb"
queues = 256
io = "poll"
offload = false
routes = "manual"
table = 2147483647
priority = 32765
socket = "/s"
connections = 134217728
[timeouts]
tcp = 2_678_400
tcpfin = "1s"
udp = "1h30m"
[tunables]
conn_reuse_mode = 3
expire_nodest_conn = false
expire_quiescent_template = 0
sloppy_tcp = true
[[service]]
address = "[2001:db8::1]:53"
protocol = "udp"
scheduler = "rr"
server = [{ address = "[fd00::1]", weight = 0 }, { address = "fd00::2", weight = 2147483647 }]
[[service]]
address = "192.0.2.1:65535"
`)
	want := &Config{
		Director: Director{
			Tun: "lb", Queues: 256, IO: IOPoll, Routes: RoutesManual, Table: 1<<31 - 1,
			Priority: 32765, Socket: "/s", Connections: 1 << 27,
		},
		Spec: balancer.Spec{
			Timeouts: balancer.Timeouts{TCP: 31 * 24 * time.Hour, TCPFin: time.Second, UDP: 90 * time.Minute},
			Tunables: balancer.Tunables{ConnReuseMode: 3, SloppyTCP: true},
			Services: []balancer.ServiceSpec{
				{
					Protocol: balancer.UDP, Address: netip.MustParseAddrPort("[2001:db8::1]:53"), Scheduler: "rr",
					Servers: []balancer.ServerSpec{
						{Address: netip.MustParseAddrPort("[fd00::1]:53"), Weight: 0},
						{Address: netip.MustParseAddrPort("[fd00::2]:53"), Weight: 1<<31 - 1},
					},
				},
				{Protocol: balancer.TCP, Address: netip.MustParseAddrPort("192.0.2.1:65535"), Scheduler: "wlc"},
			},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// TestSections guards that the list of known keys and the code that reads them agree: a value that is right for no
// key is found fault with under exactly those keys.
func TestSections(t *testing.T) {
	for _, s := range sections {
		if s.name == "" {
			continue
		}
		var text strings.Builder
		if strings.HasPrefix(s.name, "service") {
			text.WriteString("[[service]]\n")
		}
		if s.name == "service.server" {
			text.WriteString("address = \"192.0.2.1:80\"\n[[service.server]]\n")
		}
		if !strings.HasPrefix(s.name, "service") {
			text.WriteString("[" + s.name + "]\n")
		}
		for _, key := range s.keys {
			text.WriteString(key + " = 07:32:00\n")
		}
		_, err := Parse("f", []byte(text.String()), Options{})
		var errs Errors
		if !errors.As(err, &errs) || len(errs) != len(s.keys) {
			t.Fatalf("[%s]: %d keys, but errors\n%v", s.name, len(s.keys), err)
		}
		for i, e := range errs {
			if !strings.HasSuffix(e.Key, "."+s.keys[i]) || strings.Contains(e.Problem, "unknown") {
				t.Errorf("[%s] %s: %v", s.name, s.keys[i], e)
			}
		}
	}
	var tags []string
	for i := range reflect.TypeFor[Director]().NumField() {
		tags = append(tags, reflect.TypeFor[Director]().Field(i).Tag.Get("toml"))
	}
	if !slices.Equal(tags, keysOf("director")) {
		t.Errorf("Director has keys %v, its section %v", tags, keysOf("director"))
	}
}

func TestRestartKeys(t *testing.T) {
	d := Default().Director
	if keys := d.RestartKeys(d); keys != nil {
		t.Errorf("the same director differs in %v", keys)
	}
	next := Director{
		Tun: "lb", Queues: 2, IO: IOPoll, Offload: false, Routes: RoutesManual, Table: 7, Priority: 8, Socket: "/s", Connections: 4096,
	}
	var want []string
	for _, key := range keysOf("director") {
		want = append(want, "director."+key)
	}
	if got := d.RestartKeys(next); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	next = d
	next.Table++
	if got := d.RestartKeys(next); !slices.Equal(got, []string{"director.table"}) {
		t.Errorf("got %v", got)
	}
}

func TestQueueCount(t *testing.T) {
	for _, tc := range []struct{ queues, cpus, want int }{
		{0, 1, 1}, {0, 2, 1}, {0, 3, 1}, {0, 8, 4}, {0, 4096, MaxQueues}, {3, 8, 3}, {16, 2, 16},
	} {
		if got := (Director{Queues: tc.queues}).QueueCount(tc.cpus); got != tc.want {
			t.Errorf("queues = %d on %d CPUs: %d queues, want %d", tc.queues, tc.cpus, got, tc.want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("good.toml", "[director]\nqueues = 3\n")
	cfg, err := Load(at("good.toml"), Options{})
	if err != nil || cfg.Director.Queues != 3 {
		t.Errorf("got %+v, %v", cfg, err)
	}
	if err := os.Symlink("good.toml", at("link.toml")); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(at("link.toml"), Options{}); err != nil {
		t.Errorf("by a symbolic link: %v", err)
	}

	write("bad.toml", "[director]\nqueues = -1\n")
	if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	write("large.toml", strings.Repeat("#\n", MaxSize/2)+"\n")
	for _, tc := range []struct {
		name, want string
		is         error
	}{
		{name: "bad.toml", want: "bad.toml:2: director.queues: must be 0 to 256, not -1"},
		{name: "absent.toml", want: "absent.toml: cannot open the configuration file: no such file or directory", is: fs.ErrNotExist},
		{name: ".", want: ": is a directory; the configuration must be a regular file"},
		{name: "pipe", want: "pipe: is a pipe; the configuration must be a regular file"},
		{name: "socket", want: "socket: cannot open the configuration file: no such device or address"},
		{name: "large.toml", want: "large.toml: is larger than 16 MiB, the most that a configuration file may have"},
		{name: "../../../../../../../../dev/null", want: "/dev/null: is a device; the configuration must be a regular file"},
	} {
		cfg, err := Load(at(tc.name), Options{})
		var errs Errors
		if cfg != nil || !errors.As(err, &errs) || len(errs) != 1 || !strings.HasSuffix(err.Error(), tc.want) {
			t.Errorf("%s: got %v and error %v, want %s", tc.name, cfg, err, tc.want)
		}
		if tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: %v is not %v", tc.name, err, tc.is)
		}
	}
}

func TestParseTooLarge(t *testing.T) {
	_, err := Parse("f", make([]byte, MaxSize+1), Options{})
	if want := "f:1: is larger than 16 MiB, the most that a configuration may have"; err == nil || err.Error() != want {
		t.Errorf("got %.100v, want %s", err, want)
	}
}

func TestNames(t *testing.T) {
	for _, tc := range []struct{ key, value, want string }{
		{"tun", "a", ""},
		{"tun", "fifteen-bytes-x", ""},
		{"tun", "lvs.0_-", ""},
		{"tun", "sixteen-bytes-xy", `"sixteen-bytes-xy" has 16 bytes, an interface name at most 15`},
		{"tun", "äöüäöüäö", `"äöüäöüäö" has 16 bytes, an interface name at most 15`},
		{"tun", "", `"" is empty`},
		{"tun", "all", `"all" cannot be the name of an interface of its own`},
		{"tun", "lo", `"lo" cannot be the name of an interface of its own`},
		{"tun", "..", `".." cannot be the name of an interface of its own`},
		{"tun", "a/b", `"a/b" has one of / : % in it`},
		{"tun", "lvs%d", `"lvs%d" has one of / : % in it`},
		{"tun", "a:1", `"a:1" has one of / : % in it`},
		{"tun", "a\tb", `"a\tb" has a blank or a control character in it`},
		{"tun", strings.Repeat("x", 100), `"` + strings.Repeat("x", 60) + `..." has 100 bytes, an interface name at most 15`},
		{"socket", "/" + strings.Repeat("x", 106), ""},
		{"socket", "/" + strings.Repeat("x", 107), `"/` + strings.Repeat("x", 59) + `..." has 108 bytes, the path of a socket at most 107`},
		{"socket", "/a\x00b", `"/a\x00b" has a NUL byte in it`},
		{"socket", "@lvsd", `"@lvsd" is not an absolute path`},
		{"socket", "/", `"/" is a directory`},
	} {
		text := fmt.Sprintf("[director]\n%s = \"%s\"\n", tc.key, strings.NewReplacer("\t", `\t`, "\x00", `\u0000`).Replace(tc.value))
		_, err := Parse("f", []byte(text), Options{})
		if tc.want == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if want := "f:2: director." + tc.key + ": " + tc.want + "; write a "; err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestDurations(t *testing.T) {
	for _, tc := range []struct {
		value string
		want  time.Duration
		hint  string // meant, if it is no duration
	}{
		{value: `1`, want: time.Second},
		{value: `0x10`, want: 16 * time.Second},
		{value: `"1h0m1s"`, want: time.Hour + time.Second},
		{value: `"1000ms"`, want: time.Second},
		{value: `"744h"`, want: balancer.MaxTimeout},
		{value: `"15 m"`, hint: "15m"},
		{value: `"1H 30M"`, hint: "1h30m"},
		{value: `"15min"`, hint: "15m"},
		{value: `"90"`, hint: "90s"},
		{value: `"2 Hours"`, hint: "2h"},
		{value: `"3 days"`, hint: "72h"},
		{value: `"1 fortnight"`},
		{value: `"soon"`},
		{value: `"-5 min"`},
	} {
		cfg, err := Parse("f", []byte("[timeouts]\nudp = "+tc.value+"\n"), Options{})
		switch {
		case tc.want != 0:
			if err != nil || cfg.Spec.Timeouts.UDP != tc.want {
				t.Errorf("%s: got %v, %v", tc.value, cfg, err)
			}
		case err == nil || !strings.Contains(err.Error(), "is not a duration"):
			t.Errorf("%s: got %v", tc.value, err)
		case tc.hint != "" && !strings.HasSuffix(err.Error(), `did you mean "`+tc.hint+`"?`):
			t.Errorf("%s: got %v, want the hint %s", tc.value, err, tc.hint)
		case tc.hint == "" && strings.Contains(err.Error(), "did you mean"):
			t.Errorf("%s: got %v, want no hint", tc.value, err)
		}
	}
}

// TestMinusIsAFile guards that "-" is no word for the standard input.
func TestMinusIsAFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, err := Load("-", Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestErrorsType(t *testing.T) {
	_, err := Parse("lvsd.toml", []byte("[director]\nqueues = -1\ntable = 254\n"), Options{})
	var one *Error
	if !errors.As(err, &one) || one.File != "lvsd.toml" || one.Line != 2 || one.Key != "director.queues" {
		t.Errorf("errors.As found %+v in %v", one, err)
	}
	want := "lvsd.toml:2: director.queues: must be 0 to 256, not -1\n" +
		"lvsd.toml:3: director.table: 254 is a table of the kernel itself (253 default, 254 main, 255 local); write another number"
	if err.Error() != want {
		t.Errorf("got\n%v\nwant\n%v", err, want)
	}
}
