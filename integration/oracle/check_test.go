package oracle

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet"
)

// drawTruth makes a log, and what a client of some of its topics gets from a point on.
func drawTruth(t *rapid.T) (*truth, *stretch, trumpet.EventID) {
	log := &truth{places: []place{{tag: 7}}}
	topics := []string{"a", "b", "c"}
	ops := []trumpet.Op{trumpet.OpInsert, trumpet.OpUpdate, trumpet.OpDelete, trumpet.OpTruncate}
	follows := interest{"a": everything, "b": rapid.SampledFrom([]uint64{1, 2, 3}).Draw(t, "filters")}
	for xid := range rapid.IntRange(2, 12).Draw(t, "transactions") {
		for range rapid.IntRange(1, 3).Draw(t, "records") {
			position := int64(len(log.places))
			p := place{tag: rapid.Uint32().Draw(t, "tag"), last: rapid.Int32Range(0, 2).Draw(t, "last")}
			log.places = append(log.places, p)
			topic := rapid.SampledFrom(topics).Draw(t, "topic")
			op := rapid.SampledFrom(ops).Draw(t, "op")
			for ordinal := range p.last + 1 {
				id := trumpet.EventID{Position: position, Ordinal: ordinal, Tag: p.tag}
				log.events = append(log.events, logged{
					id: id, topic: topic, op: op, xid: fmt.Sprint(xid), sum: sum(rapid.Uint64().Draw(t, "sum")), before: sum(rapid.Uint64().Draw(t, "before")),
					was: rapid.Uint64Range(0, 7).Draw(t, "was"), is: rapid.Uint64Range(0, 7).Draw(t, "is"),
				})
			}
		}
	}
	begin := rapid.IntRange(0, len(log.places)-1).Draw(t, "begin")
	s := &stretch{after: trumpet.EventID{Position: int64(begin), Ordinal: log.places[begin].last, Tag: log.places[begin].tag}, follows: follows}
	var want []expected
	for _, e := range log.after(s.after) {
		if op, content, ok := follows.sees(&e); ok {
			want = append(want, expected{e, op, content})
		}
	}
	for i, e := range want {
		s.got = append(s.got, received{e.id, e.content, e.topic, e.op, i+1 < len(want) && want[i+1].xid == e.xid})
		if rapid.Bool().Draw(t, "ping") {
			s.claims = append(s.claims, claim{len(s.got), e.id, "a ping"})
		}
	}
	return log, s, log.events[len(log.events)-1].id
}

// What a client got is found to be right exactly if it is.
func TestCheckFindsEachCorruption(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		log, s, until := drawTruth(t)
		if b := log.check(s, until); b != nil {
			t.Fatalf("nothing was corrupted: %v", b)
		}
		if len(s.got) == 0 {
			return
		}
		i := rapid.IntRange(0, len(s.got)-1).Draw(t, "i")
		corruption := rapid.SampledFrom([]string{"dropped", "doubled", "swapped", "leaked", "changed", "more", "tag", "claimed", "began", "op"}).Draw(t, "corruption")
		switch got := s.got[i]; corruption {
		case "dropped":
			s.got = append(s.got[:i:i], s.got[i+1:]...)
		case "doubled":
			s.got = append(s.got[:i+1:i+1], s.got[i:]...)
		case "swapped":
			if i == 0 {
				return
			}
			s.got[i], s.got[i-1] = s.got[i-1], got
		case "leaked":
			got.id.Ordinal += 100
			s.got = append(s.got[:i+1:i+1], append([]received{got}, s.got[i+1:]...)...)
		case "changed":
			s.got[i].sum++
		case "more":
			s.got[i].more = !got.more
		case "tag":
			s.got[i].id.Tag++
		case "claimed":
			s.claims = append(s.claims, claim{i, got.id, "a ping"})
		case "op":
			s.got[i].op = map[bool]trumpet.Op{true: trumpet.OpEnter, false: trumpet.OpUpdate}[got.op != trumpet.OpEnter]
			if s.got[i].op == got.op {
				return
			}
		case "began":
			s.after.Tag++
		}
		if b := log.check(s, until); b == nil {
			t.Fatalf("event %d was %s, and nothing was found", i, corruption)
		}
	})
}

func TestViewDiffers(t *testing.T) {
	t.Parallel()
	table := view{"1": 10, "2": 20}
	for _, test := range []struct {
		mine view
		same bool
	}{
		{view{"1": 10, "2": 20}, true},
		{view{"1": 10}, false},
		{view{"1": 10, "2": 21}, false},
		{view{"1": 10, "2": 20, "3": 30}, false},
	} {
		if difference := test.mine.differs(table); (difference == "") != test.same {
			t.Errorf("%v and %v: %q", test.mine, table, difference)
		}
	}
}
