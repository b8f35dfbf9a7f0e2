// Package hub keeps the recent events and drives any number of connections that follow
// them. It knows nothing of Postgres and HTTP.
//
// The recent events are a linked list of nodes, one for each Append, which never change
// after they were linked. What all connections are told, a reset, stale, live, is a node
// too, so that everybody hears it in its place. A place in the list is a cursor: a node's
// sequence number and an index in it.
//
// Connections are dealt to shards. A shard is one goroutine that owns its connections. Those
// with the same format and the same interests are a group. A shard looks once at each new
// event, finds in its index the groups that see it, and how (an update may move a row into a
// filter's view, or out of it), and writes what they see to each of their connections with one
// system call that never waits. It encodes nothing that another connection had encoded before,
// and copies nothing per connection.
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
// A snapshot is the rows of tables as of one place in the log. A newcomer that wants one is
// begun by it, and then resumes from that place like any other: so nothing is missing between
// the rows and the changes, and nothing comes twice, however old the snapshot is. That is why
// one read serves all that ask at about the same time. A live connection that asks for one is
// given all that it follows up to the snapshot's place first. Snapshots are read by the
// goroutine of the first drainer that needs them, a few at once, and bounded by their bytes.
//
// The newest results of live queries are kept for newcomers.
//
// When the log loses its tail, Rewind puts copies without the lost events into the list, in
// their places, and a node behind them that says so. What each client is told there depends
// on the newest id that it was given: see rewind.go.
//
// Goroutines: [New] starts one for each shard; a shard starts drainers; [Hub.Close] ends
// all of them and waits.
package hub
