// Package live keeps live queries up: on one worker of all it runs those whose tables changed, and
// publishes what is new. It knows nothing of clients; a result comes back through the bus, on every
// worker.
//
// The live duty is an advisory lock, on a session of its own, through which results are published too: who
// has lost the session, and with it the duty, can publish nothing. A worker tries for the duty when
// it starts, when a heartbeat finds the lock free, and when whoever has it gives no sign of life
// for some seconds after a change that concerns it: then that session is ended.
//
// What a [Runner] is told by the bus it only notes, in bounded room, so delivery never waits. Without live
// queries, and while nothing changes, nothing is asked of Postgres.
//
// A query runs at once when something changed after a quiet time, and then once in its interval while
// changes come: a run makes true of its position all changes up to there. Its failure makes the value
// stale, which is published once; it is tried again after a pause, and at the next change.
package live
