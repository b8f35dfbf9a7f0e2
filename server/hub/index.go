package hub

import (
	"slices"

	"github.com/trumpet-realtime/trumpet"
)

// index finds the groups of a shard that see an event. Filters that demand a value of a
// column are found by it; all others of the event's topic are asked one by one. Filters that
// are equal are asked once, however many groups have them.
type index struct {
	topics map[string]*topicIndex

	// What the event at hand has found; reused.
	glance  glance
	value   []byte
	found   []*indexed
	touched []*group
	entry   uint64 // counts events: marks what was seen for this one

	// picked are the groups that see something of the batch at hand, or must end. Reused.
	picked []*group
}

// topicIndex is what a shard's groups want of one topic.
type topicIndex struct {
	whole   []*group // they see everything
	filters map[string]*indexed
	equal   map[string]*byValue // by column
	scan    []*indexed
}

// byValue are the filters that demand one of some values of a column.
type byValue struct {
	matcher *trumpet.Matcher // any of them: it knows how a row's value is spelled as a key
	filters map[string][]*indexed
	count   int
}

// indexed is a filter with the groups that have it.
type indexed struct {
	filter
	groups []*group
	entry  uint64 // the event that the rest is about
	before bool
	after  bool
}

func newIndex() index { return index{topics: make(map[string]*topicIndex)} }

// add puts a group into the index.
func (x *index) add(g *group) {
	for topic, v := range g.reader.views {
		t := x.topics[topic]
		if t == nil {
			t = &topicIndex{filters: make(map[string]*indexed), equal: make(map[string]*byValue)}
			x.topics[topic] = t
		}
		if v.whole {
			t.whole = append(t.whole, g)
			continue
		}
		for _, f := range v.filters {
			held := t.filters[f.key]
			if held == nil {
				held = &indexed{filter: f}
				t.filters[f.key] = held
				t.insert(held)
			}
			held.groups = append(held.groups, g)
		}
	}
}

// remove takes a group out of the index.
func (x *index) remove(g *group) {
	for topic, v := range g.reader.views {
		t := x.topics[topic]
		if v.whole {
			t.whole = without(t.whole, g)
		}
		for _, f := range v.filters {
			if v.whole {
				break
			}
			held := t.filters[f.key]
			held.groups = without(held.groups, g)
			if len(held.groups) == 0 {
				delete(t.filters, f.key)
				t.drop(held)
			}
		}
		if len(t.whole) == 0 && len(t.filters) == 0 {
			delete(x.topics, topic)
		}
	}
}

// without removes one element, if it is there, and does not keep the order.
func without[T comparable](all []T, one T) []T {
	i := slices.Index(all, one)
	if i < 0 {
		return all
	}
	last := len(all) - 1
	all[i] = all[last]
	clear(all[last:])
	return all[:last]
}

// insert files a filter where events find it.
func (t *topicIndex) insert(f *indexed) {
	column, values, ok := f.matcher.Equality()
	if !ok {
		t.scan = append(t.scan, f)
		return
	}
	c := t.equal[column]
	if c == nil {
		c = &byValue{matcher: f.matcher, filters: make(map[string][]*indexed)}
		t.equal[column] = c
	}
	c.count++
	for _, value := range values {
		c.filters[value] = append(c.filters[value], f)
	}
}

func (t *topicIndex) drop(f *indexed) {
	column, values, ok := f.matcher.Equality()
	if !ok {
		t.scan = without(t.scan, f)
		return
	}
	c := t.equal[column]
	for _, value := range values {
		if left := without(c.filters[value], f); len(left) > 0 {
			c.filters[value] = left
		} else {
			delete(c.filters, value)
		}
	}
	if c.count--; c.count == 0 {
		delete(t.equal, column)
	}
}

// pick finds the groups that see the entry, and gives them a pick of it.
func (x *index) pick(n *node, at int, transaction int) {
	e := n.entries[at].event
	t := x.topics[e.Topic]
	if t == nil {
		return
	}
	for _, g := range t.whole {
		x.give(g, n, at, transaction, whole)
	}
	if len(t.filters) == 0 {
		return
	}
	x.entry++
	x.found = x.found[:0]
	hasOld, hasNew := x.glance.rows(e)
	if !hasOld && !hasNew {
		for _, f := range t.filters {
			f.entry, f.before, f.after = x.entry, true, true
			x.found = append(x.found, f)
		}
	}
	if hasOld {
		x.ask(t, &x.glance.old, false, transaction)
	}
	if hasNew {
		x.ask(t, &x.glance.new, true, transaction)
	}
	for _, f := range x.found {
		for _, g := range f.groups {
			if g.entry != x.entry {
				g.entry, g.before, g.after = x.entry, false, false
				x.touched = append(x.touched, g)
			}
			g.before, g.after = g.before || f.before, g.after || f.after
		}
	}
	for _, g := range x.touched {
		if how, ok := moved(e, g.before, g.after); ok {
			x.give(g, n, at, transaction, how)
		}
	}
	x.touched = x.touched[:0]
}

// ask asks all filters that may take a row.
func (x *index) ask(t *topicIndex, row *trumpet.Row, after bool, transaction int) {
	for _, c := range t.equal {
		value, truth := c.matcher.IndexKey(x.value[:0], row)
		x.value = value
		switch truth {
		case trumpet.True:
			for _, f := range c.filters[string(value)] {
				x.try(f, row, after, transaction)
			}
		case trumpet.Gone:
			for _, all := range c.filters {
				for _, f := range all {
					x.lose(f, transaction)
				}
			}
		}
	}
	for _, f := range t.scan {
		x.try(f, row, after, transaction)
	}
}

// try asks one filter.
func (x *index) try(f *indexed, row *trumpet.Row, after bool, transaction int) {
	switch f.matcher.Match(row) {
	case trumpet.Gone:
		x.lose(f, transaction)
	case trumpet.True:
		if f.entry != x.entry {
			f.entry, f.before, f.after = x.entry, false, false
			x.found = append(x.found, f)
		}
		if after {
			f.after = true
		} else {
			f.before = true
		}
	}
}

// lose notes that a filter's groups cannot be told any more what they see, from this
// transaction on.
func (x *index) lose(f *indexed, transaction int) {
	for _, g := range f.groups {
		if g.gone {
			continue
		}
		if len(g.picks) == 0 {
			x.picked = append(x.picked, g)
		}
		g.gone = true
		for n := len(g.picks); n > 0 && g.picks[n-1].transaction == transaction; n-- {
			g.picks = g.picks[:n-1]
		}
	}
}

// give gives a group a pick.
func (x *index) give(g *group, n *node, at, transaction int, how variant) {
	if g.gone {
		return
	}
	if len(g.picks) == 0 {
		x.picked = append(x.picked, g)
	}
	g.picks = append(g.picks, pick{n, at, transaction, how})
}
