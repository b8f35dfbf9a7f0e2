package pgbus

import (
	"testing"

	"github.com/trumpet-realtime/trumpet"
)

// What the worker has not given yet it gives in its place.
func TestResultsThatComeYetAreLeftOut(t *testing.T) {
	t.Parallel()
	result := func(topic string, position int64) trumpet.Event {
		return trumpet.Event{ID: trumpet.EventID{Position: position}, Topic: topic, Op: trumpet.OpResult}
	}
	got := before([]trumpet.Event{result("pruned", 0), result("given", 7), result("comes", 8)}, trumpet.EventID{Position: 7})
	if len(got) != 2 || got[0].Topic != "pruned" || got[1].Topic != "given" {
		t.Errorf("got %v", got)
	}
}
