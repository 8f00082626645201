package conf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Error is one thing that is wrong with a configuration file.
type Error struct {
	File    string
	Line    int    // counts from 1; 0 if the file could not be read at all
	Key     string // full path, such as service[1].server[2].weight, counted from 1; may be empty
	Problem string // what is wrong and what would be right

	cause error
}

// Error returns "file:line: key: problem".
func (e *Error) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	if e.Key != "" {
		where += ": " + e.Key
	}
	return where + ": " + e.Problem
}

// Unwrap returns why a file could not be read, such as fs.ErrNotExist.
func (e *Error) Unwrap() error { return e.cause }

// Errors is everything that is wrong with a configuration file, in the order of its lines.
type Errors []*Error

// Error returns one error a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes errors.Is and errors.As look at each of the errors.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, err := range e {
		errs[i] = err
	}
	return errs
}

// finding is an Error to be.
type finding struct {
	line         int
	key, problem string
}

func newErrors(file string, findings []finding) Errors {
	slices.SortStableFunc(findings, func(a, b finding) int { return cmp.Compare(a.line, b.line) })
	errs := make(Errors, len(findings))
	for i, f := range findings {
		errs[i] = &Error{File: file, Line: f.line, Key: printable(f.key), Problem: printable(f.problem)}
	}
	return errs
}

// printable keeps what was quoted from a file from breaking a line or steering a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// quote shows a value from the file, shortened if it is long.
func quote(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	return fmt.Sprintf("%q", s)
}
