package pgbus

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet"
)

// A history is what a plain list of ids would be, cut to its newest.
func TestHistoryIsAListOfTheNewest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var h history
		var model []trumpet.EventID
		begin := func(position int64) {
			id := trumpet.EventID{Position: position, Tag: rapid.Uint32().Draw(t, "tag")}
			h.reset(id)
			model = []trumpet.EventID{id}
		}
		begin(rapid.Int64Range(0, 1000).Draw(t, "begin"))
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			last := model[len(model)-1].Position
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				begin(last)
			case 1:
				to := rapid.Int64Range(model[0].Position, last).Draw(t, "to")
				h.rewind(to)
				model = model[:to-model[0].Position+1]
			default:
				for i := range int64(rapid.SampledFrom([]int{1, 3, 1000, historyLength}).Draw(t, "records")) {
					id := trumpet.EventID{Position: last + 1 + i, Tag: uint32(i * 7)}
					h.add(id)
					model = append(model, id)
				}
				model = model[max(0, len(model)-historyLength):]
			}
			positions, tags := h.columns()
			if len(positions) != len(model) {
				t.Fatalf("%d ids, want %d", len(positions), len(model))
			}
			for i, want := range model {
				if got, ok := h.find(want.Position); !ok || got != want || positions[i] != want.Position || tags[i] != int32(want.Tag) {
					t.Fatalf("at %d: %v, %v, want %v", i, got, ok, want)
				}
			}
			for _, outside := range []int64{model[0].Position - 1, model[len(model)-1].Position + 1} {
				if id, ok := h.find(outside); ok {
					t.Fatalf("found %v, which is not remembered", id)
				}
			}
		}
	})
}
