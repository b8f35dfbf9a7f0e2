package trumpet

import "encoding/json"

// SnapshotRequest asks for the rows of one topic's table.
type SnapshotRequest struct {
	Topic string
	// Matchers: a row counts that any of them takes; none asks for all rows.
	Matchers []*Matcher
}

// Snapshot is the rows of some tables as of one place in the log: what comes after At is not in
// them, and everything up to it is.
type Snapshot struct {
	At     EventID
	Topics []SnapshotTopic
}

// SnapshotTopic is one topic's rows, as events show them.
type SnapshotTopic struct {
	Topic string
	Rows  []json.RawMessage
}
