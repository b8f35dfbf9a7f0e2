package server

import (
	"net/url"
	"slices"
	"strings"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// query is what a client asks for in a URL.
type query struct {
	named         bool // it names topics, and does not want the path's own
	subscriptions []trumpet.Subscription
	snapshot      bool
	since         string
}

// parseQuery reads topics, snapshot and since. Topics may occur many times; each value is names separated
// by commas, and the last of them may have a filter:
//
//	topics=jobs%3Fstatus%3Deq.open&topics=a,b     each value encoded as a whole
//	topics=jobs?status=eq.open&n=gt.1&topics=a,b  or not at all
//
// In the second spelling the & of the filter are also those of the query, so the order counts, which
// url.Values does not keep: what follows and is no parameter of ours is a further condition. Errors are
// written for who made the URL.
func parseQuery(raw string) (query, error) {
	var q query
	var values [][]byte // of topics; what stands behind the first ? is the last name's filter
	open := false       // the last value has a filter that goes on
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(raw, "&") {
		rawName, rawValue, _ := strings.Cut(part, "=")
		name, err := url.QueryUnescape(rawName)
		if err != nil {
			name = rawName
		}
		value, err := url.QueryUnescape(rawValue)
		ours := name == "topics" || name == "since" || name == "snapshot"
		switch {
		case part == "":
			continue
		case ours && err != nil:
			return q, trumpet.Refuse(trumpet.ErrFilter, "the value of %s is not percent-encoded; write %% as %%25", name)
		case name == "topics":
			names, filter, filtered := strings.Cut(rawValue, "?")
			if open = filtered; open {
				if names, err = url.QueryUnescape(names); err != nil {
					return q, trumpet.Refuse(trumpet.ErrFilter, "the value of topics is not percent-encoded; write %% as %%25")
				}
				value = names + "?" + filter
			}
			values = append(values, []byte(value))
		case ours && looksLikeCondition(value):
			return q, trumpet.Refuse(trumpet.ErrFilter,
				"%s is a parameter; to filter by a column of that name encode the whole topic, as in topics=jobs%%3F%s%%3Deq.1", name, name)
		case ours && seen[name]:
			continue // the first one counts
		case name == "since":
			q.since = value
		case name == "snapshot":
			switch value {
			case "1", "true":
				q.snapshot = true
			case "0", "false":
			default:
				return q, trumpet.Refuse(trumpet.ErrFilter, "snapshot is 1 or 0")
			}
		case open:
			last := &values[len(values)-1]
			*last = append(append(*last, '&'), part...)
		case looksLikeCondition(value):
			return q, trumpet.Refuse(trumpet.ErrFilter,
				"the condition on %q stands behind no topic with a filter; write topics=jobs?status=eq.open&priority=gt.1, or encode the whole topic", clip(name))
		}
		seen[name] = true
	}
	q.named = len(values) > 0
	return q, q.subscribe(values)
}

// subscribe reads the values of topics.
func (q *query) subscribe(values [][]byte) error {
	known := make(map[string]bool)
	for _, value := range values {
		names, filter, filtered := strings.Cut(string(value), "?")
		list := strings.Split(names, ",")
		for i, text := range list {
			if err := trumpet.ValidTopic(text); err != nil {
				return trumpet.Refuse(trumpet.ErrFilter, "%s; give names separated by commas, as in ?topics=jobs,customers", err)
			}
			if filtered && i == len(list)-1 {
				text += "?" + filter
			}
			subscription, err := trumpet.ParseSubscription(text)
			if err != nil {
				return err
			}
			if key := subscription.Key(); !known[key] {
				known[key] = true
				q.subscriptions = append(q.subscriptions, subscription)
			}
		}
	}
	if len(q.subscriptions) > wire.MaxTopics {
		return trumpet.Refuse(trumpet.ErrFilter, "too many topics; open several connections")
	}
	return nil
}

// looksLikeCondition reports whether a parameter's value was meant to be a filter's.
func looksLikeCondition(value string) bool {
	operator, _, ok := strings.Cut(strings.TrimPrefix(value, "not."), ".")
	return ok && slices.Contains(trumpet.Operators, trumpet.Operator(operator))
}

// clip keeps what a client wrote short where it is repeated.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// plain subscribes to all of some topics.
func plain(topics []string) []trumpet.Subscription {
	subscriptions := make([]trumpet.Subscription, len(topics))
	for i, topic := range topics {
		subscriptions[i].Topic = topic
	}
	return subscriptions
}
