package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/BurntSushi/toml"
)

// MaxSize is the most bytes that a configuration file may have, before and after variables are replaced.
const MaxSize = 16 << 20

// readFile reads a regular file. Anything else could block or never end.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err // the path stands before the message already
		}
		return nil, fmt.Errorf("cannot open the configuration file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot open the configuration file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("is %s; the configuration must be a regular file", kindOf(info.Mode()))
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration file: %w", err)
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("is larger than %d MiB, the most that a configuration file may have", MaxSize>>20)
	}
	return data, nil
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}

// source is the text of a configuration with its variables replaced.
type source struct {
	text   string
	origin []int // line in the file of each line of the text; nil if they are the same
}

// line returns the line in the file of a line of the text, which may be out of bounds.
func (s source) line(n int) int {
	n = max(1, n)
	if s.origin != nil {
		return s.origin[min(n, len(s.origin))-1]
	}
	return n
}

// document is a file that was understood as TOML, though not yet as a configuration.
type document struct {
	values map[string]any
	root   *place
}

// parseTOML reads a text as TOML. Either there is a document or there are findings.
func parseTOML(src source) (document, []finding) {
	places, err := findPlaces(src)
	if errors.Is(err, errTooDeep) {
		return document{}, []finding{{line: places.line, problem: err.Error()}}
	}
	doc := document{root: places.root}
	if _, decodeErr := toml.Decode(src.text, &doc.values); decodeErr != nil {
		return document{}, syntaxFindings(src, decodeErr, places.duplicates)
	}
	if err != nil {
		return document{}, []finding{{line: places.line, problem: err.Error()}}
	}
	if places.duplicates != nil {
		return document{}, places.duplicates // the decoder overlooks some in arrays of tables
	}
	return doc, nil
}

// textOf takes the byte order mark off and refuses what cannot be TOML in a way that only TOML's author understands.
func textOf(data []byte) (string, []finding) {
	switch {
	case len(data) > MaxSize:
		return "", []finding{{line: 1, problem: fmt.Sprintf("is larger than %d MiB, the most that a configuration may have", MaxSize>>20)}}
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return "", []finding{{line: 1, problem: "is encoded in UTF-16; save the file as UTF-8"}}
	}
	return strings.TrimPrefix(string(data), "\ufeff"), nil
}
