package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

var (
	// ErrType means that a text does not fit what is known of its type, as when an attribute was
	// added to a composite; or that nothing is known of it.
	ErrType = errors.New("value does not fit its type")
	// ErrCast means that only Postgres can render the value, because its type has a cast to json.
	ErrCast = errors.New("only postgres can render the value")
)

// maxScratch is what Types keep between values; one large value must not hold memory for ever.
const maxScratch = 64 << 10

// AppendJSON appends the value as JSON: the bytes of row_to_json() in a session with the same
// settings. The text is what the type's output function gives with datestyle ISO.
//
// With an error it appends nothing.
func (t *Types) AppendJSON(dst []byte, oid uint32, text []byte) ([]byte, error) {
	info := t.lookup(oid)
	if info == nil {
		return dst, fmt.Errorf("render type %d: %w: the type is not known", oid, ErrType)
	}
	if info.cast {
		return dst, ErrCast // bare: it is no failure, and may come for every row
	}
	result, err := t.appendValue(dst, info, text)
	if cap(t.scratch) > maxScratch {
		t.scratch = nil
	}
	if err != nil {
		return dst, fmt.Errorf("render type %d: %w: %w", oid, ErrType, err)
	}
	return result, nil
}

// errBool means that a boolean's text is neither t nor f.
var errBool = errors.New("not a boolean")

func (t *Types) appendValue(dst []byte, info *typeInfo, text []byte) ([]byte, error) {
	switch info.kind {
	case kindBool:
		if len(text) == 1 {
			switch text[0] {
			case 't':
				return append(dst, "true"...), nil
			case 'f':
				return append(dst, "false"...), nil
			}
		}
		return dst, errBool
	case kindNumber:
		if isJSONNumber(text) {
			return append(dst, text...), nil
		}
		return appendJSONString(dst, text), nil // NaN, Infinity
	case kindTimestamp:
		return appendTimestamp(dst, text, false), nil
	case kindTimestampTZ:
		return appendTimestamp(dst, text, true), nil
	case kindJSON:
		return append(dst, text...), nil
	case kindVector:
		return t.appendVector(dst, info, text)
	case kindArray:
		return t.appendArray(dst, info, text)
	case kindComposite:
		return t.appendComposite(dst, info, text)
	case kindCast:
		return dst, ErrCast
	}
	return appendJSONString(dst, text), nil
}

// appendVector renders an int2vector or oidvector, whose text is numbers with spaces between them
// though Postgres takes it for an array.
func (t *Types) appendVector(dst []byte, info *typeInfo, text []byte) ([]byte, error) {
	dst = append(dst, '[')
	for more := len(text) > 0; more; {
		var number []byte
		if number, text, more = bytes.Cut(text, []byte{' '}); len(number) == 0 {
			return dst, errArray
		}
		var err error
		if dst, err = t.appendValue(dst, info.element, number); err != nil {
			return dst, err
		}
		if more {
			dst = append(dst, ',')
		}
	}
	return append(dst, ']'), nil
}

func (t *Types) appendArray(dst []byte, info *typeInfo, text []byte) ([]byte, error) {
	s, err := scanArray(text, info.delimiter)
	if err != nil {
		return dst, err
	}
	for {
		token, element, err := s.next()
		if err != nil {
			return dst, err
		}
		switch token {
		case arrayOpen:
			dst = append(dst, '[')
		case arrayClose:
			dst = append(dst, ']')
		case arrayDelimiter:
			dst = append(dst, ',')
		case arrayElement:
			if dst, err = t.appendPart(dst, info.element, element); err != nil {
				return dst, err
			}
		case arrayEnd:
			return dst, nil
		}
	}
}

func (t *Types) appendComposite(dst []byte, info *typeInfo, text []byte) ([]byte, error) {
	s, err := scanRecord(text, len(info.attributes))
	if err != nil {
		return dst, err
	}
	dst = append(dst, '{')
	for i := range info.attributes {
		a := &info.attributes[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, a.member...)
		field, err := s.next()
		if err != nil {
			return dst, err
		}
		if dst, err = t.appendPart(dst, a.value, field); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// appendPart renders an array's element or a composite's field.
func (t *Types) appendPart(dst []byte, info *typeInfo, p part) ([]byte, error) {
	if p.null {
		return append(dst, "null"...), nil
	}
	if !p.escaped {
		return t.appendValue(dst, info, p.text)
	}
	// What is quoted within this part goes behind it. Where that makes scratch grow, the part stays
	// where it was.
	start := len(t.scratch)
	t.scratch = p.appendText(t.scratch)
	dst, err := t.appendValue(dst, info, t.scratch[start:])
	t.scratch = t.scratch[:start]
	return dst, err
}

// appendTimestamp makes ISO 8601 of "2006-01-02 15:04:05.999999+00 BC": the separator is a T, and a
// zone has minutes. What has no time is infinity or -infinity.
func appendTimestamp(dst, text []byte, zone bool) []byte {
	dst = append(dst, '"')
	if space := bytes.IndexByte(text, ' '); space >= 0 {
		dst = append(appendEscaped(dst, text[:space]), 'T')
		text = text[space+1:]
	} else {
		zone = false
	}
	if zone {
		era := bytes.IndexByte(text, ' ')
		if era < 0 {
			era = len(text)
		}
		dst = appendEscaped(dst, text[:era])
		if era >= 3 && (text[era-3] == '+' || text[era-3] == '-') {
			dst = append(dst, ":00"...)
		}
		text = text[era:]
	}
	return append(appendEscaped(dst, text), '"')
}

// isJSONNumber tells numbers from NaN and the infinities. All other numbers that Postgres writes are
// valid JSON; they are looked at because after this nobody does.
func isJSONNumber(text []byte) bool {
	i := 0
	if len(text) > 0 && text[0] == '-' {
		i = 1
	}
	whole := i
	i = digitsEnd(text, i)
	if i == whole || text[whole] == '0' && i > whole+1 {
		return false
	}
	if i < len(text) && text[i] == '.' {
		fraction := i + 1
		if i = digitsEnd(text, fraction); i == fraction {
			return false
		}
	}
	if i < len(text) && (text[i] == 'e' || text[i] == 'E') {
		exponent := i + 1
		if exponent < len(text) && (text[exponent] == '+' || text[exponent] == '-') {
			exponent++
		}
		if i = digitsEnd(text, exponent); i == exponent {
			return false
		}
	}
	return i == len(text)
}

// digitsEnd returns where the digits end that begin at i.
func digitsEnd(text []byte, i int) int {
	for i < len(text) && text[i] >= '0' && text[i] <= '9' {
		i++
	}
	return i
}

// appendJSONString appends the text as a JSON string.
func appendJSONString(dst, text []byte) []byte {
	return append(appendEscaped(append(dst, '"'), text), '"')
}

// appendEscaped escapes what escape_json() of Postgres does, in its way: no more than JSON demands.
func appendEscaped(dst, text []byte) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := plainPrefix(text); i < len(text); {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, text[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
		i++
		start = i
		i += plainPrefix(text[i:])
	}
	return append(dst, text[start:]...)
}

// plainPrefix returns a length up to which nothing needs to be escaped. It looks at eight bytes at
// once, and stops at the first eight that may have one.
func plainPrefix(text []byte) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	i := 0
	for ; i+8 <= len(text); i += 8 {
		w := binary.LittleEndian.Uint64(text[i:])
		quote, backslash := w^(ones*'"'), w^(ones*'\\')
		// A byte below a bound borrows its high bit; one that had it already is above. A borrow may
		// go on into the next byte, so this errs to the safe side only.
		if ((w-ones*' ')&^w|(quote-ones)&^quote|(backslash-ones)&^backslash)&highs != 0 {
			return i
		}
	}
	return i
}
