package wire

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/trumpet-realtime/trumpet"
)

// Reason is why a client's view is void and must be fetched anew.
type Reason string

// The reasons of a reset.
const (
	ReasonPruned  Reason = "pruned"  // the log no longer reaches back that far
	ReasonUnknown Reason = "unknown" // no such event in this log
	ReasonLost    Reason = "lost"    // the log lost its continuity while the client was connected
	ReasonInvalid Reason = "invalid" // what the client gave is not an event id
	ReasonSchema  Reason = "schema"  // what was missed lacks a column that a filter needs
)

// Reasons lists them, for counters.
var Reasons = []Reason{ReasonPruned, ReasonUnknown, ReasonLost, ReasonInvalid, ReasonSchema}

// control opens a control message; the caller appends further members and calls finish.
func control(dst []byte, f Format, name string, id trumpet.EventID, advances bool) ([]byte, int) {
	dst, start := begin(dst, f, name, id, advances)
	dst = append(dst, `{"type":`...)
	return appendString(dst, name), start
}

func finish(dst []byte, f Format, start int) []byte { return end(append(dst, '}'), f, start) }

// AppendReady: after id nothing will be missed.
func AppendReady(dst []byte, f Format, id trumpet.EventID, resumed bool, worker string) []byte {
	dst, start := control(dst, f, "ready", id, true)
	dst = append(dst, `,"id":`...)
	dst = appendID(dst, id)
	dst = append(dst, `,"resumed":`...)
	dst = strconv.AppendBool(dst, resumed)
	dst = append(dst, `,"worker":`...)
	dst = appendString(dst, worker)
	return finish(dst, f, start)
}

// AppendReset: fetch your state anew; live begins after id.
func AppendReset(dst []byte, f Format, id trumpet.EventID, reason Reason) []byte {
	dst, start := control(dst, f, "reset", id, true)
	dst = append(dst, `,"id":`...)
	dst = appendID(dst, id)
	dst = append(dst, `,"reason":`...)
	dst = appendString(dst, string(reason))
	return finish(dst, f, start)
}

// AppendResetBySnapshot: your state is void, and comes anew in a snapshot. There is no id:
// until the client has all of it there is nothing to go on from.
func AppendResetBySnapshot(dst []byte, f Format, reason Reason) []byte {
	dst, start := control(dst, f, "reset", trumpet.EventID{}, false)
	dst = append(dst, `,"reason":`...)
	dst = appendString(dst, string(reason))
	return finish(dst, f, start)
}

// AppendStale: the worker lost Postgres; events come later.
func AppendStale(dst []byte, f Format) []byte {
	dst, start := control(dst, f, "stale", trumpet.EventID{}, false)
	return finish(dst, f, start)
}

// AppendLive: the worker has Postgres again, and has caught up.
func AppendLive(dst []byte, f Format) []byte {
	dst, start := control(dst, f, "live", trumpet.EventID{}, false)
	return finish(dst, f, start)
}

// AppendPing: the connection lives; what came up to id has been sent.
func AppendPing(dst []byte, f Format, id trumpet.EventID, at time.Time) []byte {
	dst, start := control(dst, f, "ping", id, true)
	dst = append(dst, `,"id":`...)
	dst = appendID(dst, id)
	dst = append(dst, `,"at":`...)
	dst = appendTime(dst, at)
	return finish(dst, f, start)
}

// AppendSubscribed: these are your subscriptions now, complete after id. ref is the
// client's name of what this answers, or nil.
func AppendSubscribed(dst []byte, f Format, ref json.RawMessage, names []string, id trumpet.EventID) []byte {
	dst, start := control(dst, f, "subscribed", trumpet.EventID{}, false)
	dst = appendRaw(dst, `,"ref":`, ref)
	dst = append(dst, `,"topics":[`...)
	for i, name := range names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, name)
	}
	dst = append(dst, `],"id":`...)
	dst = appendID(dst, id)
	return finish(dst, f, start)
}

// AppendRefused: what you asked for is not possible; your subscriptions are as they were.
func AppendRefused(dst []byte, f Format, ref json.RawMessage, message string) []byte {
	dst, start := control(dst, f, "refused", trumpet.EventID{}, false)
	dst = appendRaw(dst, `,"ref":`, ref)
	dst = append(dst, `,"message":`...)
	dst = appendString(dst, message)
	return finish(dst, f, start)
}

// AppendSnapshot: a page, counted from 1, of a topic's rows; more says that it is not the
// last one. It has no id: who has only a part of a snapshot cannot go on from there.
func AppendSnapshot(dst []byte, f Format, topic string, page int, rows []json.RawMessage, more bool) []byte {
	dst, start := control(dst, f, "snapshot", trumpet.EventID{}, false)
	dst = append(dst, `,"topic":`...)
	dst = appendString(dst, topic)
	dst = append(dst, `,"page":`...)
	dst = strconv.AppendInt(dst, int64(page), 10)
	dst = append(dst, `,"rows":[`...)
	for i, row := range rows {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, row...)
	}
	dst = append(dst, ']')
	if more {
		dst = append(dst, `,"more":true`...)
	}
	return finish(dst, f, start)
}

// AppendError: why the connection ends.
func AppendError(dst []byte, f Format, e trumpet.Ending) []byte {
	dst, start := control(dst, f, "error", trumpet.EventID{}, false)
	dst = append(dst, `,"code":`...)
	dst = appendString(dst, e.Name)
	dst = append(dst, `,"message":`...)
	dst = appendString(dst, e.Message)
	dst = append(dst, `,"retry":`...)
	dst = strconv.AppendBool(dst, e.Retry())
	return finish(dst, f, start)
}

// AppendRetry tells an EventSource how long to wait before it comes back.
func AppendRetry(dst []byte, after time.Duration) []byte {
	dst = append(dst, "retry: "...)
	dst = strconv.AppendInt(dst, after.Milliseconds(), 10)
	return append(dst, '\n', '\n')
}
