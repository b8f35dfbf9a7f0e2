package hub

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// Interest is one subscription, ready to be matched.
type Interest struct {
	Subscription trumpet.Subscription
	// Matcher is nil where the subscription has no conditions.
	Matcher *trumpet.Matcher
}

// Change is what a client asks for on a connection that it has: subscriptions to be added,
// or to be removed.
type Change struct {
	// Ref is the client's own name of this request, a JSON value; it comes back in the answer.
	Ref         json.RawMessage
	Unsubscribe bool
	// Snapshot: give the rows of the topics concerned first.
	Snapshot  bool
	Interests []Interest

	refusal string     // what to answer, and nothing else
	applied chan error // the shard's answer
}

// filter is an interest with conditions. All that have equal conditions on one topic hold
// the same one within a shard.
type filter struct {
	key     string
	matcher *trumpet.Matcher
}

// view is what one who follows a topic sees of it: everything, or the rows that any of its
// filters takes.
type view struct {
	whole   bool
	filters []filter
}

// interests is what a group follows. It never changes.
type interests struct {
	list  []Interest // in the order of their names, each once
	names []string
	views map[string]*view // by topic
}

func newInterests(list []Interest) *interests {
	named := make(map[string]Interest, len(list))
	for _, interest := range list {
		named[interest.Subscription.String()] = interest
	}
	in := &interests{views: make(map[string]*view)}
	for name := range named {
		in.names = append(in.names, name)
	}
	slices.Sort(in.names)
	for _, name := range in.names {
		interest := named[name]
		in.list = append(in.list, interest)
		topic := interest.Subscription.Topic
		v := in.views[topic]
		if v == nil {
			v = new(view)
			in.views[topic] = v
		}
		if interest.Matcher == nil {
			v.whole = true
			continue
		}
		v.filters = append(v.filters, filter{filterKey(interest.Matcher), interest.Matcher})
	}
	return in
}

// filterKey names a filter: by its conditions, and the types of their columns, because after
// a change of the table the same words may mean something else. Lengths keep different filters
// from having the same key, whatever characters names hold.
func filterKey(m *trumpet.Matcher) string {
	var b strings.Builder
	part(&b, m.Subscription().Key())
	table := m.Table()
	for _, condition := range m.Subscription().Conditions {
		for i := range table.Columns {
			if table.Columns[i].Name == condition.Column {
				part(&b, table.Columns[i].Type)
			}
		}
	}
	return b.String()
}

func part(b *strings.Builder, text string) {
	b.WriteString(strconv.Itoa(len(text)))
	b.WriteByte(':')
	b.WriteString(text)
}

// key names the group.
func (in *interests) key(format wire.Format) string {
	var b strings.Builder
	b.WriteByte('0' + byte(format))
	for i := range in.list {
		if m := in.list[i].Matcher; m != nil {
			part(&b, filterKey(m))
		} else {
			part(&b, in.list[i].Subscription.Key())
		}
	}
	return b.String()
}

// change returns the interests that a client's wish makes of these.
func (in *interests) change(what *Change) (*interests, error) {
	list := slices.Clone(in.list)
	for i, interest := range what.Interests {
		// Removed and added, because what is newer was compiled against what the table is now.
		name := what.Interests[i].Subscription.String()
		list = slices.DeleteFunc(list, func(held Interest) bool { return held.Subscription.String() == name })
		if !what.Unsubscribe {
			list = append(list, interest)
		}
	}
	if len(list) > wire.MaxTopics {
		return in, fmt.Errorf("a connection has at most %d topics", wire.MaxTopics)
	}
	return newInterests(list), nil
}

// variant is how a reader is told of an event.
type variant uint8

const (
	whole     variant = iota // as it is
	enter                    // an update that moved the row into the view
	leave                    // and out of it
	anonymous                // without its id: it is given out of its place
	variants
)

var wireVariants = [variants]wire.Variant{whole: wire.Whole, enter: wire.Enter, leave: wire.Leave}

// glance matches events against views. It is one goroutine's, and reused.
type glance struct {
	new, old trumpet.Row
	gone     bool // a column that a filter needs is not in the row
}

// truth asks one filter, and notes whether it cannot answer.
func (g *glance) truth(m *trumpet.Matcher, row *trumpet.Row) bool {
	t := m.Match(row)
	g.gone = g.gone || t == trumpet.Gone
	return t == trumpet.True
}

// rows reads the rows before and after an event's change, and reports whether it has such.
func (g *glance) rows(e *trumpet.Event) (hasOld, hasNew bool) {
	switch e.Op {
	case trumpet.OpInsert:
		hasNew = g.new.Parse(e.New) == nil
	case trumpet.OpDelete:
		hasOld = g.old.Parse(e.Old) == nil
	case trumpet.OpUpdate:
		hasNew = g.new.Parse(e.New) == nil
		if e.Known != nil {
			hasOld = hasNew && g.old.Parse(e.Known) == nil // other columns are gone, as filters see it
		} else {
			hasOld = hasNew && g.old.ParseOver(e.New, e.Old) == nil
		}
	}
	return hasOld, hasNew
}

// sees reports whether and how a reader is told of an event.
func (v *view) sees(g *glance, e *trumpet.Event) (variant, bool) {
	if v.whole {
		return whole, true
	}
	hasOld, hasNew := g.rows(e)
	if !hasOld && !hasNew {
		return whole, true // it concerns all rows, or none: truncate, bulk, a broadcast
	}
	before, after := false, false
	for i := range v.filters {
		m := v.filters[i].matcher
		before = before || hasOld && g.truth(m, &g.old)
		after = after || hasNew && g.truth(m, &g.new)
	}
	return moved(e, before, after)
}

// moved returns how one is told of an event whose row was in the view before, or is after it.
func moved(e *trumpet.Event, before, after bool) (variant, bool) {
	switch {
	case e.Op != trumpet.OpUpdate, before && after:
		return whole, before || after
	case after:
		return enter, true
	default:
		return leave, before
	}
}

// reader says who reads: what it follows, and how it is spoken to.
type reader struct {
	format wire.Format
	*interests
}

func (r *reader) wants(g *glance, e *entry) (variant, bool) {
	if e.event == nil {
		return whole, e.notice != voidNotice
	}
	v := r.views[e.event.Topic]
	if v == nil {
		return whole, false
	}
	return v.sees(g, e.event)
}

// each calls emit with the bytes of every entry from index from on that the reader wants,
// in order, until it returns false, or until an event lacks a column that a filter needs: then
// the glance says so. All but the last that the reader sees of a transaction are encoded with
// more. replay leaves out what was only for those present.
func (r *reader) each(g *glance, entries []entry, from int, replay bool, emit func(b []byte, index int) bool) bool {
	g.gone = false
	last, how := -1, whole // wanted, but it is not known yet whether more of its transaction follows
	for i := from; i < len(entries); i++ {
		e := &entries[i]
		if !replay || !e.live() {
			wanted, ok := r.wants(g, e)
			if g.gone {
				return false
			}
			if ok {
				if last >= 0 && !emit(entries[last].encode(r.format, how, true), last) {
					return false
				}
				last, how = i, wanted
			}
		}
		if last >= 0 && !e.more() {
			if !emit(entries[last].encode(r.format, how, false), last) {
				return false
			}
			last = -1
		}
	}
	// The list's nodes end transactions; if one did not, its end would be unknown.
	return last < 0 || emit(entries[last].encode(r.format, how, false), last)
}
