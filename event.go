package trumpet

import (
	"encoding/json"
	"time"
)

// Op says what happened to a row, or that the event is a broadcast.
type Op string

// The operations. They are spelled as clients see them.
const (
	OpInsert    Op = "insert"
	OpUpdate    Op = "update"
	OpDelete    Op = "delete"
	OpTruncate  Op = "truncate"
	OpBulk      Op = "bulk"
	OpBroadcast Op = "broadcast"
	// OpResult is a live query's new result. It is in the log, like the others above.
	OpResult Op = "result"
	// OpEnter and OpLeave are an update that moved a row into or out of a filter.
	// They are only on the wire: what the log holds is the update.
	OpEnter Op = "enter"
	OpLeave Op = "leave"
)

// Event is one row's change, one broadcast, or one live query's result. It is never changed after it was
// given on: many readers share it.
type Event struct {
	// ID is the event's place in the log. It is zero for a raw NOTIFY, which
	// has no place in the log and is not replayed.
	ID    EventID
	Topic string
	Op    Op
	// At is when the statement wrote the change (clock_timestamp() in the
	// trigger), not when it was committed.
	At time.Time

	// Key, New and Old are JSON objects, or nil where the operation has none. None of them, nor
	// Data, holds a line end: an event is one line.
	// New is the row after the change. Old is, on update, only the columns that
	// changed, with their former values; on delete, the row.
	Key json.RawMessage
	New json.RawMessage
	Old json.RawMessage
	// Known is set for an update whose former row is not known whole (a table watched by the WAL
	// without REPLICA IDENTITY FULL): what is known of it, the columns that identify the row. It is not on the wire.
	Known json.RawMessage

	// Data is a broadcast's JSON value, or a live query's result; nil for
	// everything else.
	Data json.RawMessage
	// AsOf is set for OpResult only: the position in the log that the result is
	// true of. The event's own place is a later one. 0: there is no result yet.
	AsOf int64
	// Stale is set for OpResult only: Data could not be brought up to date, and is what it was, as of
	// AsOf; nil if there was none. Error says why, in one line.
	Stale bool
	Error string

	// Statement and Rows are set for OpBulk only: the statement that touched
	// too much for one event a row, and how many rows it touched.
	Statement Op
	Rows      int64

	// More says that further events of the same transaction follow this one.
	More bool
}
