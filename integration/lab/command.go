package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Cmd is a program to be run inside a host's namespace: an [exec.Cmd] whose methods start it there.
//
// The program leads a process group of its own: a Ctrl-C at the terminal does not reach it, and it is killed with its
// children, when its context is done, when the host is closed or when this process ends. A program that turns itself
// into a daemon escapes; ask it to stay in the foreground.
type Cmd struct {
	*exec.Cmd
	host *Host
	wait func() error
}

// Command prepares a program, as [exec.CommandContext] does. SysProcAttr is set; what else the program needs there, such
// as credentials, is to be added to it. Unlike its network, the program's files are those of this process: one that
// reads /sys/class/net sees the wrong links.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), host: h}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = c.kill
	c.WaitDelay = 5 * time.Second // for those who still hold its output, after it was killed
	c.wait = sync.OnceValue(func() error {
		err := c.Cmd.Wait()
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.programs, c)
		return err
	})
	return c
}

// Start starts the program, as [exec.Cmd.Start] does.
func (c *Cmd) Start() error {
	h := c.host
	// It is started by the host's own thread, for the kernel kills it as soon as the thread that started it is gone.
	err := func() error {
		h.mu.RLock()
		defer h.mu.RUnlock()
		if h.closed {
			return ErrClosed
		}
		started := make(chan error)
		h.jobs <- func() { started <- c.Cmd.Start() }
		return <-started
	}()
	if err != nil {
		return fmt.Errorf("host %s: start %s: %w", h.Name, c.Args[0], err)
	}
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.programs[c] = struct{}{}
	}
	h.mu.Unlock()
	if closed {
		c.end()
	}
	return nil
}

// Wait waits for the program, as [exec.Cmd.Wait] does. It may be called more than once, with the same result.
func (c *Cmd) Wait() error {
	if c.Process == nil {
		return c.Cmd.Wait() // an error
	}
	return c.wait()
}

// Run starts the program and waits for it, as [exec.Cmd.Run] does.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the program and returns what it wrote to its standard output. An [*exec.ExitError] holds what it wrote to
// its standard error, unless Stderr was set.
func (c *Cmd) Output() ([]byte, error) {
	var out, complaint bytes.Buffer
	if c.Stdout != nil {
		return nil, errors.New("lab: Stdout already set")
	}
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &complaint
	}
	err := c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		exit.Stderr = complaint.Bytes()
	}
	return out.Bytes(), err
}

// CombinedOutput runs the program and returns what it wrote.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("lab: Stdout or Stderr already set")
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// kill kills the program and its children. It must not be called after Wait returned, when the number may be another's.
func (c *Cmd) kill() error {
	err := unix.Kill(-c.Process.Pid, unix.SIGKILL)
	if errors.Is(err, unix.ESRCH) { // it has ended, or leads no group
		err = c.Process.Kill()
	}
	return err
}

// end kills a program that may be running, and waits for it.
func (c *Cmd) end() {
	_ = c.kill() // the only possible failure is that it ended by itself
	_ = c.Wait()
}
