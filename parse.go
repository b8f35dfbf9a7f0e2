package trumpet

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// ParseSubscription reads a topic with its filter in PostgREST's spelling: jobs, or
// jobs?status=eq.open&priority=not.in.(1,2). Columns and values are percent-encoded
// as in a URL's query, so a plus sign stands for a space. Whether the columns are
// there, only Compile knows. Its error is a *Refusal.
func ParseSubscription(text string) (Subscription, error) {
	topic, filter, _ := strings.Cut(text, "?")
	if err := ValidTopic(topic); err != nil {
		return Subscription{}, Refuse(ErrFilter, "%s", err)
	}
	// Percent-encoding makes three bytes of one; what is longer than that can
	// only be too long.
	if len(filter) > 3*MaxFilterBytes {
		return Subscription{}, refuseLength(topic, len(filter))
	}
	s := Subscription{Topic: topic}
	for part := range strings.SplitSeq(filter, "&") {
		if part == "" {
			continue // as in any query
		}
		if len(s.Conditions) == MaxConditions {
			return Subscription{}, Refuse(ErrFilter, "the filter of topic %s has more than %d conditions", topic, MaxConditions)
		}
		condition, err := parseCondition(part)
		if err != nil {
			return Subscription{}, err
		}
		s.Conditions = append(s.Conditions, condition)
	}
	s.canonical()
	if n := len(s.appendFilter(nil)); n > MaxFilterBytes {
		return Subscription{}, refuseLength(topic, n)
	}
	return s, nil
}

func refuseLength(topic string, n int) error {
	return Refuse(ErrFilter, "the filter of topic %s has %d bytes; %d are allowed", topic, n, MaxFilterBytes)
}

func parseCondition(part string) (Condition, error) {
	name, value, ok := strings.Cut(part, "=")
	if !ok {
		return Condition{}, Refuse(ErrFilter, "condition %s has no =; conditions look like status=eq.open", shown(part))
	}
	column, okColumn := unescape(name)
	text, okText := unescape(value)
	if !okColumn || !okText {
		return Condition{}, Refuse(ErrFilter, "condition %s is not percent-encoded UTF-8; write %% as %%25", shown(part))
	}
	if column == "" {
		return Condition{}, Refuse(ErrFilter, "condition %s names no column; conditions look like status=eq.open", shown(part))
	}
	c := Condition{Column: column}
	operator, rest, ok := strings.Cut(text, ".")
	if ok && operator == "not" {
		c.Not = true
		operator, rest, ok = strings.Cut(rest, ".")
	}
	c.Operator = Operator(operator)
	if !ok || !slices.Contains(Operators, c.Operator) {
		return Condition{}, Refuse(ErrFilter, "condition %s: behind the = comes one of the operators %s, or not. and one of them, and a dot before the value, as in status=eq.open",
			shown(part), operatorList())
	}
	switch c.Operator {
	case In:
		values, err := parseList(rest)
		if err != "" {
			return Condition{}, Refuse(ErrFilter, `condition %s: %s; lists look like in.(open,"a, b",closed)`, shown(part), err)
		}
		c.Values = values
	case Is:
		rest = strings.ToLower(rest)
		if !slices.Contains([]string{"null", "true", "false", "unknown"}, rest) {
			return Condition{}, Refuse(ErrFilter, "condition %s: is takes null, true, false or unknown; for other values there is eq", shown(part))
		}
		c.Values = []string{rest}
	default:
		c.Values = []string{rest}
	}
	return c, nil
}

// parseList reads (a,"b,c",d). It returns what is wrong as a text.
func parseList(text string) (values []string, wrong string) {
	if len(text) < 2 || text[0] != '(' || text[len(text)-1] != ')' {
		return nil, "the list is not in parentheses"
	}
	rest := text[1 : len(text)-1]
	if rest == "" {
		return nil, "the list is empty"
	}
	for {
		var value string
		if strings.HasPrefix(rest, `"`) {
			n := 0
			if value, n = unquote(rest); n < 0 {
				return nil, `a " is not closed`
			}
			rest = rest[n:]
		} else {
			n := strings.IndexByte(rest, ',')
			if n < 0 {
				n = len(rest)
			}
			value, rest = rest[:n], rest[n:]
			if value == "" {
				return nil, `a value is missing (the empty text is "")`
			}
			if strings.ContainsAny(value, `()"\`) {
				return nil, `a value with ( ) " or \ stands in double quotes, and " and \ have a \ before them`
			}
		}
		values = append(values, value)
		if rest == "" {
			return values, ""
		}
		if rest[0] != ',' {
			return nil, `behind a closing " comes a comma`
		}
		rest = rest[1:]
	}
}

// unquote reads the quoted text at the beginning of s. Of n bytes it is; n is -1 if
// the quote is not closed.
func unquote(s string) (value string, n int) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), i + 1
		case '\\':
			if i++; i == len(s) {
				return "", -1
			}
		}
		b.WriteByte(s[i])
	}
	return "", -1
}

// unescape undoes percent-encoding. What Postgres cannot hold is not ok: text that is
// not UTF-8, and a zero byte.
func unescape(s string) (text string, ok bool) {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '+':
			b = append(b, ' ')
		case '%':
			if i+2 >= len(s) {
				return "", false
			}
			high, okHigh := unhex(s[i+1])
			low, okLow := unhex(s[i+2])
			if !okHigh || !okLow {
				return "", false
			}
			b = append(b, high<<4|low)
			i += 2
		default:
			b = append(b, c)
		}
	}
	text = string(b)
	return text, utf8.ValidString(text) && strings.IndexByte(text, 0) < 0
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// shown quotes what a client wrote for an error, and cuts it short.
func shown(s string) string {
	const most = 80
	if len(s) > most {
		cut := most
		for !utf8.RuneStart(s[cut]) && cut > most-utf8.UTFMax {
			cut--
		}
		s = s[:cut] + "…"
	}
	return quoted(s)
}

func operatorList() string {
	names := make([]string, len(Operators))
	for i, o := range Operators {
		names[i] = string(o)
	}
	return strings.Join(names, ", ")
}
