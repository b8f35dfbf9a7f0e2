package pgbus_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/trumpet-realtime/trumpet"
)

// replay is a table as the log's events make it, by the key id.
type replay map[string]map[string]json.RawMessage

func newReplay() replay { return make(replay) }

func (r replay) apply(t *testing.T, e trumpet.Event) {
	t.Helper()
	switch e.Op {
	case trumpet.OpTruncate:
		clear(r)
	case trumpet.OpInsert, trumpet.OpUpdate:
		var row, old map[string]json.RawMessage
		if err := json.Unmarshal(e.New, &row); err != nil {
			t.Fatal(err)
		}
		if e.Old != nil {
			if err := json.Unmarshal(e.Old, &old); err != nil {
				t.Fatal(err)
			}
			if id := old["id"]; id != nil {
				delete(r, string(id))
			}
		}
		r[string(row["id"])] = row
	case trumpet.OpDelete:
		var row map[string]json.RawMessage
		if err := json.Unmarshal(e.Old, &row); err != nil {
			t.Fatal(err)
		}
		delete(r, string(row["id"]))
	default:
		t.Fatalf("event %v is a %s", e.ID, e.Op)
	}
}

// json is the rows with some columns, ordered by id.
func (r replay) json(columns ...string) string {
	ids := make([]string, 0, len(r))
	for id := range r {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	var b strings.Builder
	b.WriteByte('[')
	for i, id := range ids {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, column := range columns {
			b.WriteString(map[bool]string{true: `{"`, false: `,"`}[j == 0] + column + `":` + string(r[id][column]))
		}
		b.WriteByte('}')
	}
	return b.String() + "]"
}
