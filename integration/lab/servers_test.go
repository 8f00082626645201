package lab_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lvsd/lvsd/integration/lab"
	"github.com/lvsd/lvsd/integration/labtest"
)

func newHost(t *testing.T) *lab.Host {
	t.Helper()
	labtest.NeedLab(t)
	h, err := lab.NewHost("alone")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestServeHTTP(t *testing.T) {
	labtest.CheckLeaks(t)
	h := newHost(t)
	if _, err := h.ServeHTTP(":80"); err != nil {
		t.Fatal(err)
	}
	client := h.HTTPClient()
	const size = 3<<20 + 7
	content, err := io.ReadAll(io.LimitReader(lab.Pattern(), size))
	if err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(content))

	for _, tt := range []struct {
		name, method, path string
		body               io.Reader
		status             int
		want               []byte // nil for any
		trailer            string
	}{
		{"bytes", "GET", fmt.Sprintf("/bytes/%d", size), nil, 200, content, ""},
		{"no bytes", "GET", "/bytes/0", nil, 200, []byte{}, ""},
		{"negative", "GET", "/bytes/-1", nil, 400, nil, ""},
		{"no number", "GET", "/bytes/many", nil, 400, nil, ""},
		{"echo", "POST", "/echo", bytes.NewReader(content), 200, content, sum},
		{"sum", "POST", "/sha256", bytes.NewReader(content), 200, fmt.Appendf(nil, "%s %d\n", sum, size), ""},
		{"unknown", "GET", "/unknown", nil, 404, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(withTimeout(t), tt.method, "http://127.0.0.1"+tt.path, tt.body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tt.status || tt.want != nil && !bytes.Equal(got, tt.want) {
				t.Errorf("%s, %d bytes, error %v; want %d, %d bytes", resp.Status, len(got), err, tt.status, len(tt.want))
			}
			if got := resp.Trailer.Get("Lab-Sha256"); got != tt.trailer {
				t.Errorf("Lab-Sha256 is %q, want %q", got, tt.trailer)
			}
			if name, from := resp.Header.Get("Lab-Server"), resp.Header.Get("Lab-Client"); name != "alone" || !strings.HasPrefix(from, "127.0.0.1:") {
				t.Errorf("Lab-Server is %q, Lab-Client %q", name, from)
			}
		})
	}
}

// TestPattern sees that no piece of the pattern is found at another place soon.
func TestPattern(t *testing.T) {
	seen := make(map[[16]byte]int)
	var piece [16]byte
	for r, i := lab.Pattern(), 0; i < 1<<16; i++ {
		if _, err := io.ReadFull(r, piece[:]); err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[piece]; ok {
			t.Fatalf("pieces %d and %d are equal", before, i)
		}
		seen[piece] = i
	}
}

// TestServiceClose closes services that have a connection open, and one in the middle of an answer.
func TestServiceClose(t *testing.T) {
	labtest.CheckLeaks(t)
	h := newHost(t)
	ctx := withTimeout(t)
	web, err := h.ServeHTTP(":80")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := h.ServeTCPEcho(":7000")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ServeUDPEcho(":7000"); err != nil { // left for the host to close
		t.Fatal(err)
	}
	webConn, err := h.Dial(ctx, "tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer webConn.Close()
	fmt.Fprintf(webConn, "GET /bytes/1000000000000 HTTP/1.1\r\nHost: x\r\n\r\n")
	answer := bufio.NewReader(webConn)
	if line, err := answer.ReadString('\n'); !strings.Contains(line, "200 OK") {
		t.Fatalf("%q, %v", line, err)
	}
	lineConn, err := h.Dial(ctx, "tcp", "127.0.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer lineConn.Close()
	fmt.Fprintln(lineConn, "one")
	if line, err := bufio.NewReader(lineConn).ReadString('\n'); line != fmt.Sprintf("alone %s one\n", lineConn.LocalAddr()) {
		t.Errorf("%q, %v", line, err)
	}

	web.Close()
	lines.Close()
	lines.Close()
	if _, err := io.Copy(io.Discard, answer); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if _, err := lineConn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection to a closed service is open")
	}
	for _, address := range []string{"127.0.0.1:80", "127.0.0.1:7000"} {
		if c, err := h.Dial(ctx, "tcp", address); err == nil {
			c.Close()
			t.Errorf("%s is served after Close", address)
		}
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if s, err := h.ServeHTTP(":81"); !errors.Is(err, lab.ErrClosed) {
		t.Errorf("a service of a closed host: %v, %v", s, err)
	}
}

func TestUDPEcho(t *testing.T) {
	h := newHost(t)
	if _, err := h.ServeUDPEcho(":7000"); err != nil {
		t.Fatal(err)
	}
	for _, server := range []string{"127.0.0.1:7000", "[::1]:7000"} {
		if !hasIPv6(t, h) && strings.HasPrefix(server, "[") {
			continue
		}
		c, err := h.Dial(withTimeout(t), "udp", server)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, size := range []int{0, 1, 8000, 65000} {
			sent := make([]byte, size)
			io.ReadFull(lab.Pattern(), sent)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 1<<16)
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, err := c.Read(got)
			if err != nil {
				t.Fatal(err)
			}
			e, err := lab.ParseEcho(got[:n])
			want := netip.MustParseAddrPort(c.LocalAddr().String())
			if err != nil || e.Server != "alone" || e.Client != want || !bytes.Equal(e.Data, sent) {
				t.Errorf("%d bytes: an echo from %q to %s with %d bytes, %v; want from alone to %s", size, e.Server, e.Client, len(e.Data), err, want)
			}
		}
	}
}

func hasIPv6(t *testing.T, h *lab.Host) bool {
	t.Helper()
	has := false
	if err := h.Do(func() error {
		c, err := net.ListenPacket("udp6", "[::1]:0")
		if has = err == nil; has {
			c.Close()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return has
}

func TestParseEcho(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // empty for an error
	}{
		{"server1 10.0.1.1:5 hello there", "server1|10.0.1.1:5|hello there"},
		{"server1 [fd00:1::1]:5 ", "server1|[fd00:1::1]:5|"},
		{"server1 10.0.1.1:5", ""},
		{"server1 10.0.1.1 hello", ""},
		{"", ""},
	} {
		e, err := lab.ParseEcho([]byte(tt.in))
		got := ""
		if err == nil {
			got = fmt.Sprintf("%s|%s|%s", e.Server, e.Client, e.Data)
		}
		if got != tt.want {
			t.Errorf("ParseEcho(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
}
