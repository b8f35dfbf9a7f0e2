package pgbus

import "github.com/trumpet-realtime/trumpet"

// historyLength is how many records a deliverer remembers the ids of, 16 bytes each. A log that lost
// more than that is given anew from its recent end.
const historyLength = 65_536

// history remembers the ids of the newest records, whose positions are contiguous. The ordinal is
// that of a record's last event.
type history struct {
	ids   []trumpet.EventID // a ring once it is full
	first int               // index of the oldest
}

// reset forgets all but one id.
func (h *history) reset(id trumpet.EventID) {
	h.ids, h.first = append(h.ids[:0], id), 0
}

// add takes the next record's id.
func (h *history) add(id trumpet.EventID) {
	if len(h.ids) < historyLength {
		h.ids = append(h.ids, id)
		return
	}
	h.ids[h.first] = id
	h.first = (h.first + 1) % historyLength
}

// at returns the i-th oldest id.
func (h *history) at(i int) trumpet.EventID { return h.ids[(h.first+i)%len(h.ids)] }

// find returns the id that stands at a position, if it is remembered.
func (h *history) find(position int64) (trumpet.EventID, bool) {
	if len(h.ids) == 0 {
		return trumpet.EventID{}, false
	}
	i := position - h.at(0).Position
	if i < 0 || i >= int64(len(h.ids)) {
		return trumpet.EventID{}, false
	}
	return h.at(int(i)), true
}

// rewind forgets what is newer than a position.
func (h *history) rewind(position int64) {
	kept := make([]trumpet.EventID, 0, len(h.ids))
	for i := range h.ids {
		if id := h.at(i); id.Position <= position {
			kept = append(kept, id)
		}
	}
	h.ids, h.first = kept, 0
}

// columns returns the positions and tags, oldest first, as Postgres takes them.
func (h *history) columns() (positions []int64, tags []int32) {
	for i := range h.ids {
		id := h.at(i)
		positions, tags = append(positions, id.Position), append(tags, int32(id.Tag))
	}
	return positions, tags
}
