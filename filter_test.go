package trumpet_test

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet"
)

func TestParseSubscription(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, canonical string }{
		{"jobs", "jobs"},
		{"jobs?", "jobs"},
		{"jobs?&", "jobs"},
		{"100%", "100%"},
		{"jobs?status=eq.open", "jobs?status=eq.open"},
		{"jobs?status=eq.open&priority=not.in.(2,1,2)&status=eq.open", "jobs?priority=not.in.(1,2)&status=eq.open"},
		{"jobs?priority=gt.1&priority=lte.5", "jobs?priority=gt.1&priority=lte.5"},
		{"jobs?status=eq.", "jobs?status=eq."},
		{"jobs?status=eq.a.b", "jobs?status=eq.a.b"},
		{"jobs?status=eq.not.x", "jobs?status=eq.not.x"},
		{"jobs?status=not.is.NULL", "jobs?status=not.is.null"},
		{"jobs?status=eq.a=b?c", "jobs?status=eq.a%3Db%3Fc"},
		{"jobs?status=eq.a+b%2Bc%26d", "jobs?status=eq.a%20b%2Bc%26d"},
		{"jobs?stra%C3%9Fe=eq.K%c3%b6ln", "jobs?stra%C3%9Fe=eq.K%C3%B6ln"},
		{"jobs?straße=eq.Köln", "jobs?stra%C3%9Fe=eq.K%C3%B6ln"},
		{"jobs?a%3Db=eq.1", "jobs?a%3Db=eq.1"},
		{`jobs?status=in.("a,b",c d,"q\"\\",e)`, "jobs?status=in.(%22a,b%22,c%20d,e,%22q%5C%22%5C%5C%22)"},
		{`jobs?status=in.("")`, "jobs?status=in.(%22%22)"},
		{`jobs?status=in.("a\b")`, "jobs?status=in.(ab)"},
		{"jobs?at=gte.2026-11-26T12:00:00%2B01:00", "jobs?at=gte.2026-11-26T12:00:00%2B01:00"},
	} {
		s, err := trumpet.ParseSubscription(c.text)
		if err != nil || s.String() != c.canonical {
			t.Errorf("%s: got %s, %v; want %s", c.text, s, err, c.canonical)
		}
	}
}

func TestParseSubscriptionRefuses(t *testing.T) {
	t.Parallel()
	many := "jobs?a=eq.0"
	for range trumpet.MaxConditions {
		many += "&a=eq.0"
	}
	for _, c := range []struct{ text, why string }{
		{"", "cannot be empty"},
		{"a b?x=eq.1", "contains"},
		{"a,b?x=eq.1", "contains"},
		{"jobs?status", "has no ="},
		{"jobs?=eq.1", "names no column"},
		{"jobs?status=open", "eq, neq, lt"},
		{"jobs?status=eq", "eq, neq, lt"},
		{"jobs?status=EQ.open", "eq, neq, lt"},
		{"jobs?status=like.open", "eq, neq, lt"},
		{"jobs?status=not.open", "eq, neq, lt"},
		{"jobs?status=not.not.eq.1", "eq, neq, lt"},
		{"jobs?status=is.open", "null, true, false or unknown"},
		{"jobs?status=in.a,b", "parentheses"},
		{"jobs?status=in.(", "parentheses"},
		{"jobs?status=in.()", "empty"},
		{"jobs?status=in.(a,)", "missing"},
		{"jobs?status=in.(,a)", "missing"},
		{`jobs?status=in.("a)`, "not closed"},
		{`jobs?status=in.("a\")`, "not closed"},
		{`jobs?status=in.("a"b)`, "comma"},
		{`jobs?status=in.(a"b)`, "double quotes"},
		{"jobs?status=in.((a))", "double quotes"},
		{"jobs?status=eq.100%", "%25"},
		{"jobs?status=eq.%zz", "%25"},
		{"jobs?status=eq.%ff", "UTF-8"},
		{"jobs?status=eq.\xff", "UTF-8"},
		{"jobs?status=eq.%00", "UTF-8"},
		{many, "more than 32"},
		{"jobs?a=eq." + strings.Repeat("x", trumpet.MaxFilterBytes), "4096 are allowed"},
		{"jobs?a=eq." + strings.Repeat("ä", trumpet.MaxFilterBytes/4), "4096 are allowed"},
		{"jobs?a=eq." + strings.Repeat("x", 1<<20), "4096 are allowed"},
	} {
		s, err := trumpet.ParseSubscription(c.text)
		var refusal *trumpet.Refusal
		if !errors.As(err, &refusal) || !errors.Is(err, trumpet.ErrFilter) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%.60q was read as %.60q, %v; want an error with %q", c.text, s, err, c.why)
		} else if len(err.Error()) > 400 || !utf8.ValidString(err.Error()) {
			t.Errorf("%.60q: the error is %q", c.text, err)
		}
	}
}

// What was parsed is written so that it is parsed again as the same, within the bounds; and its key is
// its own.
func FuzzParseSubscription(f *testing.F) {
	for _, text := range []string{
		"jobs", "jobs?status=eq.open&priority=not.in.(1,2)", `a?b=in.("a,b","\"\\",c)`, "a?b=is.null&b=not.is.unknown", "a?%61=eq.+%2b", "a?b=eq.%00",
		"a?b=in.(\"\")", "a?b=in.(+)", "a?=&&==", "100%?x=neq.%25", "a?b=eq.1&b=eq.1&a=lt.2", "a?b=in.(x,not.y,)", "a?b=not.eq.not.eq.x",
	} {
		f.Add(text, "jobs?status=eq.open")
	}
	f.Fuzz(func(t *testing.T, text, other string) {
		a, err := trumpet.ParseSubscription(text)
		if err != nil {
			if !utf8.ValidString(err.Error()) || len(err.Error()) > 1500 {
				t.Errorf("the error is %q", err)
			}
			return
		}
		again, err := trumpet.ParseSubscription(a.String())
		if err != nil || again.Key() != a.Key() || again.String() != a.String() {
			t.Errorf("%q became %q and then %q, %v", text, a, again, err)
		}
		if len(a.Conditions) > trumpet.MaxConditions || len(a.String()) > len(a.Topic)+1+trumpet.MaxFilterBytes {
			t.Errorf("%q is beyond the bounds", text)
		}
		if b, err := trumpet.ParseSubscription(other); err == nil && (a.Key() == b.Key()) != (a.String() == b.String()) {
			t.Errorf("keys %q and %q of %q and %q", a.Key(), b.Key(), a, b)
		}
	})
}

// Any condition, written and parsed, is the same, whatever is in its column and values.
func TestConditionsComeBackAsTheyWent(t *testing.T) {
	t.Parallel()
	text := rapid.StringOfN(rapid.RuneFrom([]rune("ab.,()\"\\ %+&=?#:ä😀\n")), 1, 8, -1)
	rapid.Check(t, func(t *rapid.T) {
		c := trumpet.Condition{
			Column: text.Draw(t, "column"), Not: rapid.Bool().Draw(t, "not"), Operator: rapid.SampledFrom(trumpet.Operators).Draw(t, "operator"),
		}
		switch c.Operator {
		case trumpet.In:
			c.Values = rapid.SliceOfN(text, 1, 5).Draw(t, "values")
		case trumpet.Is:
			c.Values = []string{"null"}
		default:
			c.Values = []string{rapid.OneOf(text, rapid.Just("")).Draw(t, "value")}
		}
		s, err := trumpet.ParseSubscription("t?" + c.String())
		if err != nil {
			t.Fatal(err)
		}
		got := s.Conditions[0]
		if got.Column != c.Column || got.Not != c.Not || got.Operator != c.Operator {
			t.Fatalf("%q came back as %q", c, got)
		}
		for _, v := range c.Values {
			found := false
			for _, w := range got.Values {
				found = found || v == w
			}
			if !found {
				t.Fatalf("%q lost %q: %q", c, v, got.Values)
			}
		}
	})
}

func TestKeysDoNotMistakeOnePartForTwo(t *testing.T) {
	t.Parallel()
	seen := make(map[string]trumpet.Subscription)
	for _, conditions := range [][]trumpet.Condition{
		nil,
		{{Column: "a", Operator: trumpet.Eq, Values: []string{"1"}}},
		{{Column: "a", Operator: trumpet.In, Values: []string{"1"}}},
		{{Column: "a", Operator: trumpet.In, Values: []string{"1", "2"}}},
		{{Column: "a", Operator: trumpet.In, Values: []string{"1,2"}}},
		{{Column: "a", Operator: trumpet.In, Values: []string{"11:2"}}},
		{{Column: "a", Operator: trumpet.In, Values: []string{"1", "1:2"}}},
		{{Column: "a", Not: true, Operator: trumpet.Eq, Values: []string{"1"}}},
		{{Column: "a!", Operator: trumpet.Eq, Values: []string{"1"}}},
		{{Column: "a", Operator: trumpet.Eq, Values: []string{"1"}}, {Column: "b", Operator: trumpet.Eq, Values: []string{"1"}}},
		{{Column: "a", Operator: trumpet.Eq, Values: []string{"11:b2:eq1#1:1"}}},
	} {
		s := trumpet.Subscription{Topic: "t", Conditions: conditions}
		if other, ok := seen[s.Key()]; ok {
			t.Errorf("%q is the key of %+v and %+v", s.Key(), s, other)
		}
		seen[s.Key()] = s
	}
}
