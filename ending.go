package trumpet

// Ending is why a worker ends a client's connection. Every ending is one of the
// values below; docs/protocol.md lists them for clients.
type Ending struct {
	// Code is the WebSocket close code (RFC 6455, section 7.4.2: 4000–4999 are
	// for private use). From 4000 to 4499 the client comes back with its last
	// id; from 4500 on it does not, because coming back cannot help.
	Code int
	// Name is what the SSE error event and the counters call it.
	Name string
	// Message tells a person what happened and what to do.
	Message string
}

// Retry reports whether the client should come back.
func (e Ending) Retry() bool { return e.Code < 4500 }

// The endings.
var (
	EndingDraining      = Ending{4001, "draining", "this worker is shutting down; connect again and go on from your last id"}
	EndingUnresponsive  = Ending{4002, "unresponsive", "no answer to a ping; connect again and go on from your last id"}
	EndingUnavailable   = Ending{4003, "unavailable", "the log could not be read; connect again and go on from your last id"}
	EndingSchemaChanged = Ending{4004, "schema_changed", "a column of the filter was renamed, dropped or given another type; connect again and load anew"}
	EndingSlow          = Ending{4008, "slow", "this client read too slowly; connect again and go on from your last id"}
	EndingLimit         = Ending{4009, "limit", "this worker has as many connections as it may; connect again later"}
	EndingBadRequest    = Ending{4500, "bad_request", "the client sent something that is not in the protocol"}
	EndingUnauthorized  = Ending{4501, "unauthorized", "this client may not do that"}
	EndingTooLarge      = Ending{4502, "too_large", "the snapshot has too many rows; ask for fewer with a filter"}
)

// Endings lists every ending, for counters and documentation.
var Endings = []Ending{
	EndingDraining, EndingUnresponsive, EndingUnavailable, EndingSchemaChanged, EndingSlow, EndingLimit,
	EndingBadRequest, EndingUnauthorized, EndingTooLarge,
}
