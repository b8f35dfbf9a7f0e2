// Package wal turns what Postgres's output plugin pgoutput says of the write-ahead log into the records that
// triggers would have written. It opens no connection and starts no goroutine.
//
// A [Decoder] takes the messages of one replication stream in their order and gives whole transactions, in
// the order of their commits. What it needs to know beyond the stream it asks for: how the values of types
// that are not built in are written as JSON, and which table a partition belongs to. Both are asked
// of the catalog as it is now; if that has moved on so far that a row cannot be understood, the table's
// changes in that transaction become a bulk event, which is always true.
//
// How the stream looks: PostgreSQL manual, 55.4 (streaming replication protocol) and 55.9 (logical
// replication message formats), with protocol version 1, so that transactions come whole and only once
// they are committed.
package wal
