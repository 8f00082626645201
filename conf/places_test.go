package conf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// checkPlaces compares what findPlaces finds in a text with what BurntSushi/toml, whose word counts, decodes from it:
// the same tree, the same keys, and lines on which those keys stand. It does nothing for a text that is not TOML.
func checkPlaces(t *testing.T, text string) {
	t.Helper()
	found, placesErr := findPlaces(source{text: text})
	if errors.Is(placesErr, errTooDeep) {
		return
	}
	var values map[string]any
	meta, err := toml.Decode(text, &values)
	if err != nil {
		return
	}
	if placesErr != nil {
		t.Fatalf("%q is TOML to one library and to the other not: %v", text, placesErr)
	}
	if len(found.duplicates) > 0 {
		return // no TOML, though the decoder overlooks it: TestOverlookedDuplicate
	}
	if problem := sameShape(values, found.root); problem != "" {
		t.Errorf("%q: %s", text, problem)
	}
	var want, got []string
	for _, key := range meta.Keys() {
		want = append(want, key.String())
	}
	walkPlaces(found.root, nil, func(key toml.Key, p *place) {
		got = append(got, key.String())
	})
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%q: found keys\n%q\nbut they are\n%q", text, got, want)
	}

	lines := strings.Split(text, "\n")
	walkPlaces(found.root, nil, func(key toml.Key, p *place) {
		if p.line < 1 || p.line > len(lines) {
			t.Errorf("%q: %s is on line %d of %d", text, key, p.line, len(lines))
		} else if name := key[len(key)-1]; isBare(name) && !strings.Contains(lines[p.line-1], name) && !strings.Contains(text, `\`) {
			t.Errorf("%q: %s is not on line %d", text, key, p.line)
		}
	})
}

// sameShape tells how a tree of places differs from the values it should belong to.
func sameShape(value any, p *place) string {
	switch v := value.(type) {
	case map[string]any:
		if !maps.EqualFunc(v, p.keys, func(any, *place) bool { return true }) {
			return fmt.Sprintf("%s has keys %v in the values and %v in the places", p.path(),
				slices.Sorted(maps.Keys(v)), slices.Sorted(maps.Keys(p.keys)))
		}
		for name, sub := range v {
			if problem := sameShape(sub, p.keys[name]); problem != "" {
				return problem
			}
		}
		return ""
	case []map[string]any:
		elements := make([]any, len(v))
		for i := range v {
			elements[i] = v[i]
		}
		return sameShape(elements, p)
	case []any:
		if len(v) != len(p.items) {
			return fmt.Sprintf("%s has %d elements in the values and %d in the places", p.path(), len(v), len(p.items))
		}
		for i, sub := range v {
			if problem := sameShape(sub, p.items[i]); problem != "" {
				return problem
			}
		}
		return ""
	}
	if p.keys != nil || p.items != nil {
		return p.path() + " is a scalar but has places below it"
	}
	return ""
}

// walkPlaces visits what MetaData.Keys lists: keys that were written, and headers of arrays of tables for each
// element.
func walkPlaces(p *place, key toml.Key, visit func(toml.Key, *place)) {
	if p.declared {
		visit(key, p)
	}
	for _, item := range p.items {
		if !p.declared && !inArray(p) {
			visit(key, item)
		}
		walkPlaces(item, key, visit)
	}
	for name, sub := range p.keys {
		walkPlaces(sub, append(slices.Clip(key), name), visit)
	}
}

// inArray tells whether p is an array that is itself an element of an array, and so has no key of its own.
func inArray(p *place) bool { return p.index > 0 }

func isBare(name string) bool { return toml.Key{name}.String() == name }

func TestPlaces(t *testing.T) {
	for _, text := range []string{
		"",
		"a = 1",
		"a = 1\r\n\r\nb = 2",
		"[a.b.c]\nd = 1\n[a]\ne = 2\n[a.b]\nf = 3",
		"[[a]]\nb = 1\n[a.c]\nd = 2\n[[a.e]]\n[[a.e]]\nf = 3\n[[a]]\n[[a.e]]\nf = 4",
		"a.b.c = 1\na.b.d = 2\n[x]\ny.z = 1\ny.w = { v.u = 1, v.t = [] }",
		"a = [\n  1,\n  # two\n  [\n 2, { b = 3 } ],\n\n  {\n c = 4,\n d.e = [ { f = 5 }, { f = 6, g = {} } ] } ]",
		"'a b' = 1\n\"c\\td\" = 2\n\"\" = 3\n[\"x.y\".'z']\n\"p.q\" = 4",
		"a = \"\"\"\nb = 1\n\"\"\"\nc = '''\n\n\n'''\nd = 1",
		"a = 1979-05-27T07:32:00Z\nb = 07:32\nc = 0x1f\nd = -inf\ne = true",
		"[[service]]\naddress = \"192.0.2.10:80\"\nserver = [\n { address = \"10.0.0.1\" },\n { address = \"10.0.0.2\" },\n]",
	} {
		var values map[string]any
		if _, err := toml.Decode(text, &values); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		checkPlaces(t, text)
	}
}

// TestPlacesOfFiles is about files that the fuzzer starts from.
func TestPlacesOfFiles(t *testing.T) {
	for _, text := range testFiles(t) {
		checkPlaces(t, strings.TrimPrefix(text, "\ufeff"))
	}
}

// TestPlaceLines checks lines and paths that messages depend on.
func TestPlaceLines(t *testing.T) {
	found, err := findPlaces(source{text: `[director]
tun = "lvs0"

[[service]]
address = "192.0.2.10:80"
  [[service.server]]
  address = "10.0.0.1"

  [[service.server]]
  "address" = "10.0.0.2"
[[service]]
address = """
192.0.2.10:81"""
server = [
  { address = "10.0.0.1" }, {
    weight = 1,

    address = "10.0.0.2" },
]
`})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		field, path, rest string
		line              int
	}{
		{"director", "director", "", 1},
		{"director.tun", "director.tun", "", 2},
		{"director.queues", "director", "queues", 1},
		{"service[0]", "service[1]", "", 4},
		{"service[0].address", "service[1].address", "", 5},
		{"service[0].scheduler", "service[1]", "scheduler", 4},
		{"service[0].server[0]", "service[1].server[1]", "", 6},
		{"service[0].server[1].address", "service[1].server[2].address", "", 10},
		{"service[0].server[1].weight", "service[1].server[2]", "weight", 9},
		{"service[1].address", "service[2].address", "", 12},
		{"service[1].server[0]", "service[2].server[1]", "", 15},
		{"service[1].server[1].weight", "service[2].server[2].weight", "", 16},
		{"service[1].server[1].address", "service[2].server[2].address", "", 18},
		{"timeouts.tcp", "", "timeouts.tcp", 1},
	} {
		at, rest := found.root.find(tc.field)
		if at.path() != tc.path || rest != tc.rest || at.line != tc.line {
			t.Errorf("%s: found %q with %q left on line %d, want %q, %q, %d", tc.field, at.path(), rest, at.line, tc.path, tc.rest, tc.line)
		}
	}
}

// testFiles returns the texts of testdata/good and testdata/bad and the example.
func testFiles(t testing.TB) map[string]string {
	files, err := filepath.Glob("testdata/*/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	texts := map[string]string{"example.toml": Example()}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = string(data)
	}
	return texts
}

// TestOverlookedDuplicate is about a duplicate that BurntSushi/toml 1.6.0 accepts, because another element of the
// array has a table of that name.
func TestOverlookedDuplicate(t *testing.T) {
	const text = "[[service]]\nscheduler.x = 1\n[[service]]\nscheduler = \"rr\"\nscheduler = \"wrr\"\n"
	_, err := Parse("f", []byte(text), Options{})
	if want := "f:5: service[2].scheduler: is already on line 4; a key can be given only once"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestNesting checks that depth is bounded before the decoder recurses: so many brackets overflow its stack, which cannot
// be recovered from, and it would read so long a dotted key for hours.
func TestNesting(t *testing.T) {
	const many = 4 << 20
	for _, text := range []string{
		"a = " + strings.Repeat("[", many),
		"a = " + strings.Repeat("[", many) + strings.Repeat("]", many),
		"a = " + strings.Repeat("{a=", many),
		"a = " + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1),
		"[" + strings.Repeat("a.", many/8) + "a]",
		"[[" + strings.Repeat("a.", maxDepth) + "a]]",
		strings.Repeat("a.", many/8) + "a = 1",
		"a = { " + strings.Repeat("a.", many/8) + "a = 1 }",
	} {
		_, err := Parse("f", []byte("\n"+text), Options{})
		if want := "f:2: " + errTooDeep.Error(); err == nil || err.Error() != want {
			t.Errorf("%.40q: got %.200v, want %s", text, err, want)
		}
	}
	deepest := strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1)
	if _, err := Parse("f", []byte("a = "+deepest), Options{}); err == nil || !strings.Contains(err.Error(), "unknown key") {
		t.Errorf("an array %d deep: %v", maxDepth-1, err)
	}
}
