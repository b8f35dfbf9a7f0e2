package trumpet

import "errors"

// Why a client cannot go on from the id it gave. Whoever reads the log returns
// one of these; the client gets an explicit reset, never silence.
var (
	// ErrPruned: the log no longer reaches back that far.
	ErrPruned = errors.New("the log no longer reaches back to that event id")
	// ErrUnknownID: no such event in this log: another database, or a position
	// that a fail-over or a crash caused to be assigned anew.
	ErrUnknownID = errors.New("this log has no event with that id")
)
