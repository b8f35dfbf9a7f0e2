// Package wire turns events and control messages into the bytes that clients read, and
// what clients send into commands.
//
// It is pure: no sockets, no goroutines, no state. docs/protocol.md describes the same
// bytes for those who write clients.
package wire
