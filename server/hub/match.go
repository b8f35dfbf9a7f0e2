package hub

import (
	"slices"
	"strconv"
	"strings"

	"github.com/trumpet-realtime/trumpet/server/wire"
)

// topicSet is what a group follows. It never changes.
type topicSet map[string]struct{}

func newTopicSet(topics []string) topicSet {
	set := make(topicSet, len(topics))
	for _, topic := range topics {
		set[topic] = struct{}{}
	}
	return set
}

// names returns the topics in order.
func (s topicSet) names() []string {
	names := make([]string, 0, len(s))
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// key names the group. Lengths keep different sets from having the same key, whatever
// characters names may hold one day.
func (s topicSet) key(format wire.Format) string {
	var b strings.Builder
	b.WriteByte('0' + byte(format))
	for _, name := range s.names() {
		b.WriteByte(' ')
		b.WriteString(strconv.Itoa(len(name)))
		b.WriteByte(':')
		b.WriteString(name)
	}
	return b.String()
}

// reader says who reads: what it follows, and how it is spoken to.
type reader struct {
	format wire.Format
	topics topicSet
}

func (r *reader) wants(e *entry) bool {
	if e.event == nil {
		return e.notice != voidNotice
	}
	_, ok := r.topics[e.event.Topic]
	return ok
}

// each calls emit with the bytes of every entry from index from on that the reader wants,
// in order, until it returns false. All but the last that the reader sees of a
// transaction are encoded with more. replay leaves out what was only for those present.
func (r *reader) each(entries []entry, from int, replay bool, emit func(b []byte, index int) bool) bool {
	last := -1 // wanted, but it is not known yet whether more of its transaction follows
	for i := from; i < len(entries); i++ {
		e := &entries[i]
		if r.wants(e) && !(replay && e.live()) {
			if last >= 0 && !emit(entries[last].encode(r.format, true), last) {
				return false
			}
			last = i
		}
		if last >= 0 && !e.more() {
			if !emit(entries[last].encode(r.format, false), last) {
				return false
			}
			last = -1
		}
	}
	// The list's nodes end transactions; if one did not, its end would be unknown.
	return last < 0 || emit(entries[last].encode(r.format, false), last)
}
