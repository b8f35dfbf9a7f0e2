// Package pgbus reads every committed event from Postgres, in the log's order, each once,
// and keeps doing so; and it publishes. It knows nothing of HTTP.
//
// A [Bus] gives events to one [Sink]. What it rests on:
//
//   - The log in Postgres is the authority. Its positions are contiguous, so a gap proves a
//     miss, and a position's random tag tells a history that was replaced.
//   - LISTEN is committed before the log's head is read; so what comes after the head is
//     heard, and what came before is read. The same holds after every reconnect.
//   - A notification is trusted if it carries the cluster's signature, because any role
//     may NOTIFY; all others are counted and dropped.
//   - The listening session is never inside a transaction, and is only read and asked for a
//     heartbeat; whatever takes time is done by others.
//
// States, seen by the sink: Reset, then Append… and Live once it has caught up; Stale when the
// listening session is lost, then Append… and Live again after the reconnect; a second Reset
// only if the log lost what had been given already.
//
// [Bus.Run] owns all goroutines and returns when they have ended:
//
//	listener   owns the listening session, reconnects, copies what arrives into the inbox
//	deliverer  takes from the inbox, reads gaps from the log, calls the sink
//	sequencer  has sequencer duty or waits for it, and prunes while it has it
//	answerer   answers other workers' questions
package pgbus
