package doctor

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// printable escapes what could deceive or disturb a terminal or a log: control characters, line ends, and
// invisible ones such as those that turn the direction of writing.
func printable(text string) string {
	var b strings.Builder
	for _, r := range text {
		if disturbs(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func disturbs(r rune) bool {
	return r != ' ' && !unicode.IsPrint(r)
}

// identifier makes SQL of a name as quote_ident(name) gives it. One with characters that must not be printed is
// written with their numbers, so that it can be run all the same.
func identifier(quoted string) string {
	if !strings.ContainsFunc(quoted, disturbs) {
		return quoted
	}
	name := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(quoted, `"`), `"`), `\`, `\\`)
	return `U&"` + numbered(name, `\%04X`, `\+%06X`) + `"`
}

// qualified is a name with its schema.
func qualified(schema, name string) string { return identifier(schema) + "." + identifier(name) }

// literal makes SQL of a text.
func literal(text string) string {
	if !strings.ContainsFunc(text, disturbs) && !strings.Contains(text, `\`) {
		return "'" + strings.ReplaceAll(text, "'", "''") + "'"
	}
	text = strings.NewReplacer("'", "''", `\`, `\\`).Replace(text)
	return "E'" + numbered(text, `\u%04X`, `\U%08X`) + "'"
}

func numbered(text, short, long string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case !disturbs(r):
			b.WriteRune(r)
		case r <= 0xffff:
			fmt.Fprintf(&b, short, r)
		default:
			fmt.Fprintf(&b, long, r)
		}
	}
	return b.String()
}

// names lists the first few, and how many more there are.
func names(all []string) string {
	if len(all) <= maxNamed {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:maxNamed], ", "), len(all)-maxNamed)
}

// plural is a number of things.
func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// age is a duration as people say it.
func age(d time.Duration) string {
	switch {
	case d < time.Second:
		return "less than a second"
	case d < 2*time.Minute:
		return plural(int64(d/time.Second), "second", "seconds")
	case d < 2*time.Hour:
		return plural(int64(d/time.Minute), "minute", "minutes")
	case d < 48*time.Hour:
		return plural(int64(d/time.Hour), "hour", "hours")
	}
	return plural(int64(d/(24*time.Hour)), "day", "days")
}
