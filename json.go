package trumpet

import "bytes"

// Rows pass through as the bytes that Postgres wrote. What needs to look into one finds its
// members by these two, and takes nothing apart that it does not need.

// JSONValueEnd returns where the value at the beginning of b ends: at the next comma
// outside of strings, arrays and objects, or at the end of b.
func JSONValueEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			end, _ := JSONStringEnd(b[i:])
			if end < 0 {
				return len(b)
			}
			i += end - 1
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		case ',':
			if depth <= 0 {
				return i
			}
		}
	}
	return len(b)
}

// JSONStringEnd returns where the JSON string at the beginning of b ends, behind its
// closing quote, and whether it has escapes; -1 if there is none.
func JSONStringEnd(b []byte) (end int, escaped bool) {
	if len(b) == 0 || b[0] != '"' {
		return -1, false
	}
	i := 1
	for {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return -1, false
		}
		run := b[i : i+n]
		i += n + 1
		e := bytes.IndexByte(run, '\\')
		if e < 0 {
			return i, escaped
		}
		// The quote is the string's end unless a backslash stands for it.
		escaped = true
		for e < len(run) {
			if run[e] == '\\' {
				e++
			}
			e++
		}
		if e == len(run) {
			return i, escaped
		}
	}
}
