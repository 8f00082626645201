package lab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/lvsd/lvsd/integration/lab"
	"github.com/lvsd/lvsd/integration/labtest"
)

func TestCommand(t *testing.T) {
	labtest.CheckLeaks(t)
	labtest.Need(t, "sh")
	h := newHost(t)
	const where = "readlink /proc/self/ns/net; echo complaint >&2; exit "
	want := namespaceOf(h.Path())

	out, err := h.Command(t.Context(), "sh", "-c", where+"0").Output()
	if got := strings.TrimSpace(string(out)); err != nil || got != want {
		t.Errorf("the program is in %s, %v; want %s", got, err, want)
	}
	_, err = h.Command(t.Context(), "sh", "-c", where+"3").Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || string(exit.Stderr) != "complaint\n" {
		t.Errorf("exit 3: %v", err)
	}
	out, err = h.Command(t.Context(), "sh", "-c", where+"0").CombinedOutput()
	if err != nil || string(out) != want+"\ncomplaint\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := h.Command(t.Context(), "no-such-program").Run(); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("no such program: %v", err)
	}
	if err := h.Command(t.Context(), "true").Wait(); err == nil {
		t.Error("Wait before Start returns nil")
	}
	c := h.Command(t.Context(), "sh", "-c", "exit 4")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if first, second := c.Wait(), c.Wait(); !errors.As(first, &exit) || exit.ExitCode() != 4 || second != first {
		t.Errorf("Wait: %v, and then %v", first, second)
	}
}

// family starts a shell with a child that ignores signals which can be ignored, and returns both process numbers.
func family(t *testing.T, ctx context.Context, h *lab.Host) (c *lab.Cmd, pids []int) {
	t.Helper()
	c = h.Command(ctx, "sh", "-c", `trap "" TERM HUP INT; sleep 1000 & echo $$ $!; wait`)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	parent, child := 0, 0
	if _, err := fmt.Sscan(line, &parent, &child); err != nil {
		t.Fatal(err)
	}
	return c, []int{parent, child}
}

func wantGone(t *testing.T, pids []int) {
	t.Helper()
	labtest.Poll(t, 10*time.Second, func() error {
		for _, pid := range pids {
			state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err == nil && !strings.Contains(string(state), ") Z ") { // whoever is its parent now may be slow
				return fmt.Errorf("process %d is still there: %s", pid, state)
			}
		}
		return nil
	})
}

func TestCommandEnds(t *testing.T) {
	labtest.CheckLeaks(t)
	labtest.Need(t, "sh", "sleep")
	h := newHost(t)

	ctx, cancel := context.WithCancel(t.Context())
	c, pids := family(t, ctx, h)
	cancel()
	if err := c.Wait(); err == nil {
		t.Error("a program that was killed returns nil")
	}
	wantGone(t, pids)

	_, pids = family(t, t.Context(), h) // nobody waits for this one
	other, morePIDs := family(t, t.Context(), h)
	waited := make(chan error)
	go func() { waited <- other.Wait() }()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waited; err == nil {
		t.Error("a program of a closed host returns nil")
	}
	wantGone(t, append(pids, morePIDs...))
}

// TestNothingOutlivesTheProcess kills a process in the middle of its work: this test's own program, which runs the next
// test.
func TestNothingOutlivesTheProcess(t *testing.T) {
	labtest.CheckLeaks(t)
	labtest.Need(t, "sleep")
	labtest.NeedLab(t)
	witness := newHost(t)
	c := witness.Command(t.Context(), "/proc/self/exe", "-test.run=^TestHelperThatIsKilled$", "-test.v")
	c.Env = append(os.Environ(), "LAB_TEST_BE_KILLED=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	for lines := bufio.NewScanner(out); child == 0 && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "child "); ok {
			if _, err := fmt.Sscan(text, &child); err != nil {
				t.Fatal(err)
			}
		} else {
			t.Log(lines.Text())
		}
	}
	if child == 0 {
		t.Fatal("the helper ended before its time")
	}
	if links, err := witness.Netlink().LinkList(); err != nil || len(links) != 2 {
		t.Errorf("%d links, %v; want lo and one from the director of the other process", len(links), err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	wantGone(t, []int{child})
	wantOnlyLoopback(t, witness)
}

// TestHelperThatIsKilled is a part of TestNothingOutlivesTheProcess.
func TestHelperThatIsKilled(t *testing.T) {
	if os.Getenv("LAB_TEST_BE_KILLED") == "" {
		t.SkipNow()
	}
	n := labtest.New(t, lab.Options{Servers: 1})
	// A link from the director to the namespace that this process was started in: it is there as long as the director's.
	link := netlink.NewVeth(netlink.LinkAttrs{Name: "killed"})
	link.PeerName, link.PeerNamespace = "witness", netlink.NsPid(os.Getpid())
	if err := n.Director.Netlink().LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	sleep := n.Servers[0].Command(t.Context(), "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("child", sleep.Process.Pid)
	_ = sleep.Wait()
}
