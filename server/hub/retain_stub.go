package hub

import "github.com/trumpet-realtime/trumpet"

// Retain is still to come.
func (h *Hub) Retain([]trumpet.Event) {}
