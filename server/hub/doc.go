// Package hub keeps the recent events and drives any number of connections that follow
// them. It knows nothing of Postgres and HTTP.
//
// The recent events are a linked list of nodes, one for each Append, which never change
// after they were linked. What all connections are told, a reset, stale, live, is a node
// too, so that everybody hears it in its place. A place in the list is a cursor: a node's
// sequence number and an index in it.
//
// Connections are dealt to shards. A shard is one goroutine that owns its connections. It
// walks the new nodes once for each group of connections with the same format and topics,
// and writes what matched to every one of them with one system call that never waits. It
// encodes nothing that another connection had encoded before, and copies nothing per
// connection.
//
// A connection is in one of these states, and only its shard moves it:
//
//	waiting   nothing came from the bus yet
//	live      it has all that its shard has given; it is in a group
//	drained   a goroutine of its own, the drainer, writes to it, because it lags, resumes
//	          or is told its end; the drainer owns its cursor and its socket
//	ended     all that it will be told was written
//
// A drainer reads by the connection's cursor: from the log while that lies before the
// list, then from the list; when it has reached the list's end it gives the connection
// back, and the shard closes the small gap that may have come meanwhile. Catching up of a
// slow client, replay for one that came back and live delivery are thus one order of
// bytes, and nothing is queued for anybody. A lagging connection whose cursor falls off
// the list, or that lags or takes too little for too long, is ended as slow.
//
// However many drainers there are, their memory is bounded in total. They take turns, in
// order, at a fixed number of outputs, and whoever's client does not take a chunk soon gives
// its turn and its page back and waits with the one frame that was cut. Pages of the log are
// read once for all who need them, encoded once, written from where they are, and bounded
// by their bytes; turns keep those who came at once together in them.
//
// When the log loses its tail, Rewind puts copies without the lost events into the list, in
// their places, and a node behind them that says so. What each client is told there depends
// on the newest id that it was given: see rewind.go.
//
// Goroutines: [New] starts one for each shard; a shard starts drainers; [Hub.Close] ends
// all of them and waits.
package hub
