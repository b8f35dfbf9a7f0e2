package server

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

func names(q query) []string {
	var out []string
	for _, s := range q.subscriptions {
		out = append(out, s.String())
	}
	return out
}

func TestParseQuery(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]query{
		"":                           {},
		"_=1234&topic=a":             {}, // not ours: ignored, as always
		"since=1.0-00000001&since=x": {since: "1.0-00000001"},
		"snapshot=1&snapshot=0":      {snapshot: true},
		"snapshot=true":              {snapshot: true},
		"snapshot=0":                 {},
		"%73ince=x":                  {since: "x"},
	} {
		got, err := parseQuery(raw)
		if err != nil || got.named || got.since != want.since || got.snapshot != want.snapshot {
			t.Errorf("%s: got %+v, %v", raw, got, err)
		}
	}
	for raw, want := range map[string][]string{
		"topics=jobs,customers,jobs":        {"jobs", "customers"},
		"topics=jobs&topics=customers":      {"jobs", "customers"},
		"topics=k%C3%A4se%2Cjobs&&since=x&": {"käse", "jobs"},
		// Encoded as a whole.
		"topics=jobs%3Fstatus%3Deq.open%26n%3Dgt.1": {"jobs?n=gt.1&status=eq.open"},
		"topics=a%2Cjobs%3Fstatus%3Deq.open":        {"a", "jobs?status=eq.open"},
		"topics=a,jobs%3fn%3din.%28%22x%2cy%22%29":  {"a", "jobs?n=in.(%22x,y%22)"},
		"topics=jobs%3Ftitle%3Deq.a%2526b%2520c":    {"jobs?title=eq.a%26b%20c"},
		"topics=jobs%3Fsince%3Deq.1&since=x":        {"jobs?since=eq.1"},
		// Not at all.
		"topics=jobs?status=eq.open&priority=gt.1&topics=customers&snapshot=1":     {"jobs?priority=gt.1&status=eq.open", "customers"},
		"topics=jobs?status=eq.open&snapshot=1&since=x&priority=gt.1":              {"jobs?priority=gt.1&status=eq.open"},
		"snapshot=1&topics=a,b,jobs?n=in.(1,2)&topics=jobs?n=not.is.null":          {"a", "b", "jobs?n=in.(1,2)", "jobs?n=not.is.null"},
		"topics=jobs?title=eq.a%26b%20c":                                           {"jobs?title=eq.a%26b%20c"},
		"topics=jobs?title=eq.what?":                                               {"jobs?title=eq.what%3F"},
		"topics=jobs?&status=eq.open":                                              {"jobs?status=eq.open"},
		"topics=jobs?status=eq.open&topics=jobs%3Fstatus%3Deq.open&topics=jobs?":   {"jobs?status=eq.open", "jobs"},
		"topics=jobs?a=eq.1&topics=jobs?b=eq.2&a=eq.3&topics=customers&_=1&topic=": {"jobs?a=eq.1", "jobs?a=eq.3&b=eq.2", "customers"},
	} {
		got, err := parseQuery(raw)
		if err != nil || !got.named || !slices.Equal(names(got), want) {
			t.Errorf("%s:\ngot  %q, %v\nwant %q", raw, names(got), err, want)
		}
	}
}

func TestParseQuerySaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	many := make([]string, wire.MaxTopics+1)
	for i := range many {
		many[i] = strings.Repeat("x", i%100+1) + string(rune('a'+i/100))
	}
	for raw, part := range map[string]string{
		"topics=":                                   "cannot be empty; give names separated by commas",
		"topics=a,,b":                               "cannot be empty",
		"topics=a&topics=":                          "cannot be empty",
		"topics=?a=eq.1":                            "cannot be empty",
		"topics=a%20b":                              "white space",
		"topics=" + strings.Join(many, ","):         "too many topics",
		"topics=%zz":                                "not percent-encoded",
		"topics=%zz?a=eq.1":                         "not percent-encoded",
		"topics=jobs?a=eq.%zz":                      "not percent-encoded",
		"topics=jobs&status=eq.open":                `"status" stands behind no topic with a filter`,
		"topics=jobs%3Fa%3Deq.1&status=not.is.null": `"status" stands behind no topic with a filter`,
		"topics=jobs?a=eq.1&topics=b&status=in.(1)": `"status" stands behind no topic with a filter`,
		"status=eq.open":                            `"status" stands behind no topic with a filter`,
		"topics=jobs?a=eq.1&since=eq.5":             "topics=jobs%3Fsince%3Deq.1",
		"topics=jobs?a=eq.1&snapshot=is.true":       "topics=jobs%3Fsnapshot%3Deq.1",
		"snapshot=yes":                              "snapshot is 1 or 0",
		"topics=jobs?status":                        "has no =",
		"topics=jobs?status=open":                   "one of the operators eq, neq",
		"topics=jobs?status=eq.open&_=1234":         "one of the operators",
		"topics=jobs?n=in.1":                        "parentheses",
	} {
		got, err := parseQuery(raw)
		if _, ok := errors.AsType[*trumpet.Refusal](err); !ok || !strings.Contains(err.Error(), part) {
			t.Errorf("%.80s: got %q, %v, want an error with %q", raw, names(got), err, part)
		}
	}
}

// Both spellings of any filter are read, and mean the same.
func FuzzParseQuery(f *testing.F) {
	f.Add("jobs?status=eq.open&priority=not.in.(1,2)", "topics=a&snapshot=1")
	f.Add("jobs?a%26=eq.%3F+b", "_=1")
	f.Fuzz(func(t *testing.T, text, rest string) {
		if _, err := parseQuery(rest); err != nil {
			if _, ok := errors.AsType[*trumpet.Refusal](err); !ok || len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("error %q", err)
			}
		}
		want, err := trumpet.ParseSubscription(text)
		if err != nil {
			return
		}
		topic, filter, _ := strings.Cut(want.String(), "?")
		spellings := []string{"topics=" + url.QueryEscape(text), "topics=" + url.QueryEscape(want.String())}
		if !slices.ContainsFunc(want.Conditions, func(c trumpet.Condition) bool {
			return slices.Contains([]string{"topics", "since", "snapshot"}, c.Column)
		}) {
			spellings = append(spellings, "snapshot=0&topics="+url.QueryEscape(topic)+"?"+filter+"&since=x")
		}
		for _, raw := range spellings {
			got, err := parseQuery(raw)
			if err != nil || len(got.subscriptions) != 1 || got.subscriptions[0].Key() != want.Key() {
				t.Errorf("%q of %q was read as %q, %v", raw, text, names(got), err)
			}
		}
	})
}
