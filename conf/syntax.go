package conf

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// syntaxFindings puts into words why a text is not TOML. Keys that are written twice are all reported; otherwise the
// decoder stops at the first thing it cannot read.
func syntaxFindings(src source, err error, duplicates []finding) []finding {
	var parseErr toml.ParseError
	if !errors.As(err, &parseErr) {
		return append(duplicates, finding{line: src.line(1), problem: err.Error()})
	}
	start := min(max(0, parseErr.Position.Start), len(src.text)) // its Line is one too many for an error at a line's end
	found := finding{
		line:    src.line(1 + strings.Count(src.text[:start], "\n")),
		problem: reason(parseErr.Message),
	}
	if slices.ContainsFunc(duplicates, func(d finding) bool { return d.line == found.line }) {
		return duplicates
	}
	before := strings.LastIndexByte(src.text[:start], '\n') + 1
	line, _, _ := strings.Cut(src.text[before:], "\n")
	if hint := lineHint(line); hint != "" && !aboutContext.MatchString(parseErr.Message) {
		found.problem += "; " + hint
	}
	return append(duplicates, found)
}

// aboutContext matches the messages of the decoder that are not about the line on which they are found.
var aboutContext = regexp.MustCompile(`^Key |EOF`)

// reasons turns the decoder's messages into ours. The first pattern that fits wins.
var reasons = []struct {
	pattern *regexp.Regexp
	reason  string
}{
	{regexp.MustCompile(`^Key '(service|service\.server)' was already created and cannot be used as an array\.$`),
		`$1 was begun in another way above; write [[$1]] in double brackets each time, and [[service]] above its [[service.server]]`},
	{regexp.MustCompile(`^Key '(service|service\.server)' has already been defined\.$`),
		`$1 was begun in another way above; write [[$1]] in double brackets each time`},
	{regexp.MustCompile(`^Key '(.+)' was already created and cannot be used as an array\.$`), `$1 was begun in another way above than as [[$1]]`},
	{regexp.MustCompile(`^Key '(.+)' was already created as a hash\.$`), `$1 has a value above and so cannot be a table`},
	{regexp.MustCompile(`^Key '(.+)' has already been defined\.$`), `$1 is already above; a key can be given only once`},
	{regexp.MustCompile(`^expected a top-level item to end with a newline, comment, or EOF, but got (.+) instead$`), `expected the line to end here, but found $1`},
	{regexp.MustCompile(`^expected '\.' or '=', but got the end of the line instead$`), `expected = and a value after the key`},
	{regexp.MustCompile(`^expected '\.' or '=', but got (.+) instead$`), `expected = after the key, but found $1`},
	{regexp.MustCompile(`^expected '\.' or '\]' to end table name, but got (.+) instead$`), `expected ] at the end of the table's name, but found $1`},
	{regexp.MustCompile(`^expected end of table array name delimiter '\]', but got (.+) instead$`), `expected ]] at the end of the table's name, but found $1`},
	{regexp.MustCompile(`^expected value but found the end of the line instead$`), `expected a value after =`},
	{regexp.MustCompile(`^expected value but found (.+) instead$`), `expected a value, but found $1`},
	{regexp.MustCompile(`^unexpected EOF; expected key separator '='$`), `expected = and a value after the key, but the file ends`},
	{regexp.MustCompile(`^unexpected EOF; expected value$`), `expected a value or the end of one, but the file ends; is a bracket not closed?`},
	{regexp.MustCompile(`^unexpected EOF; expected (.+)$`), `expected $1, but the file ends; is a string not closed?`},
	{regexp.MustCompile(`^unexpected EOF$`), `the file ends too early`},
	{regexp.MustCompile(`^strings cannot contain newlines$`), `the string has no closing quote on its line`},
	{regexp.MustCompile(`^invalid UTF-8 byte: (.+)$`), `the byte $1 is not UTF-8; save the file as UTF-8`},
	{regexp.MustCompile(`^files cannot contain NULL bytes;.*$`), `there are NUL bytes; the file is not a text file in UTF-8`},
	{regexp.MustCompile(`^TOML files cannot contain control characters: '0x0d'$`), `there is a carriage return inside the line; end lines with LF or CRLF`},
	{regexp.MustCompile(`^TOML files cannot contain control characters: '(.+)'$`), `there is a control character, $1`},
	{regexp.MustCompile(`^(.+) is out of range for int64$`), `$1 is too large a number`},
}

func reason(message string) string {
	message = strings.ReplaceAll(message, `'\n'`, "the end of the line")
	for _, r := range reasons {
		if r.pattern.MatchString(message) {
			return r.pattern.ReplaceAllString(message, r.reason)
		}
	}
	if message != "" {
		message = strings.ToLower(message[:1]) + message[1:]
	}
	return strings.TrimSuffix(message, ".")
}

// The ends of hints for those who come from elsewhere.
const (
	inOurs = "here a virtual service is headed [[service]], a real server [[service.server]] (lvsd check --example shows how)"
	inTOML = "the configuration is TOML (lvsd check --example shows how)"
)

// lineHints recognize what people write who come from another program or have not met TOML. The first pattern that
// fits the line wins; its hint may use what the pattern has matched.
var lineHints = []struct {
	pattern *regexp.Regexp
	hint    string
}{
	{regexp.MustCompile(`^(<<<<<<<|=======|>>>>>>>|\|\|\|\|\|\|\|)`), `this is a mark of a merge conflict`},
	{regexp.MustCompile(`[“”„‘’«»]`), `use straight quotes, "`},
	{regexp.MustCompile(`^\s*(virtual_server|real_server|global_defs|vrrp_\w+|static_\w+|[A-Z]+_(CHECK|GET))\b`),
		`this is the language of keepalived; ` + inOurs},
	{regexp.MustCompile(`^\s*(ipvsadm\s+)?-(A|E|D|a|e|d|C|-add-service|-add-server)\b`),
		`this is a rule of ipvsadm; give such rules to a running lvsd with ipvsadm-restore`},
	{regexp.MustCompile(`^\s*(frontend|backend|listen|bind|server|global|defaults|mode|balance|timeout|maxconn|option|stats)(\s+[^=\s].*)?$`),
		`this is the language of HAProxy; ` + inOurs},
	{regexp.MustCompile(`^\s*(virtual|real|fallback)\s*=\s*[^"']`),
		`this is the language of ldirectord; ` + inOurs},
	{regexp.MustCompile(`^\s*(//|;|!|--|/\*|rem\b)`), `comments begin with #`},
	{regexp.MustCompile(`^\s*\{`), `this looks like JSON; ` + inTOML},
	{regexp.MustCompile(`^\s*(upstream|http|stream|server)\b.*\{`),
		`this is the language of nginx; ` + inOurs},
	{regexp.MustCompile(`^\s*-?\s*([\w.-]+)\s*:\s*$`), `this looks like YAML; ` + inTOML},
	{regexp.MustCompile(`^\s*-?\s*([\w.-]+)\s*(?::\s|:=\s*)\s*(.+)$`), `TOML sets a key with =, as in $1 = $2`},
	{regexp.MustCompile(`^\s*(\[\[[^\[\]]*\]?|\[[^\[\]]*(\]\])?)\s*(#.*)?$`), `close as many brackets as were opened: [[service]]`},
	{regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*(#.*)?$`), `write a value behind =, or put # before the line for the default`},
	{regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*(?i:(yes|on)|(no|off))\s*(#.*)?$`), `write true or false`},
	{regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*(?i:(true|false))\s*(#.*)?$`), `write true and false in small letters`},
	{regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*\$\{`), `variables are not replaced unless that is asked for`},
	{regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*('[^']*'|"[^"]*"|\d+|true|false)\s*[;,]`), `nothing but a comment may follow the value`},
	{regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*('[^']*'|"[^"]*"|\d+|true|false)\s+[\w.-]+\s*=`), `each key has a line of its own`},
	{regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*[+-]?[0-9_]+\s*(#.*)?$`), ``}, // a number, whatever is wrong with it
	{regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*"[^"]*\\`), `write a backslash as \\, or put the text in single quotes`},
	{regexp.MustCompile(`^\s*([\w.-]+)\s*=\s*([A-Za-z0-9/:*\[][^"'\s,=]*)\s*[;,]?\s*(#.*)?$`), `text needs quotes: $1 = "$2"`},
	{regexp.MustCompile(`^\s*([\w.-]+)\s+("[^"]*"|[\w.:]+)\s*(#.*)?$`), `TOML sets a key with =, as in $1 = $2`},
}

// lineHint says what is probably wrong with a line that is not TOML.
func lineHint(line string) string {
	const longest = 1000
	line = strings.TrimSuffix(line, "\r")
	if len(line) > longest {
		return ""
	}
	for _, h := range lineHints {
		if m := h.pattern.FindStringSubmatchIndex(line); m != nil {
			return string(h.pattern.ExpandString(nil, h.hint, line, m))
		}
	}
	return ""
}
