// Package integration holds tests of the whole of Trumpet: the real binary, real Postgres,
// real sockets, real nginx and a real browser.
//
// Workers are processes that a test starts and ends. Each test client has one goroutine,
// which ends with its connection; the test that dialled it waits for it.
package integration
