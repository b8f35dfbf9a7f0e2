package pgbus

import (
	"testing"

	"pgregory.net/rapid"
)

func TestFullXID(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		near := rapid.Uint64Range(1<<31, 1<<60).Draw(t, "near")
		xid := near + uint64(rapid.Int64Range(-1<<31+1, 1<<31-1).Draw(t, "distance"))
		if got := fullXID(uint32(xid), near); got != xid {
			t.Fatalf("%d near %d: got %d", xid, near, got)
		}
	})
}

func TestTextArray(t *testing.T) {
	t.Parallel()
	for want, names := range map[string][]string{
		``: nil, `{}`: {}, `{"id"}`: {"id"}, `{"a,b","q\"\\x","ü"}`: {"a,b", `q"\x`, "ü"},
	} {
		if got := textArray(names); got != want {
			t.Errorf("%q: got %s, want %s", names, got, want)
		}
	}
}
