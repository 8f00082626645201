package conf

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what is found as what is right")

// TestGolden reads testdata/good/*.toml and compares the configurations with the .json files beside them, and
// testdata/bad/*.toml and compares the messages with the .txt files beside them.
func TestGolden(t *testing.T) {
	for _, dir := range []struct{ name, ext string }{{"good", ".json"}, {"bad", ".txt"}} {
		files, err := filepath.Glob(filepath.Join("testdata", dir.name, "*.toml"))
		if err != nil || len(files) == 0 {
			t.Fatalf("testdata/%s: %d files, %v", dir.name, len(files), err)
		}
		for _, file := range files {
			t.Run(dir.name+"/"+filepath.Base(file), func(t *testing.T) {
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				cfg, err := Parse(filepath.Base(file), data, Options{})
				if good := dir.name == "good"; good != (err == nil) {
					t.Fatalf("%s: %v", file, err)
				}
				var got string
				if err != nil {
					checkErrors(t, data, err)
					got = err.Error() + "\n"
				} else {
					text, err := json.MarshalIndent(cfg, "", "  ")
					if err != nil {
						t.Fatal(err)
					}
					got = string(text) + "\n"
				}
				compareGolden(t, strings.TrimSuffix(file, ".toml")+dir.ext, got)
			})
		}
	}
}

func compareGolden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; go test -update writes it", err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

// checkErrors checks what holds for the errors of any file: their type, their order, that each is one printable line,
// and that it names a line of the file.
func checkErrors(t *testing.T, data []byte, err error) {
	t.Helper()
	var errs Errors
	if !errors.As(err, &errs) || len(errs) == 0 {
		t.Fatalf("error %v is of type %T", err, err)
	}
	lines := 1 + strings.Count(string(data), "\n")
	last := 1
	for _, e := range errs {
		if e.Line < last || e.Line > lines {
			t.Errorf("line %d is not from %d to %d: %v", e.Line, last, lines, e)
		}
		last = e.Line
		if e.Problem == "" || printable(e.Error()) != e.Error() {
			t.Errorf("not a message on one line: %q", e.Error())
		}
	}
	if got := len(strings.Split(err.Error(), "\n")); got != len(errs) {
		t.Errorf("%d errors on %d lines", len(errs), got)
	}
}
