// Package trumpet is the vocabulary of the house: what an event, an event id, a
// topic with its filter and an ending of a connection are.
//
// It imports the standard library only, starts no goroutine and does no input or
// output. Package pgbus makes events out of what Postgres recorded, package server
// gives them to browsers; both speak in the words of this package and neither
// imports the other.
package trumpet
