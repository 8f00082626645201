package lab_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/lvsd/lvsd/integration/lab"
	"github.com/lvsd/lvsd/integration/labtest"
)

// insideTests are what an ordinary user should be able to do, too.
const insideTests = "^(TestTopologies|TestSetOffload|TestCommand|TestTeardown|TestPath|TestUserNamespaceInside)$"

// TestUnprivileged runs tests as nobody inside a user namespace that somebody else made.
func TestUnprivileged(t *testing.T) {
	labtest.Need(t, "setpriv", "unshare")
	args := []string{"unshare", "-Urn", "/proc/self/fd/3", "-test.v", "-test.run=" + insideTests}
	if canBeNobody() {
		args = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, args...)
	}
	runInside(t, exec.CommandContext(t.Context(), args[0], args[1:]...))
}

// TestEnterUserNamespace runs tests as nobody, who then makes a user namespace.
func TestEnterUserNamespace(t *testing.T) {
	c := exec.CommandContext(t.Context(), "/proc/self/fd/3", "-test.v", "-test.run="+insideTests)
	c.Env = append(os.Environ(), enterVariable+"=1")
	asNobody(c)
	runInside(t, c)
}

// canBeNobody reports whether this is root, and not of a user namespace without that user.
func canBeNobody() bool {
	uids, err := os.ReadFile("/proc/self/uid_map")
	var inside, outside, count int
	_, scan := fmt.Sscan(string(uids), &inside, &outside, &count)
	return os.Geteuid() == 0 && err == nil && scan == nil && inside == 0 && count > 65534
}

// asNobody makes an ordinary user run the program, if we may.
func asNobody(c *exec.Cmd) {
	if canBeNobody() {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
}

// runInside runs this test's own program, as file descriptor 3: its folder may be closed to others.
func runInside(t *testing.T, c *exec.Cmd) {
	t.Helper()
	skipWithoutUserNamespaces(t)
	out, err := withProgram(t, c)
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if !strings.Contains(out, "--- PASS: TestTopologies/standard") || !strings.Contains(out, "--- PASS: TestUserNamespaceInside") {
		t.Errorf("the tests did not run:\n%s", out)
	}
}

func withProgram(t *testing.T, c *exec.Cmd) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	startProgram(t, c)
	err := c.Wait()
	return out.String(), err
}

func startProgram(t *testing.T, c *exec.Cmd) {
	t.Helper()
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	c.ExtraFiles = []*os.File{program}
	c.Dir = "/"
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
}

// skipWithoutUserNamespaces asks for one as an ordinary user, by a test that there is none of.
func skipWithoutUserNamespaces(t *testing.T) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "/proc/self/fd/3", "-test.run=^$")
	c.Env = append(os.Environ(), enterVariable+"=1")
	asNobody(c)
	if out, err := withProgram(t, c); err != nil {
		labtest.Skip(t, "needs user namespaces: "+strings.TrimSpace(out))
	}
}

// TestUserNamespaceInside is a part of the tests that run inside a user namespace.
func TestUserNamespaceInside(t *testing.T) {
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(uids)), " 1") {
		t.Skip("not inside such a namespace")
	}
	if os.Getuid() != 0 {
		t.Errorf("inside, the user is %d", os.Getuid())
	}
	if err := lab.Check(); err != nil {
		t.Error(err)
	}
	if os.Getenv("LVSD_LAB_USER_NAMESPACE") != "" {
		if err := lab.EnterUserNamespace(t.Context(), "-test.run=^$"); err == nil || !strings.Contains(err.Error(), "already inside") {
			t.Errorf("EnterUserNamespace inside of it: %v", err)
		}
	}
	if h := newHost(t); !strings.Contains(h.Enter(), "--user") {
		t.Errorf("%s does not enter the user namespace", h.Enter())
	}
}

// TestEnter follows, as an ordinary user, what Enter says about a host of another process in a user namespace.
func TestEnter(t *testing.T) {
	labtest.Need(t, "nsenter", "readlink")
	skipWithoutUserNamespaces(t)
	c := exec.CommandContext(t.Context(), "/proc/self/fd/3", "-test.run=^TestHelperThatIsEntered$", "-test.v")
	c.Env = append(os.Environ(), enterVariable+"=1", enteredVariable+"=1")
	asNobody(c)
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	startProgram(t, c)
	defer c.Wait()
	defer stdin.Close() // lets the helper end
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		command, ok := strings.CutPrefix(lines.Text(), "enter ")
		if !ok {
			continue
		}
		command, want, _ := strings.Cut(command, " | ")
		enter := exec.CommandContext(t.Context(), "sh", "-c", command+" readlink /proc/self/ns/net")
		asNobody(enter)
		out, err := enter.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: in %q, %v; want %s", command, got, err, want)
		}
		return
	}
	t.Error("the helper did not get as far as to have a host")
}

const enteredVariable = "LAB_TEST_BE_ENTERED"

// TestHelperThatIsEntered is a part of TestEnter.
func TestHelperThatIsEntered(t *testing.T) {
	if os.Getenv(enteredVariable) == "" {
		t.SkipNow()
	}
	h := newHost(t)
	fmt.Println("enter", h.Enter(), "|", namespaceOf(h.Path()))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// TestUserNamespaceExit sees the exit code and the messages of a program that ran in a user namespace.
func TestUserNamespaceExit(t *testing.T) {
	skipWithoutUserNamespaces(t)
	for name, tt := range map[string]struct {
		limits string // to be set to 0 in a user namespace, whose own limits they are
		want   string
	}{
		"too few users":    {"user.max_user_namespaces", "sysctl user.max_user_namespaces=1000"},
		"too few networks": {"user.max_net_namespaces", "sysctl user.max_net_namespaces=1000"},
	} {
		t.Run(name, func(t *testing.T) {
			labtest.Need(t, "unshare", "setpriv", "sh")
			path := "/proc/sys/" + strings.ReplaceAll(tt.limits, ".", "/")
			c := exec.CommandContext(t.Context(), "unshare", "-Ur", "sh", "-c",
				"echo 0 >"+path+" && exec setpriv --bounding-set=-all --inh-caps=-all /proc/self/fd/3 -test.run=^$")
			c.Env = append(os.Environ(), enterVariable+"=1")
			out, err := withProgram(t, c)
			if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 99 || !strings.Contains(out, tt.want) {
				t.Errorf("%v, want exit status 99 and %q:\n%s", err, tt.want, out)
			}
		})
	}
}
