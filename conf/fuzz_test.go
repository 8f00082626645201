package conf

import (
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParse checks that whatever parses is valid, that every error has a line within the file, and that reading a
// file twice gives the same answer.
func FuzzParse(f *testing.F) {
	for _, text := range testFiles(f) {
		f.Add([]byte(text), "")
	}
	f.Add([]byte("[director]\n${A}\n$${${B}\n"), "tun = 'x'\nqueues = 1")
	f.Fuzz(func(t *testing.T, data []byte, variable string) {
		for _, opts := range []Options{{}, {ExpandEnv: func(name string) (string, bool) { return variable, name != "UNSET" }}} {
			cfg, err := Parse("f", data, opts)
			if again, err2 := Parse("f", data, opts); !reflect.DeepEqual(cfg, again) || !reflect.DeepEqual(err, err2) {
				t.Fatalf("first %+v, %v\nthen %+v, %v", cfg, err, again, err2)
			}
			if err != nil {
				if cfg != nil {
					t.Error("there is an error and a Config")
				}
				checkErrors(t, data, err)
				continue
			}
			checkValid(t, cfg)
		}
	})
}

// checkValid checks the promises about a Config that Parse returns.
func checkValid(t *testing.T, cfg *Config) {
	t.Helper()
	if err := cfg.Spec.Validate(); err != nil {
		t.Error(err)
	}
	for _, svc := range cfg.Spec.Services {
		if svc.Scheduler == "" {
			t.Errorf("%v has no scheduler", svc.Address)
		}
	}
	if to := cfg.Spec.Timeouts; to.TCP <= 0 || to.TCPFin <= 0 || to.UDP <= 0 {
		t.Errorf("timeouts are %+v", to)
	}
	d := cfg.Director
	if interfaceProblem(d.Tun) != "" || socketProblem(d.Socket) != "" ||
		d.Queues < 0 || d.Queues > MaxQueues || d.Table < 1 || d.Table > MaxTable || d.Table >= 253 && d.Table <= 255 ||
		d.Priority < 1 || d.Priority > MaxPriority || d.Connections < MinConnections || d.Connections > MaxConnections ||
		d.IO != IOAuto && d.IO != IOPoll || d.Routes != RoutesAuto && d.Routes != RoutesManual {
		t.Errorf("director is %+v", d)
	}
}

// FuzzPlaces checks that the two TOML libraries see the same in every text.
func FuzzPlaces(f *testing.F) {
	for _, text := range testFiles(f) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		text = strings.TrimPrefix(text, "\ufeff")
		if !utf8.ValidString(text) || strings.HasPrefix(text, "\ufeff") {
			return // BurntSushi/toml looks over any first byte order mark, also that of UTF-16
		}
		checkPlaces(t, text)
	})
}
