// Package trumpettest runs the real binary and follows it as a client, for tests and for the
// soak: it knows no testing.T, and gives back what went wrong.
//
// A [Worker] is a process of `trumpet serve`; one goroutine waits for it, and Stop and Kill wait
// for that one. A [Subscriber] is one connection, and has no goroutine: nothing is read before
// [Subscriber.Next] is called, so that a test can be as slow a reader as it likes.
//
// Processes end when this one ends, even by a panic or SIGKILL. Linux ties a child to the thread that
// started it; so one thread, which stays until this process ends, starts all of them.
package trumpettest
