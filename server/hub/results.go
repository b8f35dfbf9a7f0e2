package hub

import "github.com/trumpet-realtime/trumpet"

// retain keeps a live query's result for newcomers: a copy, so that it does not keep what
// else came with it.
func (s *shard) retain(e *trumpet.Event) {
	kept := *e
	s.retained[kept.Topic] = &entry{event: &kept}
}

// results appends the newest results of the live queries that a connection follows and did
// not follow before. They have no id: they are older than the place that the client is told.
func (s *shard) results(b []byte, c *Conn, former *interests) []byte {
	if len(s.retained) == 0 {
		return b
	}
	for _, interest := range c.reader.list {
		topic := interest.Subscription.Topic
		if former != nil && former.views[topic] != nil {
			continue
		}
		if e := s.retained[topic]; e != nil {
			b = append(b, e.encode(c.reader.format, anonymous, false)...)
			s.hub.stats.deliveries.Add(1)
		}
	}
	return b
}

// forgetResults forgets what became void at n. The bus gives anew what stands.
func (s *shard) forgetResults(n *node) {
	for topic, e := range s.retained {
		if n.notice == resetNotice || e.event.ID.Compare(n.head) > 0 {
			delete(s.retained, topic)
		}
	}
}
