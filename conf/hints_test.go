package conf

import (
	"slices"
	"strings"
	"testing"

	"github.com/lvsd/lvsd/balancer"
	"github.com/lvsd/lvsd/balancer/sched"
)

func TestKeyHint(t *testing.T) {
	for _, tc := range []struct{ section, key, want string }{
		// misspelled
		{"service", "adress", `did you mean "address"?`},
		{"service", "Address", `did you mean "address"?`},
		{"service", "addr", `did you mean "address"?`},
		{"service", "shceduler", `did you mean "scheduler"?`},
		{"service", "sched", `did you mean "scheduler"?`},
		{"service", "servers", `did you mean "server"?`},
		{"service.server", "wieght", `did you mean "weight"?`},
		{"director", "queue", `did you mean "queues"?`},
		{"timeouts", "tcp-fin", `did you mean "tcpfin"?`},
		{"tunables", "expire-nodest-conn", `did you mean "expire_nodest_conn"?`},
		{"tunables", "expire_nodest", `did you mean "expire_nodest_conn"?`},
		{"", "services", `did you mean "service"?`},
		{"", "timeout", `did you mean "timeouts"?`},
		{"", "tunable", `did you mean "tunables"?`},
		// in the wrong place
		{"", "tun", "tun is a key of [director]"},
		{"", "sloppy_tcp", "sloppy_tcp is a key of [tunables]"},
		{"director", "tcpfin", "tcpfin is a key of [timeouts]"},
		{"timeouts", "address", "address is a key of [[service]]"},
		{"service", "weight", "weight is a key of [[service.server]]"},
		{"service.server", "scheduler", "scheduler is a key of the service; put it above the service's first [[service.server]]"},
		{"director", "timeouts", "a table stands at the beginning of a line, as [timeouts], and ends the table before it"},
		{"", "server", `a real server is headed [[service.server]], below its [[service]], and has address = "RIP:port"`},
		// of other programs
		{"service", "lb_algo", `the key is scheduler, of [[service]], such as scheduler = "wlc"`},
		{"service", "LB_ALGO", `the key is scheduler, of [[service]], such as scheduler = "wlc"`},
		{"", "virtual_server", `a virtual service is headed [[service]] and has address = "VIP:port"`},
		{"service", "TCP_CHECK", "this version of lvsd has no health checks"},
		{"tunables", "drop_entry", "lvsd has no such knob; the sysctls of IPVS that it has are " + strings.Join(balancer.TunableNames(), ", ")},
		// of nobody
		{"timeouts", "xyzzy", "[timeouts] knows tcp, tcpfin, udp"},
		{"", "xyzzy", "the file knows director, timeouts, tunables, service"},
		{"service", strings.Repeat("address", 1000), "[[service]] knows address, protocol, scheduler, server"},
	} {
		if got := keyHint(tc.section, tc.key); got != tc.want {
			t.Errorf("%s in [%s]: got %q, want %q", tc.key, tc.section, got, tc.want)
		}
	}
}

// TestForeignKeys guards that no word has two advices, that each can be found, and that none stands in the way of a
// key of ours but the one that is known to.
func TestForeignKeys(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range advices {
		for _, word := range strings.Fields(a.words) {
			if seen[word] {
				t.Errorf("%s has two advices", word)
			}
			seen[word] = true
			if normal(word) != word {
				t.Errorf("%s is never found, because it is looked for as %s", word, normal(word))
			}
			for _, s := range sections {
				if slices.Contains(s.keys, word) && word != "server" {
					t.Errorf("%s is a key of [%s]", word, s.name)
				}
			}
		}
	}
}

func TestSchedulerHint(t *testing.T) {
	for _, name := range sched.Names() {
		if !knownScheduler(name) {
			t.Errorf("%s is not known", name)
		}
		if !slices.Contains(ipvsSchedulers, name) {
			t.Errorf("%s is never suggested", name)
		}
		if got, want := schedulerHint(strings.ToUpper(name)), `; did you mean "`+name+`"?`; got != want {
			t.Errorf("%s: got %q, want %q", strings.ToUpper(name), got, want)
		}
	}
	for _, name := range ipvsSchedulers {
		if hint := schedulerHint(name); !knownScheduler(name) && !strings.Contains(hint, "does not have "+name+" of IPVS yet") {
			t.Errorf("%s: got %q", name, hint)
		}
	}
	for word, meant := range foreignSchedulers {
		if hint := schedulerHint(word); !strings.Contains(hint, meant) {
			t.Errorf("%s: got %q, which does not name %s", word, hint, meant)
		}
		if normal(word) != word {
			t.Errorf("%s is never found", word)
		}
	}
}

// TestTunables guards the guess which tunables are switches.
func TestTunables(t *testing.T) {
	for _, name := range balancer.TunableNames() {
		text := "[tunables]\n" + name + " = true\n"
		cfg, err := Parse("f", []byte(text), Options{})
		if name == "conn_reuse_mode" {
			if err == nil {
				t.Errorf("%s = true is accepted", name)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if v, err := cfg.Spec.Tunables.Get(name); v != 1 || err != nil {
			t.Errorf("%s = true became %d, %v", name, v, err)
		}
	}
}
