package conf

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	variable     = regexp.MustCompile(`\$\$\{|\$\{[^}\n]*\}?`)
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// expandEnv replaces the variables of a text. Values may bring lines along, so it also returns the line in the
// original of each line of the result.
func expandEnv(text string, lookup func(string) (string, bool)) (source, []finding) {
	var (
		out      strings.Builder
		origin   []int
		findings []finding
		line     int
	)
	replace := func(match string) string {
		if match == "$${" {
			return "${"
		}
		name, closed := strings.CutSuffix(match[len("${"):], "}")
		if !closed || !variableName.MatchString(name) {
			findings = append(findings, finding{line, "", fmt.Sprintf(
				"%s is not a variable; write ${NAME}, or $${ for a literal ${", quote(match))})
			return ""
		}
		value, set := lookup(name)
		if !set {
			findings = append(findings, finding{line, "", fmt.Sprintf("the environment variable %s is not set", name)})
		}
		return value
	}
	for original := range strings.Lines(text) {
		line++
		if !strings.HasPrefix(strings.TrimLeft(original, " \t"), "#") {
			original = variable.ReplaceAllStringFunc(original, replace)
		}
		out.WriteString(original)
		for range strings.Count(strings.TrimSuffix(original, "\n"), "\n") + 1 {
			origin = append(origin, line)
		}
		if out.Len() > MaxSize {
			return source{}, []finding{{line, "", fmt.Sprintf("with its variables replaced the file is larger than %d MiB", MaxSize>>20)}}
		}
	}
	return source{out.String(), origin}, findings
}
