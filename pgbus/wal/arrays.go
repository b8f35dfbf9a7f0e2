package wal

import (
	"bytes"
	"errors"
)

// The texts of arrays and composites are taken apart here: no more than the output functions of
// Postgres write is accepted, which is less than its input functions read.

var (
	errArray  = errors.New("not an array's text")
	errRecord = errors.New("not a composite's text, or of another number of attributes")
)

// maxDimensions is how many dimensions an array of Postgres has at most.
const maxDimensions = 6

// part is an array's element or a composite's field, as it stands in the whole's text.
type part struct {
	text    []byte // without quotes around it
	null    bool
	escaped bool // something in text stands behind a backslash, or is doubled
}

// appendText appends what the text stands for. Fields of composites have quotes doubled, within
// elements of arrays a quote stands only behind a backslash.
func (p part) appendText(dst []byte) []byte {
	for i := 0; i < len(p.text); i++ {
		if c := p.text[i]; (c == '\\' || c == '"') && i+1 < len(p.text) {
			i++
		}
		dst = append(dst, p.text[i])
	}
	return dst
}

type arrayToken uint8

const (
	arrayOpen arrayToken = iota
	arrayClose
	arrayDelimiter
	arrayElement
	arrayEnd
)

// arrayScanner reads what array_out writes: [0:1][1:2]={{1,NULL},{"a b","\"\\"}}.
type arrayScanner struct {
	rest       []byte
	delimiter  byte
	dimensions int
	depth      int
	first      bool // nothing but braces yet
	behind     bool // behind a value, where a delimiter or a brace follows
}

// scanArray begins to read an array. Its lower bounds are nowhere in its JSON, so they are skipped.
func scanArray(text []byte, delimiter byte) (arrayScanner, error) {
	bounds := 0
	for len(text) > 0 && text[0] == '[' {
		end := bytes.IndexByte(text, ']')
		if end < 0 || !isArrayBound(text[1:end]) {
			return arrayScanner{}, errArray
		}
		text = text[end+1:]
		bounds++
	}
	if bounds > 0 {
		if len(text) == 0 || text[0] != '=' {
			return arrayScanner{}, errArray
		}
		text = text[1:]
	}
	braces := 0
	for braces < len(text) && text[braces] == '{' {
		braces++
	}
	if braces == 0 || braces > maxDimensions || bounds > 0 && bounds != braces {
		return arrayScanner{}, errArray
	}
	return arrayScanner{rest: text, delimiter: delimiter, dimensions: braces, first: true}, nil
}

// isArrayBound tells whether a text is like -1:12.
func isArrayBound(text []byte) bool {
	lower, upper, found := bytes.Cut(text, []byte{':'})
	return found && isInteger(lower) && isInteger(upper)
}

func isInteger(text []byte) bool {
	text = bytes.TrimPrefix(text, []byte{'-'})
	for _, c := range text {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(text) > 0
}

// next returns the next token, and the element if it is one. After an error it must not be called.
func (s *arrayScanner) next() (arrayToken, part, error) {
	if len(s.rest) == 0 {
		if s.behind && s.depth == 0 {
			return arrayEnd, part{}, nil
		}
		return 0, part{}, errArray
	}
	c := s.rest[0]
	switch {
	case s.behind && s.depth == 0: // and something follows
		return 0, part{}, errArray
	case s.behind && c == s.delimiter:
		s.rest, s.behind = s.rest[1:], false
		return arrayDelimiter, part{}, nil
	case c == '}' && (s.behind || s.first && s.depth == 1 && s.dimensions == 1): // the latter is {}
		s.rest, s.behind, s.first = s.rest[1:], true, false
		s.depth--
		return arrayClose, part{}, nil
	case s.behind:
		return 0, part{}, errArray
	case s.depth < s.dimensions:
		if c != '{' {
			return 0, part{}, errArray
		}
		s.rest = s.rest[1:]
		s.depth++
		return arrayOpen, part{}, nil
	}
	s.behind, s.first = true, false
	element, err := s.element()
	return arrayElement, element, err
}

func (s *arrayScanner) element() (part, error) {
	if s.rest[0] == '"' {
		p := part{}
		for i := 1; i < len(s.rest); i++ {
			switch s.rest[i] {
			case '\\':
				p.escaped = true
				i++
			case '"':
				p.text, s.rest = s.rest[1:i], s.rest[i+1:]
				return p, nil
			}
		}
		return part{}, errArray
	}
	for i, c := range s.rest {
		switch c {
		case s.delimiter, '}':
			p := part{text: s.rest[:i]}
			s.rest = s.rest[i:]
			if i == 0 {
				return part{}, errArray
			}
			p.null = string(p.text) == "NULL" // a text of these letters is quoted
			return p, nil
		case '"', '\\', '{':
			return part{}, errArray
		}
	}
	return part{}, errArray
}

// recordScanner reads what record_out writes: (1,,"","a ""b"" \\").
type recordScanner struct {
	rest []byte
	left int // fields
}

// scanRecord begins to read a composite of so many attributes.
func scanRecord(text []byte, attributes int) (recordScanner, error) {
	if len(text) < 2 || text[0] != '(' || attributes == 0 && len(text) > 2 || attributes == 0 && text[1] != ')' {
		return recordScanner{}, errRecord
	}
	return recordScanner{rest: text[1:], left: attributes}, nil
}

// next returns the next field. It is called as often as there are attributes; the last one must be
// at the text's end.
func (s *recordScanner) next() (part, error) {
	p, end := recordField(s.rest)
	if end < 0 {
		return part{}, errRecord
	}
	s.left--
	if s.left > 0 && s.rest[end] == ',' || s.left == 0 && s.rest[end] == ')' && end+1 == len(s.rest) {
		s.rest = s.rest[end+1:]
		return p, nil
	}
	return part{}, errRecord
}

// recordField returns the field at the beginning of the text, and where the comma or parenthesis
// behind it is; -1 if there is none.
func recordField(text []byte) (p part, end int) {
	if len(text) > 0 && text[0] == '"' {
		for i := 1; i < len(text); i++ {
			switch text[i] {
			case '\\':
				p.escaped = true
				i++
			case '"':
				if i+1 == len(text) {
					return part{}, -1
				}
				if text[i+1] != '"' {
					p.text = text[1:i]
					return p, i + 1
				}
				p.escaped = true
				i++
			}
		}
		return part{}, -1
	}
	for i, c := range text {
		switch c {
		case ',', ')':
			return part{text: text[:i], null: i == 0}, i
		case '"', '\\', '(':
			return part{}, -1
		}
	}
	return part{}, -1
}
