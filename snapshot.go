package trumpet

import "encoding/json"

// SnapshotRequest asks for rows of one topic's table: those that any of the matchers takes, or all
// if there are none.
type SnapshotRequest struct {
	Topic    string
	Matchers []*Matcher
}

// SnapshotLimits bound what a snapshot may hold of each topic. Zero values mean the defaults.
type SnapshotLimits struct {
	Rows  int   // default 10,000
	Bytes int64 // default 16 MiB, as JSON
}

// The default limits.
const (
	DefaultSnapshotRows  = 10_000
	DefaultSnapshotBytes = 16 << 20
)

// Snapshot is rows of watched tables as they were at one place in the log: what the events up to
// At made of them. The events after At are what happened since. It is never changed.
type Snapshot struct {
	At     EventID
	Topics []TopicSnapshot // in the order of the requests
}

// TopicSnapshot is the rows of one topic, in the order of their key, in pages of a size that suits a
// message. Rows are JSON objects as in events' New, byte for byte. Without rows there are no pages.
type TopicSnapshot struct {
	Topic string
	Pages [][]json.RawMessage
}
