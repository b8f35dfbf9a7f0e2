package trumpet

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf16"
	"unicode/utf8"
)

// Row knows where the members of a row stand in its JSON. The zero value is ready,
// and can be used again and again: it allocates only when a row is larger than
// those before. It refers to the JSON it was given, and is for one goroutine at a
// time, also for matching.
type Row struct {
	members []member
	// text holds what had to be decoded. Slices of it stay good when it grows:
	// they keep the smaller array.
	text []byte
	key  []byte // for looking up one value among many
}

// member is one column. What its value means is found out when the first matcher
// asks, and kept for the others.
type member struct {
	name    []byte // decoded
	rawName []byte // as it stands in the JSON, with its quotes
	raw     []byte // the value
	kind    Kind   // what value was read as; KindOther: not yet
	truth   Truth  // True: value is set; Unknown: null; Gone: not of that kind
	value   value
}

// errRow is every error of reading a row.
var errRow = errors.New("not a row as JSON")

// Parse reads a row as row_to_json writes it.
func (r *Row) Parse(object []byte) error {
	r.members, r.text = r.members[:0], r.text[:0]
	return r.each(object, func(m member) { r.members = append(r.members, m) })
}

// ParseOver reads the row before an update: the new row, with those members
// replaced that the update changed.
func (r *Row) ParseOver(newRow, old []byte) error {
	if err := r.Parse(newRow); err != nil {
		return err
	}
	next := 0 // the changed ones are in the same order
	return r.each(old, func(m member) {
		i := r.find(m.name, next)
		if i < 0 {
			r.members = append(r.members, m)
			return
		}
		r.members[i], next = m, i+1
	})
}

// AppendJSON appends the row as a JSON object.
func (r *Row) AppendJSON(dst []byte) []byte {
	dst = append(dst, '{')
	for i := range r.members {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(dst, r.members[i].rawName...), ':')
		dst = append(dst, r.members[i].raw...)
	}
	return append(dst, '}')
}

// MergeOld returns the row before an update: the new row, with those members
// replaced that the update changed.
func MergeOld(newRow, old json.RawMessage) (json.RawMessage, error) {
	var r Row
	if err := r.ParseOver(newRow, old); err != nil {
		return nil, err
	}
	return r.AppendJSON(make([]byte, 0, len(newRow)+len(old))), nil
}

// find returns the member's index, or -1. It looks at place hint first.
func (r *Row) find(name []byte, hint int) int {
	if hint < len(r.members) && bytes.Equal(r.members[hint].name, name) {
		return hint
	}
	for i := range r.members {
		if bytes.Equal(r.members[i].name, name) {
			return i
		}
	}
	return -1
}

// each calls take for each member of the object.
func (r *Row) each(object []byte, take func(member)) error {
	rest := trimSpace(object)
	if len(rest) < 2 || rest[0] != '{' || rest[len(rest)-1] != '}' {
		return errRow
	}
	rest = trimSpace(rest[1 : len(rest)-1])
	for len(rest) > 0 {
		end, escaped := JSONStringEnd(rest)
		if end < 0 {
			return errRow
		}
		m := member{rawName: rest[:end], name: rest[1 : end-1]}
		if escaped {
			var ok bool
			if m.name, ok = r.decode(m.name); !ok {
				return errRow
			}
		}
		rest = trimSpace(rest[end:])
		if len(rest) == 0 || rest[0] != ':' {
			return errRow
		}
		rest = trimSpace(rest[1:])
		end = JSONValueEnd(rest)
		if m.raw = trimSpace(rest[:end]); len(m.raw) == 0 {
			return errRow
		}
		take(m)
		if end == len(rest) {
			return nil
		}
		if rest = trimSpace(rest[end+1:]); len(rest) == 0 {
			return errRow
		}
	}
	return nil
}

// decode undoes the escapes of a JSON string without its quotes.
func (r *Row) decode(s []byte) (text []byte, ok bool) {
	start := len(r.text)
	for len(s) > 0 {
		i := bytes.IndexByte(s, '\\')
		if i < 0 {
			r.text = append(r.text, s...)
			break
		}
		r.text = append(r.text, s[:i]...)
		if s = s[i+1:]; len(s) == 0 {
			return nil, false
		}
		c := s[0]
		s = s[1:]
		switch c {
		case '"', '\\', '/':
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			code, okCode := hex4(s)
			if !okCode {
				return nil, false
			}
			s = s[4:]
			if utf16.IsSurrogate(code) {
				second := rune(-1)
				if len(s) > 1 && s[0] == '\\' && s[1] == 'u' {
					second, _ = hex4(s[2:])
				}
				if code = utf16.DecodeRune(code, second); code == utf8.RuneError {
					return nil, false
				}
				s = s[6:]
			}
			r.text = utf8.AppendRune(r.text, code)
			continue
		default:
			return nil, false
		}
		r.text = append(r.text, c)
	}
	return r.text[start:len(r.text):len(r.text)], true
}

func hex4(s []byte) (rune, bool) {
	if len(s) < 4 {
		return -1, false
	}
	var code rune
	for _, c := range s[:4] {
		digit, ok := unhex(c)
		if !ok {
			return -1, false
		}
		code = code<<4 | rune(digit)
	}
	return code, true
}

// trimSpace takes off JSON's white space. It is at most one line end or blank as a
// rule, so that looking at the ends is enough.
func trimSpace(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }
