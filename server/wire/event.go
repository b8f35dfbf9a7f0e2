package wire

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/trumpet-realtime/trumpet"
)

// timeLayout has milliseconds, always three of them, in UTC.
const timeLayout = "2006-01-02T15:04:05.000Z"

// Variant is how a reader sees an event.
type Variant uint8

// The variants. The last two are updates, as seen by one whose filter takes only one of the
// two rows: for it one row came, or went.
const (
	Whole Variant = iota // as it is
	Enter                // the row came: key and new, as of an insert
	Leave                // the row went: key and old, the row before, as of a delete
)

// EncodeEvent gives one event as a client reads it: a WebSocket frame or an SSE event.
// more says that the client will see further events of the same transaction.
func EncodeEvent(f Format, v Variant, e *trumpet.Event, more bool) []byte {
	size := 192 + len(e.Topic) + len(e.Key) + len(e.New) + len(e.Old) + len(e.Data) + len(e.Error)
	return AppendEventFrame(make([]byte, 0, size), f, v, e, more)
}

// AppendEventFrame appends what EncodeEvent gives.
func AppendEventFrame(dst []byte, f Format, v Variant, e *trumpet.Event, more bool) []byte {
	dst, start := begin(dst, f, "", e.ID, !e.ID.IsZero())
	return end(appendEvent(dst, v, e, more), f, start)
}

// AppendEvent appends the whole event as one JSON object. Row values are passed through:
// they are what row_to_json gave.
func AppendEvent(dst []byte, e *trumpet.Event, more bool) []byte {
	return appendEvent(dst, Whole, e, more)
}

func appendEvent(dst []byte, v Variant, e *trumpet.Event, more bool) []byte {
	op, key, newRow, old := e.Op, e.Key, e.New, e.Old
	switch v {
	case Whole:
	case Enter:
		op, old = trumpet.OpEnter, nil
	case Leave:
		op, key, newRow, old = trumpet.OpLeave, formerKey(key, old), nil, formerRow(newRow, old)
	}
	dst = append(dst, '{')
	if !e.ID.IsZero() {
		dst = append(dst, `"id":`...)
		dst = appendID(dst, e.ID)
		dst = append(dst, ',')
	}
	dst = append(dst, `"topic":`...)
	dst = appendString(dst, e.Topic)
	dst = append(dst, `,"op":`...)
	dst = appendString(dst, string(op))
	dst = append(dst, `,"at":`...)
	dst = appendTime(dst, e.At)
	dst = appendRaw(dst, `,"key":`, key)
	dst = appendRaw(dst, `,"new":`, newRow)
	dst = appendRaw(dst, `,"old":`, old)
	if e.Op == trumpet.OpResult && len(e.Data) > 0 {
		dst = append(dst, `,"as_of":`...)
		dst = strconv.AppendInt(dst, e.AsOf, 10)
	}
	dst = appendRaw(dst, `,"data":`, e.Data)
	if e.Stale {
		dst = append(dst, `,"stale":true,"error":`...)
		dst = appendString(dst, e.Error)
	}
	if e.Op == trumpet.OpBulk {
		dst = append(dst, `,"statement":`...)
		dst = appendString(dst, string(e.Statement))
		dst = append(dst, `,"rows":`...)
		dst = strconv.AppendInt(dst, e.Rows, 10)
	}
	if more {
		dst = append(dst, `,"more":true`...)
	}
	return append(dst, '}')
}

// formerRow returns the row before an update.
func formerRow(newRow, old json.RawMessage) json.RawMessage {
	row, err := trumpet.MergeOld(newRow, old)
	if err != nil {
		return old // cannot be: a filter has read both
	}
	return row
}

// formerKey returns the key that a row had before an update, which may have changed it: by
// that key a client knows the row.
func formerKey(key, old json.RawMessage) json.RawMessage {
	var former map[string]json.RawMessage
	if len(key) == 0 || json.Unmarshal(old, &former) != nil {
		return key
	}
	decoder := json.NewDecoder(bytes.NewReader(key))
	if _, err := decoder.Token(); err != nil {
		return key
	}
	changed, out := false, []byte{'{'}
	for decoder.More() {
		name, err := decoder.Token()
		column, ok := name.(string)
		var value json.RawMessage
		if err != nil || !ok || decoder.Decode(&value) != nil {
			return key
		}
		if before, ok := former[column]; ok {
			changed, value = true, before
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(appendString(out, column), ':'), value...)
	}
	if !changed {
		return key
	}
	return append(out, '}')
}

func appendRaw(dst []byte, name string, value []byte) []byte {
	if len(value) == 0 {
		return dst
	}
	dst = append(dst, name...)
	return append(dst, value...)
}

func appendID(dst []byte, id trumpet.EventID) []byte {
	dst = append(dst, '"')
	dst = id.AppendText(dst)
	return append(dst, '"')
}

func appendTime(dst []byte, t time.Time) []byte {
	dst = append(dst, '"')
	dst = t.UTC().AppendFormat(dst, timeLayout)
	return append(dst, '"')
}

// appendString appends s as a JSON string.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
			i++
		case c < 0x20 || c == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
			i++
		case c < utf8.RuneSelf:
			dst = append(dst, c)
			i++
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += size
		}
	}
	return append(dst, '"')
}
