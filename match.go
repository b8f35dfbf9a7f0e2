package trumpet

// Truth is what a condition is for a row.
type Truth uint8

// The truths: SQL's three, and Gone, which says that a column of the filter is not
// in the row, or not of its type: it was renamed, dropped or altered, and the
// matcher is of no use any more.
const (
	False Truth = iota
	True
	Unknown
	Gone
)

// Matcher is a subscription fitted to a table. It is never changed, and may be used
// by many goroutines at once.
type Matcher struct {
	subscription Subscription
	table        Table
}

// Compile fits the conditions to the table's columns. Its error, a *Refusal, says
// what is wrong and what to do.
func (s Subscription) Compile(t Table) (*Matcher, error) {
	return &Matcher{subscription: s, table: t}, nil
}

// Table returns the table that the matcher was made for.
func (m *Matcher) Table() Table { return m.table }

// Subscription returns the subscription with its values as Postgres writes them.
// Those that mean the same, as 1.0 and 1.00 do, have the same Key.
func (m *Matcher) Subscription() Subscription { return m.subscription }

// Match tells what the filter is for a row, in SQL's three-valued logic. It
// allocates nothing once the row is warm.
func (m *Matcher) Match(row *Row) Truth { return True }

// Equality returns the condition, if there is one, that lets matchers be found by
// hash: a row that the matcher takes has one of the values in that column. The
// values are in index form: IndexKey brings a row's value into the same form.
func (m *Matcher) Equality() (column string, values []string, ok bool) { return "", nil, false }

// IndexKey appends the index form of the row's value in the column of Equality to
// dst. It is the same for every matcher of a table whose Equality is on that column.
// True: here it is. Unknown: the value is null, so none of them takes the row.
// Gone: as Match would say for all of them. dst comes back unchanged then.
func (m *Matcher) IndexKey(dst []byte, row *Row) ([]byte, Truth) { return dst, Unknown }
