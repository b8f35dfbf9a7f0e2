package trumpet

import "encoding/json"

// Row knows where the members of a row stand in its JSON. The zero value is ready,
// and can be used again and again: it allocates only when a row is larger than
// those before. It refers to the JSON it was given, and is for one goroutine at a
// time, also for matching.
type Row struct {
	members []member
}

type member struct{ name, value []byte }

// Parse reads a row as row_to_json writes it.
func (r *Row) Parse(object []byte) error { return nil }

// ParseOver reads the row before an update: the new row, with those members
// replaced that the update changed.
func (r *Row) ParseOver(newRow, old []byte) error { return nil }

// AppendJSON appends the row as a JSON object.
func (r *Row) AppendJSON(dst []byte) []byte { return dst }

// MergeOld returns the row before an update: the new row, with those members
// replaced that the update changed.
func MergeOld(newRow, old json.RawMessage) (json.RawMessage, error) {
	var r Row
	if err := r.ParseOver(newRow, old); err != nil {
		return nil, err
	}
	return r.AppendJSON(nil), nil
}
