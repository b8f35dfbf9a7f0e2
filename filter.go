package trumpet

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Bounds of one subscription.
const (
	// MaxConditions is how many conditions a filter may have.
	MaxConditions = 32
	// MaxFilterBytes is how long a filter's canonical text may be: what String
	// writes behind the question mark.
	MaxFilterBytes = 4096
)

// Subscription is a topic and a filter on it. Without conditions it is everything
// of the topic. Those that ParseSubscription and Matcher.Subscription return are
// canonical: the conditions are in order, and none occurs twice.
type Subscription struct {
	Topic      string
	Conditions []Condition // all must be true
}

// Condition compares a column with values. A null is neither equal nor unequal to
// anything, less or greater: as in SQL, only Is finds it.
type Condition struct {
	Column   string
	Not      bool // negates, and what is unknown stays unknown
	Operator Operator
	// Values is one value, or any number of different ones in order for In. For
	// Is it is null, true, false or unknown.
	Values []string
}

// Operator is how a column is compared with a value. It is spelled as PostgREST
// spells it.
type Operator string

// The operators.
const (
	Eq  Operator = "eq"
	Neq Operator = "neq"
	Lt  Operator = "lt"
	Lte Operator = "lte"
	Gt  Operator = "gt"
	Gte Operator = "gte"
	In  Operator = "in"
	Is  Operator = "is"
)

// Operators lists every operator.
var Operators = []Operator{Eq, Neq, Lt, Lte, Gt, Gte, In, Is}

// String writes the subscription in its canonical form, for example
// jobs?priority=not.in.(1,2)&status=eq.open. ParseSubscription gives the same back.
func (s Subscription) String() string {
	if len(s.Conditions) == 0 {
		return s.Topic
	}
	return string(s.appendFilter(append([]byte(s.Topic), '?')))
}

func (s Subscription) appendFilter(b []byte) []byte {
	for i, c := range s.Conditions {
		if i > 0 {
			b = append(b, '&')
		}
		b = c.appendText(b)
	}
	return b
}

// String writes the condition as it stands in a filter.
func (c Condition) String() string { return string(c.appendText(nil)) }

func (c Condition) appendText(b []byte) []byte {
	b = append(appendEscaped(b, c.Column), '=')
	if c.Not {
		b = append(b, "not."...)
	}
	b = append(append(b, c.Operator...), '.')
	if c.Operator != In {
		return appendEscaped(b, strings.Join(c.Values, ","))
	}
	b = append(b, '(')
	for i, v := range c.Values {
		if i > 0 {
			b = append(b, ',')
		}
		if v == "" || strings.ContainsAny(v, `,()"\`) {
			v = `"` + quoter.Replace(v) + `"`
		}
		b = appendEscaped(b, v)
	}
	return append(b, ')')
}

var quoter = strings.NewReplacer(`"`, `\"`, `\`, `\\`)

// appendEscaped percent-encodes what could be taken for something else in a URL's
// query. The characters of lists and times stay as they are.
func appendEscaped(b []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.~:(),", c) >= 0 {
			b = append(b, c)
		} else {
			b = append(b, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		}
	}
	return b
}

// Key returns what is the same for equal subscriptions and different for others:
// every part with its length before it, so that no part can look like two.
func (s Subscription) Key() string {
	b := appendPart(nil, s.Topic)
	for _, c := range s.Conditions {
		b = appendPart(b, c.Column)
		if c.Not {
			b = append(b, '!')
		}
		b = appendPart(b, string(c.Operator))
		b = append(strconv.AppendInt(b, int64(len(c.Values)), 10), '#')
		for _, v := range c.Values {
			b = appendPart(b, v)
		}
	}
	return string(b)
}

func appendPart(b []byte, part string) []byte {
	return append(append(strconv.AppendInt(b, int64(len(part)), 10), ':'), part...)
}

// canonical puts values and conditions in order and takes each once.
func (s *Subscription) canonical() {
	for i := range s.Conditions {
		c := &s.Conditions[i]
		slices.Sort(c.Values)
		c.Values = slices.Compact(c.Values)
	}
	slices.SortFunc(s.Conditions, Condition.compare)
	s.Conditions = slices.CompactFunc(s.Conditions, func(a, b Condition) bool { return a.compare(b) == 0 })
}

func (c Condition) compare(other Condition) int {
	not := func(c Condition) int {
		if c.Not {
			return 1
		}
		return 0
	}
	return cmp.Or(
		strings.Compare(c.Column, other.Column), cmp.Compare(not(c), not(other)),
		strings.Compare(string(c.Operator), string(other.Operator)), slices.Compare(c.Values, other.Values))
}
