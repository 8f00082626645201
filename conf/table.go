package conf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// reader collects what is wrong with a document while it is walked through.
type reader struct {
	root     *place
	findings []finding
	reported map[string]bool // keys with a finding
}

// report reports a key once; what is found later is a consequence.
func (r *reader) report(line int, key, format string, args ...any) {
	if key != "" && r.reported[key] {
		return
	}
	r.findings = append(r.findings, finding{line, key, fmt.Sprintf(format, args...)})
	r.reported[key] = true
}

// table is a table of the document: what it says and where it stands. Its methods read one key each into a Go value,
// if the key is there and its value is of the right type, and report it otherwise.
type table struct {
	*reader
	section string // which of the sections it is
	values  map[string]any
	at      *place
}

// reportKey reports a key of the table; one that is missing, on the line of the table.
func (t *table) reportKey(name, format string, args ...any) {
	line := t.at.line
	if key := t.at.key(name); key != nil {
		line = key.line
	}
	t.report(line, joinKey(t.at.path(), name), format, args...)
}

func (t *table) text(name string, dst *string) bool {
	value, found := t.values[name]
	s, ok := value.(string)
	if ok {
		*dst = s
	} else if found {
		t.reportKey(name, "must be a string in quotes, not %s", describe(value))
	}
	return ok
}

func (t *table) integer(name string, dst *int) bool {
	value, found := t.values[name]
	v, ok := value.(int64)
	if ok = ok && int64(int(v)) == v; ok {
		*dst = int(v)
	} else if found {
		hint := ""
		if s, isText := value.(string); isText {
			if n, err := strconv.Atoi(strings.TrimSpace(s)); err == nil {
				hint = fmt.Sprintf("; write %s = %d, without quotes", name, n)
			}
		}
		t.reportKey(name, "must be an integer, not %s%s", describe(value), hint)
	}
	return ok
}

func (t *table) integerIn(name string, dst *int, low, high int) {
	var v int
	if !t.integer(name, &v) {
		return
	}
	if v < low || v > high {
		t.reportKey(name, "must be %d to %d, not %d", low, high, v)
		return
	}
	*dst = v
}

func (t *table) boolean(name string, dst *bool) {
	value, found := t.values[name]
	if v, ok := value.(bool); ok {
		*dst = v
	} else if found {
		t.reportKey(name, "must be true or false without quotes, not %s", describe(value))
	}
}

// choice reads one of a few words.
func choice[T ~string](t *table, name string, dst *T, words ...T) {
	var word string
	if !t.text(name, &word) {
		return
	}
	if slices.Contains(words, T(word)) {
		*dst = T(word)
		return
	}
	known := make([]string, len(words))
	for i, w := range words {
		known[i] = string(w)
	}
	t.reportKey(name, "%s is not one of %s%s", quote(word), strings.Join(known, ", "), didYouMean(word, known))
}

// duration reads a string such as "15m" or an integer of seconds. A duration of 0 would not be what it seems to be:
// the balancer takes it for the default.
func (t *table) duration(name string, dst *time.Duration) {
	value, found := t.values[name]
	if !found {
		return
	}
	var d time.Duration
	switch v := value.(type) {
	case int64:
		const most = int64(1<<63-1) / int64(time.Second)
		if v < 0 || v > most {
			t.reportKey(name, "%d seconds is out of range", v)
			return
		}
		d = time.Duration(v) * time.Second
	case string:
		var err error
		if d, err = time.ParseDuration(v); err != nil {
			t.reportKey(name, `%s is not a duration; write "15m", "90s", "1h30m" or an integer of seconds%s`, quote(v), durationHint(v))
			return
		}
	default:
		t.reportKey(name, `must be a string such as "15m" or an integer of seconds, not %s`, describe(value))
		return
	}
	if d == 0 {
		t.reportKey(name, "must be at least 1s; leave the key out for the default")
		return
	}
	*dst = d
}

// durationHint says what a duration was probably meant to be.
func durationHint(s string) string {
	s = strings.ToLower(strings.ReplaceAll(s, " ", ""))
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return fmt.Sprintf("; did you mean %q?", s)
	}
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyz")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || n > 1e6 {
		return ""
	}
	meant := ""
	switch unit := s[len(digits):]; unit {
	case "", "sec", "secs", "second", "seconds":
		meant = fmt.Sprintf("%ds", n)
	case "min", "mins", "minute", "minutes":
		meant = fmt.Sprintf("%dm", n)
	case "hour", "hours", "hr", "hrs":
		meant = fmt.Sprintf("%dh", n)
	case "d", "day", "days":
		meant = fmt.Sprintf("%dh", 24*n)
	default:
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", meant)
}

// table returns the table of a key, if there is one.
func (t *table) table(name string) (table, bool) {
	value, found := t.values[name]
	sub := table{reader: t.reader, section: name, at: t.at.key(name)}
	switch v := value.(type) {
	case map[string]any:
		sub.values = v
		return sub, true
	case []map[string]any:
		t.reportKey(name, "there is only one such table; write [%s], in single brackets", name)
		sub.values, sub.at = v[0], sub.at.item(0)
		return sub, true
	default:
		if found {
			t.reportKey(name, "must be a table, headed [%s], not %s", name, describe(value))
		}
	}
	return table{}, false
}

// tables returns the elements of an array of tables, in any of the ways in which TOML allows to write one. What is no
// table comes as an empty one, so that the elements stay in their places.
func (t *table) tables(name, section string) []table {
	var elements []any
	switch v := t.values[name].(type) {
	case nil:
		return nil
	case []map[string]any:
		for _, element := range v {
			elements = append(elements, element)
		}
	case []any:
		elements = v
	case map[string]any:
		if !t.reportSingle(name, section, v) {
			return nil
		}
		elements = []any{v}
	default:
		t.reportKey(name, "must be tables, headed [[%s]], not %s", section, describe(v))
		return nil
	}
	array := t.at.key(name)
	tables := make([]table, len(elements))
	for i, element := range elements {
		values, ok := element.(map[string]any)
		at := array.item(i)
		if !ok {
			t.report(at.line, at.path(), "must be a table such as { address = \"10.0.0.1:80\" }, not %s", describe(element))
		}
		tables[i] = table{reader: t.reader, section: section, values: values, at: at}
	}
	return tables
}

// reportSingle reports a table that should be an array of tables, and tells whether it can be read as its only
// element.
func (t *table) reportSingle(name, section string, values map[string]any) bool {
	at := t.at.key(name)
	server := at.key("server")
	switch {
	case at.declared || values["address"] != nil:
		t.reportKey(name, "there can be many; write [[%s]], in double brackets", section)
		return true
	case server != nil && len(values) == 1:
		t.report(server.item(0).line, at.path(), "this server belongs to no service; put [[service]] and its address above it")
	default:
		t.reportKey(name, "there can be many and they have no names; write [[%s]], in double brackets", section)
	}
	return false
}

// unknownKeys reports the keys that the table's section does not have.
func (t *table) unknownKeys() {
	var unknown []string
	for name := range t.values {
		if !slices.Contains(keysOf(t.section), name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		t.reportKey(name, "unknown key; %s", keyHint(t.section, name))
	}
}

// describe says what a value is, to somebody who knows TOML a little.
func describe(value any) string {
	switch v := value.(type) {
	case string:
		return "the string " + quote(v)
	case int64:
		return fmt.Sprintf("the integer %d", v)
	case float64:
		return fmt.Sprintf("the fraction %v", v)
	case bool:
		return fmt.Sprintf("the boolean %v", v)
	case time.Time:
		return "a date or time"
	case map[string]any:
		return "a table"
	}
	return "an array"
}
