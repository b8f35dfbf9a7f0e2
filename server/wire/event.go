package wire

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/trumpet-realtime/trumpet"
)

// timeLayout has milliseconds, always three of them, in UTC.
const timeLayout = "2006-01-02T15:04:05.000Z"

// EncodeEvent gives one event as a client reads it: a WebSocket frame or an SSE event.
// more says that the client will see further events of the same transaction.
func EncodeEvent(f Format, e *trumpet.Event, more bool) []byte {
	size := 192 + len(e.Topic) + len(e.Key) + len(e.New) + len(e.Old) + len(e.Data)
	return AppendEventFrame(make([]byte, 0, size), f, e, more)
}

// AppendEventFrame appends what EncodeEvent gives.
func AppendEventFrame(dst []byte, f Format, e *trumpet.Event, more bool) []byte {
	dst, start := begin(dst, f, "", e.ID, !e.ID.IsZero())
	return end(AppendEvent(dst, e, more), f, start)
}

// AppendEvent appends the event as one JSON object. Row values are passed through: they
// are what row_to_json gave.
func AppendEvent(dst []byte, e *trumpet.Event, more bool) []byte {
	dst = append(dst, '{')
	if !e.ID.IsZero() {
		dst = append(dst, `"id":`...)
		dst = appendID(dst, e.ID)
		dst = append(dst, ',')
	}
	dst = append(dst, `"topic":`...)
	dst = appendString(dst, e.Topic)
	dst = append(dst, `,"op":`...)
	dst = appendString(dst, string(e.Op))
	dst = append(dst, `,"at":`...)
	dst = appendTime(dst, e.At)
	dst = appendRaw(dst, `,"key":`, e.Key)
	dst = appendRaw(dst, `,"new":`, e.New)
	dst = appendRaw(dst, `,"old":`, e.Old)
	dst = appendRaw(dst, `,"data":`, e.Data)
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
