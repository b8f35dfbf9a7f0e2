package trumpet

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// EventID is an event's place in the log, the same on every worker. Clients
// treat its text, "<position>.<ordinal>-<tag>", as opaque.
type EventID struct {
	// Position is the record's place in the log: 1, 2, 3, …. Position 0 stands
	// for the beginning of a log in which nothing was recorded yet.
	Position int64
	// Ordinal is the event's place within its record, from 0.
	Ordinal int32
	// Tag is random for each position. A position that fail-over or a crash
	// caused to be assigned twice is recognised by it.
	Tag uint32
}

// errEventID is wrapped by every error of ParseEventID.
var errEventID = errors.New("not an event id, which looks like 8431.0-5f3a09c1")

// maxEventIDLength is what the largest id takes: 19 + 1 + 10 + 1 + 8 characters.
const maxEventIDLength = 39

// IsZero reports whether id names no event: that of a raw NOTIFY, or a client
// that has seen nothing yet.
func (id EventID) IsZero() bool { return id == EventID{} }

// Compare orders ids by position, then ordinal: negative if id comes before
// other. Tags do not order: two ids that differ only there belong to different
// histories of one log.
func (id EventID) Compare(other EventID) int {
	if c := cmp.Compare(id.Position, other.Position); c != 0 {
		return c
	}
	return cmp.Compare(id.Ordinal, other.Ordinal)
}

// String gives the id as clients see it.
func (id EventID) String() string {
	return string(id.AppendText(make([]byte, 0, maxEventIDLength)))
}

// AppendText appends what String gives to b.
func (id EventID) AppendText(b []byte) []byte {
	b = strconv.AppendInt(b, id.Position, 10)
	b = append(b, '.')
	b = strconv.AppendInt(b, int64(id.Ordinal), 10)
	b = append(b, '-')
	for shift := 28; shift >= 0; shift -= 4 {
		b = append(b, "0123456789abcdef"[id.Tag>>shift&0xf])
	}
	return b
}

// ParseEventID reads what String gives. It takes nothing else: an id that was
// shortened, padded or changed in case is not one that a worker sent.
func ParseEventID(s string) (EventID, error) {
	fail := func() (EventID, error) {
		if len(s) > maxEventIDLength {
			s = s[:maxEventIDLength] + "…"
		}
		return EventID{}, fmt.Errorf("%q is %w", s, errEventID)
	}
	if len(s) > maxEventIDLength {
		return fail()
	}
	position, rest, ok := strings.Cut(s, ".")
	if !ok {
		return fail()
	}
	ordinal, tag, ok := strings.Cut(rest, "-")
	if !ok || len(tag) != 8 {
		return fail()
	}
	p, errP := strconv.ParseUint(position, 10, 64)
	o, errO := strconv.ParseUint(ordinal, 10, 31)
	t, errT := strconv.ParseUint(tag, 16, 32)
	if errP != nil || errO != nil || errT != nil || p > math.MaxInt64 {
		return fail()
	}
	id := EventID{Position: int64(p), Ordinal: int32(o), Tag: uint32(t)}
	if id.String() != s {
		return fail()
	}
	return id, nil
}
