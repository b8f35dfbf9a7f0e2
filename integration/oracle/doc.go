// Package oracle runs the real binary against a private Postgres, breaks things, and compares what
// every client got with what the database says.
//
// A run is a row of storms, each followed by a rest. In a storm writers make random transactions, clients
// come, go, roam between the workers, read slowly, or vanish, and faults come and go, some at once. At
// rest nothing happens any more: everybody must have everything, and is compared. All choices come from
// one seed; how processes and packets interleave does not, so that a seed repeats a run's kind and not
// its every step.
//
// The truth is read by SQL alone, without the code that workers read with. Four things are compared
// with each other:
//
//   - what writers did. Each transaction notes in the table committed, which nobody watches, how many
//     events it must make. So the truth is known also of a transaction whose writer never learnt whether it
//     had committed.
//   - the log: every transaction with exactly its events, in one piece, and nothing else.
//   - clients with filters, which begin by snapshots and ask for more by frames: each event moves a row that
//     is there, or brings one that is not, as the filters say of the rows that the log has; and at rest their
//     rows equal SELECT … WHERE, and their results what the queries give.
//   - the other clients: the log, filtered by the client's topics, without a gap from where the client began or
//     was reset, over all its connections on all workers; each event byte for byte, and "more" right.
//     And each client's view of the tables, made as docs/protocol.md tells applications to, equals a SELECT.
//
// The invariants:
//
//	I1  each committed change reaches every client that follows its topic, or the client is reset, and
//	    there was a reason for that
//	I2  no event twice on a connection, none again after a resume
//	I3  the log's order, for everybody; transactions in one piece
//	I4  nothing that was not committed
//	I5  at rest every view equals the table
//	I6  at rest workers have the goroutines, descriptors and memory that they began with
//	I7  nobody gets a row that its filters do not take
//	I8  live again soon after the faults are over
//	I9  workers counted the endings, resets and resumes that clients saw
//	I10 a client's newest result of a live query never goes back, and at rest it is what the query gives
//
// Goroutines: [Run] starts one for each client and, in a storm, one for each writer and each fault; the
// fetcher has one for each table that it reads at the moment, a proxy one that accepts and two for each
// connection. Run waits for all of them.
package oracle
