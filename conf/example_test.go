package conf

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lvsd/lvsd/balancer/sched"
)

var (
	commentedKey = regexp.MustCompile(`(?m)^# ([a-z_]+) = .+$`)
	anyKey       = regexp.MustCompile(`^(?:# )?([a-z_]+) = `)
	anyHeader    = regexp.MustCompile(`^\[+([a-z.]+)\]+$`)
)

// TestExampleIsValid also checks that the example, as it is, leaves everything at its default but the services.
func TestExampleIsValid(t *testing.T) {
	cfg := mustParse(t, Example())
	if len(cfg.Spec.Services) != 2 || len(cfg.Spec.Services[0].Servers) != 2 {
		t.Errorf("services are %+v", cfg.Spec.Services)
	}
	cfg.Spec.Services = nil
	if want := Default(); !reflect.DeepEqual(cfg, want) {
		t.Errorf("got %+v, want %+v", cfg, want)
	}
	if _, err := Parse("example.toml", []byte(Example()), Options{ExpandEnv: noVariables}); err != nil {
		t.Errorf("with variables replaced: %v", err)
	}
}

// TestExampleDefaults takes the "# " away from every key that is commented out, first one at a time and then all
// together, and checks that this changes nothing.
func TestExampleDefaults(t *testing.T) {
	want := mustParse(t, Example())
	found := commentedKey.FindAllStringIndex(Example(), -1)
	keys := len(keysOf("director")) + len(keysOf("timeouts")) + len(keysOf("tunables")) + len([]string{"protocol", "scheduler", "weight"})
	if len(found) != keys {
		t.Errorf("%d keys are commented out, %d have a default", len(found), keys)
	}
	for _, at := range found {
		text := Example()[:at[0]] + Example()[at[0]+len("# "):]
		if got := mustParse(t, text); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", Example()[at[0]:at[1]], got, want)
		}
	}
	all := commentedKey.ReplaceAllStringFunc(Example(), func(line string) string { return line[len("# "):] })
	if got := mustParse(t, all); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestExampleExplainsEveryKey checks that each known key has a line in its table with a comment right above it.
func TestExampleExplainsEveryKey(t *testing.T) {
	explained := map[string]bool{}
	section, previous := "", ""
	for line := range strings.Lines(Example()) {
		line = strings.TrimRight(line, "\n")
		if m := anyHeader.FindStringSubmatch(line); m != nil {
			section = m[1]
			explained[section] = true
		} else if m := anyKey.FindStringSubmatch(line); m != nil && strings.HasPrefix(previous, "# ") {
			explained[joinKey(section, m[1])] = true
		}
		previous = line
	}
	for _, s := range sections {
		for _, key := range s.keys {
			if key := joinKey(s.name, key); !explained[key] && key != "service.server" {
				t.Errorf("%s is not explained", key)
			}
		}
	}
	if !explained["service.server"] {
		t.Error("there is no [[service.server]]")
	}
}

// TestExampleNamesBounds checks the numbers and words in its comments against the code.
func TestExampleNamesBounds(t *testing.T) {
	text := strings.Join(strings.Fields(strings.ReplaceAll(Example(), "\n#", "\n")), " ")
	for _, want := range []string{
		fmt.Sprintf("1 to %d, or 0", MaxQueues),
		fmt.Sprintf("1 to %d but for 253, 254 and 255", MaxTable),
		fmt.Sprintf("1 to %d. Rules", MaxPriority),
		fmt.Sprintf("%d to %d. One takes", MinConnections, MaxConnections),
		"from 1 second to 31 days",
		"0 to 2147483647. 0 quiesces",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the example does not say %q", want)
		}
	}
	var named []string
	for _, m := range regexp.MustCompile(`(?m)^#   "([a-z]+)" +\S`).FindAllStringSubmatch(Example(), -1) {
		named = append(named, m[1])
	}
	slices.Sort(named)
	if !slices.Equal(named, sched.Names()) {
		t.Errorf("the example explains schedulers %v, there are %v", named, sched.Names())
	}
}

func noVariables(string) (string, bool) { return "", false }
