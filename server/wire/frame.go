package wire

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"

	"github.com/trumpet-realtime/trumpet"
)

// Format is how a client is spoken to.
type Format uint8

// The formats.
const (
	WebSocket Format = iota
	SSE
	Formats // how many there are
)

// String names the format as metrics do.
func (f Format) String() string {
	if f == SSE {
		return "sse"
	}
	return "websocket"
}

// Ping is a whole WebSocket ping frame. Browsers answer it by themselves, page code
// cannot see it.
const Ping = "\x89\x00"

const (
	opText  = 0x1
	opClose = 0x8
	final   = 0x80
	// maxHeader is the longest header of a server's frame: it has no mask.
	maxHeader = 10
	// maxReason is what a close frame holds beside its code (RFC 6455, section 5.5).
	maxReason = 123
)

// begin opens a frame or an SSE event of the given name (none for data) and returns
// where its JSON starts.
func begin(dst []byte, f Format, name string, id trumpet.EventID, hasID bool) ([]byte, int) {
	if f == WebSocket {
		// The header's length depends on the JSON's; end moves it to its place.
		dst = append(dst, make([]byte, maxHeader)...)
		return dst, len(dst)
	}
	if hasID {
		dst = append(dst, "id: "...)
		dst = id.AppendText(dst)
		dst = append(dst, '\n')
	}
	if name != "" {
		dst = append(dst, "event: "...)
		dst = append(dst, name...)
		dst = append(dst, '\n')
	}
	dst = append(dst, "data: "...)
	return dst, len(dst)
}

// end closes what begin opened: dst[start:] is the JSON.
func end(dst []byte, f Format, start int) []byte {
	dst = sanitise(dst, start)
	if f == SSE {
		return append(dst, '\n', '\n')
	}
	size := len(dst) - start
	head := start - maxHeader
	var n int
	dst[head] = final | opText
	switch {
	case size <= 125:
		dst[head+1] = byte(size)
		n = 2
	case size <= 0xffff:
		dst[head+1] = 126
		binary.BigEndian.PutUint16(dst[head+2:], uint16(size))
		n = 4
	default:
		dst[head+1] = 127
		binary.BigEndian.PutUint64(dst[head+2:], uint64(size))
		n = 10
	}
	copy(dst[head+n:], dst[start:])
	return dst[:head+n+size]
}

// sanitise makes JSON in dst[start:] fit to be sent. What jsonb gives always is; a raw
// NOTIFY may hold anything. A line break can only be white space between JSON's tokens,
// and would end an SSE field; a WebSocket text frame must be UTF-8.
func sanitise(dst []byte, start int) []byte {
	body := dst[start:]
	if bytes.IndexByte(body, '\n') >= 0 || bytes.IndexByte(body, '\r') >= 0 {
		for i, c := range body {
			if c == '\n' || c == '\r' {
				body[i] = ' '
			}
		}
	}
	if !utf8.Valid(body) {
		return append(dst[:start], bytes.ToValidUTF8(body, []byte("\uFFFD"))...)
	}
	return dst
}

// AppendEnding appends the last thing that a client is told: on SSE an error event, on
// WebSocket a close frame, and before it an error frame if the client shall not come
// back, because a close reason is short.
func AppendEnding(dst []byte, f Format, e trumpet.Ending) []byte {
	if f == SSE {
		return AppendError(dst, f, e)
	}
	if !e.Retry() {
		dst = AppendError(dst, f, e)
	}
	return AppendClose(dst, e)
}

// AppendClose appends a WebSocket close frame.
func AppendClose(dst []byte, e trumpet.Ending) []byte {
	reason := e.Message
	if len(reason) > maxReason {
		reason = reason[:maxReason]
		for !utf8.ValidString(reason) {
			reason = reason[:len(reason)-1]
		}
	}
	dst = append(dst, final|opClose, byte(2+len(reason)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(e.Code))
	return append(dst, reason...)
}
