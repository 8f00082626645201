package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// DefaultSocket is where a director listens unless it is told otherwise.
const DefaultSocket = "/run/lvsd/lvsd.sock"

// ErrRunning is the error of Listen when somebody answers on the socket.
var ErrRunning = errors.New("another lvsd is running")

// Listen makes the socket, mode 0600, and its folder if need be. A socket that a dead process left is replaced. It
// changes the process's umask for a moment; call it before there are others who make files.
func Listen(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on %s: %w; stop it, or choose another socket with --socket or LVSD_SOCKET", path, ErrRunning)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
			_ = os.Remove(path) // if it stays, net.Listen says why
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the admin socket: %w; choose another place with --socket or LVSD_SOCKET", err)
	}
	defer syscall.Umask(syscall.Umask(0o177))
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on the admin socket: %w; choose another place with --socket or LVSD_SOCKET", err)
	}
	return l, nil
}

// Serve answers requests on a listener until ctx is done, and then takes what it was asked before to its end.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		stopped <- server.Shutdown(grace)
	})
	err := server.Serve(l)
	if stop() {
		return fmt.Errorf("serve the admin socket: %w", err)
	}
	<-stopped
	return nil
}

// Client asks a running director.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client of the director that listens on a socket.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}},
	}}
}

// Status returns the director's status, and the JSON text it was sent as.
func (c *Client) Status(ctx context.Context) (*Status, []byte, error) {
	body, err := c.get(ctx, "/v1/status")
	if err != nil {
		return nil, nil, err
	}
	s := new(Status)
	if err := json.Unmarshal(body, s); err != nil {
		return nil, nil, fmt.Errorf("read the status that %s answered: %w", c.socket, err)
	}
	return s, body, nil
}

func (c *Client) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lvsd"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		var p problem
		if json.Unmarshal(body, &p) == nil && p.Error != "" {
			return nil, errors.New(p.Error)
		}
		return nil, fmt.Errorf("%s answered %s", c.socket, resp.Status)
	}
	return body, nil
}

// explain says what a user can do about a socket that does not answer.
func (c *Client) explain(err error) error {
	const other = "name another socket with --socket or LVSD_SOCKET"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("lvsd is not running here: there is no socket %s; start it with `lvsd run`, or %s", c.socket, other)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("lvsd is not running here: nobody listens on %s; start it with `lvsd run`, or %s", c.socket, other)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the socket %s belongs to another user: %w; run this as the user that runs lvsd, or %s", c.socket, fs.ErrPermission, other)
	}
	return fmt.Errorf("ask lvsd at %s: %w", c.socket, err)
}
