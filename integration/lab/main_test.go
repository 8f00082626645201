package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/lvsd/lvsd/integration/lab"
	"github.com/lvsd/lvsd/integration/labtest"
)

// enterVariable makes the test program do first of all what a command does that uses EnterUserNamespace.
const enterVariable = "LAB_TEST_ENTER_USER_NAMESPACE"

func TestMain(m *testing.M) {
	if os.Getenv(enterVariable) != "" {
		os.Unsetenv(enterVariable)
		err := lab.EnterUserNamespace(context.Background(), os.Args[1:]...)
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(99)
		}
		os.Exit(0)
	}
	labtest.Main(m)
}
