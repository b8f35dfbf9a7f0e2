package trumpet

import (
	"errors"
	"fmt"
)

// Why a client cannot go on from the id it gave. Whoever reads the log returns
// one of these; the client gets an explicit reset, never silence.
var (
	// ErrPruned: the log no longer reaches back that far.
	ErrPruned = errors.New("the log no longer reaches back to that event id")
	// ErrUnknownID: no such event in this log: another database, or a position
	// that a fail-over or a crash caused to be assigned anew.
	ErrUnknownID = errors.New("this log has no event with that id")
)

// Why a client cannot have what it asked for. They come inside of a Refusal.
var (
	// ErrFilter: a subscription that is not written as one, or whose filter does
	// not fit its table.
	ErrFilter = errors.New("the filter cannot be used")
	// ErrNotReadable: the worker's role may not SELECT from the table.
	ErrNotReadable = errors.New("the table cannot be read")
	// ErrTooLarge: more rows, or more bytes, than a snapshot may have.
	ErrTooLarge = errors.New("the snapshot is too large")
)

// Refusal is an error whose text is meant for the client: it says what is wrong
// and what to do, and holds nothing that only an operator may know.
type Refusal struct {
	// Reason is one of the errors above, for errors.Is.
	Reason error
	// Message is the whole text.
	Message string
}

func (r *Refusal) Error() string { return r.Message }

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Reason }

// Refuse returns a *Refusal with the message that fmt.Sprintf makes.
func Refuse(reason error, format string, args ...any) error {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}
