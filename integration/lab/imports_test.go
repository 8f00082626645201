package lab_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/lvsd/lvsd/integration/labtest"
)

// TestNoTesting sees to it that the lab can be a part of a program.
func TestNoTesting(t *testing.T) {
	labtest.Need(t, "go")
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if deps := strings.Fields(string(out)); slices.Contains(deps, "testing") || !slices.Contains(deps, "net/http") {
		t.Error("package lab imports testing, whose flags and code do not belong into lvsd")
	}
}
