package trumpet

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math"
	"strconv"
)

// value is one value of a column, in the shape in which it is compared. Which
// fields count depends on the kind.
type value struct {
	number decimal // KindNumber
	float  float64 // KindFloat, KindReal
	// ticks are days for KindDate, otherwise microseconds since 2000 or since
	// midnight, with the ends of the range for the infinities; 0 or 1 for KindBool.
	ticks int64
	text  []byte // KindText, KindChar, KindUUID, KindEnum
}

// compare orders two values of a kind as Postgres does.
func (v *value) compare(kind Kind, other *value) int {
	switch kind {
	case KindNumber:
		return v.number.compare(&other.number)
	case KindFloat, KindReal:
		c := cmp.Compare(v.float, other.float)
		if math.IsNaN(v.float) != math.IsNaN(other.float) {
			return -c // here NaN is greater than all else, in package cmp it is less
		}
		return c
	case KindBool, KindDate, KindTime, KindTimestamp, KindTimestampTZ:
		return cmp.Compare(v.ticks, other.ticks)
	default:
		return bytes.Compare(v.text, other.text)
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// appendIndex appends what is the same for equal values of a kind only.
func (v *value) appendIndex(dst []byte, kind Kind) []byte {
	switch kind {
	case KindNumber:
		return v.number.appendText(dst)
	case KindFloat, KindReal:
		f := v.float
		switch {
		case f == 0:
			f = 0 // not minus zero
		case math.IsNaN(f):
			f = math.NaN()
		}
		return binary.BigEndian.AppendUint64(dst, math.Float64bits(f))
	case KindBool, KindDate, KindTime, KindTimestamp, KindTimestampTZ:
		return binary.BigEndian.AppendUint64(dst, uint64(v.ticks))
	default:
		return append(dst, v.text...)
	}
}

// read finds out what the member's value is as one of the kind: Unknown for null,
// Gone for what Postgres does not write for that kind.
func (r *Row) read(m *member, kind Kind) Truth {
	if m.kind == kind && kind != KindOther {
		return m.truth
	}
	m.kind, m.truth = kind, Gone
	if isNull(m.raw) {
		m.truth = Unknown
		return Unknown
	}
	var ok bool
	switch kind {
	case KindNumber:
		text := m.raw
		if quoted, isString := unquoted(text); isString { // "NaN", "Infinity"
			m.value.number, ok = parseDecimalName(quoted)
		} else {
			m.value.number, ok = parseDecimal(text)
		}
	case KindFloat, KindReal:
		m.value.float, ok = readFloat(m.raw, kind)
	case KindBool:
		m.value.ticks, ok = int64(boolInt(m.raw[0] == 't')), string(m.raw) == "true" || string(m.raw) == "false"
	default:
		var text []byte
		if text, ok = r.string(m.raw); !ok {
			break
		}
		switch kind {
		case KindDate, KindTime, KindTimestamp, KindTimestampTZ:
			m.value.ticks, ok = parseTicks(text, kind)
		case KindChar:
			m.value.text = bytes.TrimRight(text, " ")
		default:
			m.value.text = text
		}
	}
	if ok {
		m.truth = True
	}
	return m.truth
}

func isNull(raw []byte) bool { return string(raw) == "null" }

// unquoted returns what is between the quotes of a JSON string, escapes and all.
func unquoted(raw []byte) (text []byte, ok bool) {
	if len(raw) < 2 || raw[0] != '"' || raw[len(raw)-1] != '"' {
		return nil, false
	}
	return raw[1 : len(raw)-1], true
}

// string returns the text of a JSON string.
func (r *Row) string(raw []byte) (text []byte, ok bool) {
	text, ok = unquoted(raw)
	if ok && bytes.IndexByte(text, '\\') >= 0 {
		text, ok = r.decode(text)
	}
	return text, ok
}

func readFloat(raw []byte, kind Kind) (f float64, ok bool) {
	if text, isString := unquoted(raw); isString {
		switch string(text) {
		case "NaN":
			return math.NaN(), true
		case "Infinity":
			return math.Inf(1), true
		case "-Infinity":
			return math.Inf(-1), true
		}
		return 0, false
	}
	f, err := strconv.ParseFloat(string(raw), floatBits(kind))
	return f, err == nil && (raw[0] == '-' || '0' <= raw[0] && raw[0] <= '9')
}

func floatBits(kind Kind) int {
	if kind == KindReal {
		return 32
	}
	return 64
}
