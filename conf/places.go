package conf

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A place is where a value stands in the file. Places form a tree of the same shape as the values that
// BurntSushi/toml decodes; that decoder itself does not tell the lines of keys in arrays of tables
// (docs/decisions/0002-toml-lines.md).
type place struct {
	parent *place
	name   string // of a value in a table
	index  int    // of an element of an array, counted from 1
	line   int    // of the key, the header of a table, or the element

	keys     map[string]*place // what a table holds
	items    []*place          // what an array holds
	declared bool              // written as such and not only implied by a longer key
}

// path returns the full key of a place, such as service[1].address. The root has none.
func (p *place) path() string {
	switch {
	case p.parent == nil:
		return ""
	case p.index > 0:
		return p.parent.path() + "[" + strconv.Itoa(p.index) + "]"
	}
	return joinKey(p.parent.path(), p.name)
}

func joinKey(table, name string) string {
	key := toml.Key{name}.String() // quoted if need be
	if table == "" {
		return key
	}
	return table + "." + key
}

// key returns the place of a key in a table, or nil.
func (p *place) key(name string) *place { return p.keys[name] }

// item returns the place of an array's element, counted from 0. What should be an array and is a single table counts
// as its own only element, so that the walk can go on after that mistake.
func (p *place) item(i int) *place {
	if i < len(p.items) {
		return p.items[i]
	}
	return p
}

// find follows a field of a balancer.FieldError as far as the file goes and returns what is left of it there.
func (p *place) find(field string) (at *place, rest string) {
	for field != "" {
		part, rest, _ := strings.Cut(field, ".")
		name, index, indexed := strings.Cut(strings.TrimSuffix(part, "]"), "[")
		next := p.key(name)
		if next == nil {
			break
		}
		p, field = next, rest
		if i, err := strconv.Atoi(index); indexed && err == nil {
			p = p.item(i)
		}
	}
	return p, field
}

// places is what findPlaces learns of a text.
type places struct {
	root       *place
	duplicates []finding // keys and tables that are written twice
	line       int       // where reading ended, for the error
}

// maxDepth is how deep tables and arrays may be nested. No key of ours is deeper than 5, and what the decoder does
// with deeper ones takes time by the square of the depth and stack without a bound.
const maxDepth = 16

var errTooDeep = fmt.Errorf("tables or arrays are nested more than %d deep; no key of this file is", maxDepth)

// findPlaces reads the syntax of a text only. On an error there are the places up to it.
func findPlaces(src source) (places, error) {
	text := []byte(src.text)
	f := &placeFinder{src: src, starts: lineStarts(text), places: places{root: &place{line: 1}, line: 1}}
	f.parser.Reset(slices.Clip(text)) // it tells offsets from capacities
	table := f.root
	for f.parser.NextExpression() {
		var err error
		switch e := f.parser.Expression(); e.Kind {
		case unstable.Table:
			table, err = f.header(e, false)
		case unstable.ArrayTable:
			table, err = f.header(e, true)
		case unstable.KeyValue:
			err = f.keyValue(table, e, 0)
		}
		if err != nil {
			return f.places, err
		}
	}
	if err := f.parser.Error(); err != nil {
		var parserErr *unstable.ParserError
		if errors.As(err, &parserErr) {
			f.line = f.lineAt(f.parser.Range(parserErr.Highlight).Offset)
			if strings.Contains(parserErr.Message, "nested more than") {
				err = errTooDeep
			}
		}
		return f.places, err
	}
	return f.places, nil
}

type placeFinder struct {
	places
	src    source
	parser unstable.Parser
	starts []uint32 // where each line starts
}

func lineStarts(text []byte) []uint32 {
	starts := make([]uint32, 1, 1+bytes.Count(text, []byte("\n")))
	for i, c := range text {
		if c == '\n' {
			starts = append(starts, uint32(i+1))
		}
	}
	return starts
}

// lineAt returns the line of an offset and remembers it.
func (f *placeFinder) lineAt(offset uint32) int {
	line, exact := slices.BinarySearch(f.starts, offset)
	if exact {
		line++
	}
	f.line = f.src.line(line)
	return f.line
}

// header enters the table of a [header] or a new element of a [[header]].
func (f *placeFinder) header(e *unstable.Node, array bool) (*place, error) {
	table := f.root
	depth := 0
	for key := e.Key(); key.Next(); {
		if depth++; depth > maxDepth {
			return nil, errTooDeep
		}
		part := key.Node()
		if n := len(table.items); n > 0 {
			table = table.items[n-1] // a header means the newest element of arrays on its way
		}
		table = f.enter(table, part)
		if !key.IsLast() {
			continue
		}
		if array {
			return table.append(f.line), nil
		}
		f.declare(table)
	}
	return table, nil
}

// keyValue notes the place of a key, which may be dotted, and those of what is in its value.
func (f *placeFinder) keyValue(table *place, e *unstable.Node, depth int) error {
	for key := e.Key(); key.Next(); {
		if depth++; depth > maxDepth {
			f.lineAt(key.Node().Raw.Offset)
			return errTooDeep
		}
		table = f.enter(table, key.Node())
	}
	f.declare(table)
	return f.value(table, e.Value(), depth)
}

func (f *placeFinder) value(at *place, v *unstable.Node, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	switch v.Kind {
	case unstable.InlineTable:
		for pairs := v.Children(); pairs.Next(); {
			if err := f.keyValue(at, pairs.Node(), depth); err != nil {
				return err
			}
		}
	case unstable.Array:
		for elements := v.Children(); elements.Next(); {
			element := elements.Node()
			line := at.line
			if element.Raw.Length > 0 {
				line = f.lineAt(element.Raw.Offset)
			}
			if err := f.value(at.append(line), element, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// enter returns the place of one part of a key in a table, which is new or was entered before.
func (f *placeFinder) enter(table *place, part *unstable.Node) *place {
	line := f.lineAt(part.Raw.Offset)
	name := string(part.Data)
	next := table.keys[name]
	if next == nil {
		if table.keys == nil {
			table.keys = make(map[string]*place)
		}
		next = &place{parent: table, name: name, line: line}
		table.keys[name] = next
	}
	return next
}

// declare notes that a key or table is written in full on the line of its last part.
func (f *placeFinder) declare(p *place) {
	if p.declared {
		f.duplicates = append(f.duplicates, finding{f.line, p.path(), fmt.Sprintf(
			"is already on line %d; a key can be given only once", p.line)})
		return
	}
	p.declared, p.line = true, f.line
}

func (p *place) append(line int) *place {
	item := &place{parent: p, index: len(p.items) + 1, line: line}
	p.items = append(p.items, item)
	return item
}
