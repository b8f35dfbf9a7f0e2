package oracle

import (
	"fmt"
	"strings"

	"github.com/trumpet-realtime/trumpet"
)

// filter is what a client may ask of a table, in the protocol's words and in SQL's. That both say the
// same is what is tested; so the second is written by hand.
type filter struct {
	topic, text, where string
	told               string // as workers repeat it, if otherwise
}

var filters = []filter{
	{topic: "jobs", text: "status=eq.open", where: "status = 'open'"},
	{topic: "jobs", text: "status=in.(new,on_site)", where: "status in ('new', 'on_site')"},
	{topic: "jobs", text: "priority=gte.1&priority=lt.3", where: "priority >= 1 and priority < 3"},
	{topic: "jobs", text: "customer_id=is.null&status=neq.done", where: "customer_id is null and status <> 'done'"},
	{topic: "jobs", text: "customer_id=not.is.null", where: "customer_id is not null"},
	{topic: "jobs", text: "customer_id=in.(1,2,30)", where: "customer_id in (1, 2, 30)"},
	{topic: "jobs", text: "status=not.in.(open,done)&price=gt.20.5", where: "status not in ('open', 'done') and price > 20.5"},
	{topic: "jobs", text: "amount=gt.100", where: "amount > 100"},                                        // so is NaN
	{topic: "jobs", text: "amount=not.lte.0.10", where: "not amount <= 0.1", told: "amount=not.lte.0.1"}, // null is neither
	{topic: "jobs", text: "amount=eq.NaN", where: "amount = 'NaN'"},
	{topic: "jobs", text: "note=is.null", where: "note is null"},
	{topic: "jobs", text: "id=gt.0", where: "id > 0"}, // a row may leave, and enter, by its key
	{topic: "jobs", text: "quoted%20%22name=gte.0.5", where: `"quoted ""name" >= 0.5`},
	{topic: "jobs", text: "updated_at=gt.2001-02-03T04%3A05%3A06Z&price=lte.50", where: "updated_at > '2001-02-03 04:05:06+00' and price <= 50",
		told: "price=lte.50&updated_at=gt.2001-02-03T04:05:06%2B00:00"},
	{topic: "jobs", text: "title=eq.nobody's&status=eq.open", where: "title = 'nobody''s' and status = 'open'"}, // no row
	{topic: "customers", text: "note=is.null", where: "note is null"},
	{topic: "customers", text: "note=not.is.null&id=lt.100", where: "note is not null and id < 100"},
	{topic: "customers", text: "name=gte.w1", where: `name collate "C" >= 'w1'`},
	{topic: "customers", text: "name=not.lt.old+3", where: `not name collate "C" < 'old 3'`},
}

// subscription is the filter as clients write it.
func (f filter) subscription() string { return f.topic + "?" + f.text }

// marks is an SQL expression over the columns of a table: which of the filters take a row, as bits.
func marks(topic string) string {
	terms := []string{"0::bigint"}
	for i, f := range filters {
		if f.topic == topic {
			terms = append(terms, fmt.Sprintf("case when %s then %d else 0 end", f.where, 1<<i))
		}
	}
	return strings.Join(terms, " + ")
}

// marksFunctions create a function for each table that tells which filters take a row of the log.
func marksFunctions() string {
	var b strings.Builder
	for table := range maxRows {
		fmt.Fprintf(&b, "create function marks_%s(item json) returns bigint language sql stable as $$ select %s from json_populate_record(null::%s, item) $$;\n",
			table, marks(table), table)
	}
	return b.String()
}

// everything is what one sees who has no filter.
const everything = ^uint64(0)

// interest is what somebody follows: of each topic everything, or what any of some filters takes. It never
// changes.
type interest map[string]uint64

// interestOf is what subscriptions ask for together.
func interestOf(subscriptions []string) interest {
	in := interest{}
	for _, text := range subscriptions {
		topic, condition, filtered := strings.Cut(text, "?")
		if !filtered {
			in[topic] = everything
		}
		for i, f := range filters {
			if f.topic == topic && f.text == condition {
				in[topic] |= 1 << i
			}
		}
	}
	return in
}

// sees is how one with this interest must be told of an event, or not at all.
func (in interest) sees(e *logged) (op trumpet.Op, content sum, ok bool) {
	mask, ok := in[e.topic]
	if !ok || mask == everything {
		return e.op, e.sum, ok
	}
	was, is := e.was&mask != 0, e.is&mask != 0
	switch e.op {
	case trumpet.OpInsert:
		return e.op, e.sum, is
	case trumpet.OpDelete:
		return e.op, e.sum, was
	case trumpet.OpUpdate:
		switch {
		case was && is:
			return e.op, e.sum, true
		case is:
			return trumpet.OpEnter, e.sum, true
		case was:
			return trumpet.OpLeave, e.before, true
		}
		return "", 0, false
	}
	return e.op, e.sum, true
}

// row is one of a table, as the database tells it: its content, and which filters take it.
type row struct {
	sum   sum
	marks uint64
}

// table is a whole one, by its rows' keys.
type table map[string]row

// seen is the view of it that one with such a mask must have.
func (t table) seen(mask uint64) view {
	v := make(view, len(t))
	for key, r := range t {
		if mask == everything || r.marks&mask != 0 {
			v[key] = r.sum
		}
	}
	return v
}
