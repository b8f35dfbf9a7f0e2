package trumpet

import "slices"

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
	conditions   []test
	equality     int // which of the conditions; -1: none
	values       []string
}

// test is a condition, ready to be used.
type test struct {
	name []byte
	hint int // the column's place in the table, and most often in the row
	kind Kind
	not  bool

	// For Is: what is True. For the others these are what a value may be,
	// compared with the operand.
	is                   string
	less, equal, greater bool
	operand              value

	among []value             // for In
	index map[string]struct{} // for In with many values: their index forms
}

// fewValues is how many values are compared one after the other.
const fewValues = 8

func newTest(c Condition, column *Column, place int) test {
	t := test{name: []byte(c.Column), hint: place, kind: column.Kind, not: c.Not}
	switch c.Operator {
	case Is:
		t.is = c.Values[0]
	case Eq:
		t.equal = true
	case Neq:
		t.less, t.greater = true, true
	case Lt:
		t.less = true
	case Lte:
		t.less, t.equal = true, true
	case Gt:
		t.greater = true
	case Gte:
		t.greater, t.equal = true, true
	}
	if c.Operator == Is {
		return t
	}
	if c.Operator == In && len(c.Values) > fewValues {
		t.index = make(map[string]struct{}, len(c.Values))
	}
	for _, text := range c.Values {
		v, _ := parseOperand(column, text) // it was checked, and is written as it can be read
		t.operand = v
		if c.Operator == In {
			t.among = append(t.among, v)
		}
		if t.index != nil {
			t.index[string(v.appendIndex(nil, t.kind))] = struct{}{}
		}
	}
	return t
}

// Table returns the table that the matcher was made for.
func (m *Matcher) Table() Table { return m.table }

// Subscription returns the subscription with its values as Postgres writes them.
// Those that mean the same, as 1.0 and 1.00 do, have the same Key.
func (m *Matcher) Subscription() Subscription { return m.subscription }

// Match tells what the filter is for a row, in SQL's three-valued logic. It
// allocates nothing once the row is warm.
func (m *Matcher) Match(row *Row) Truth {
	truth := True // no condition is passed over: the last may be Gone
	for i := range m.conditions {
		switch m.conditions[i].match(row) {
		case Gone:
			return Gone
		case False:
			truth = False
		case Unknown:
			if truth == True {
				truth = Unknown
			}
		}
	}
	return truth
}

// match tells what the condition is for a row.
func (t *test) match(row *Row) Truth {
	i := row.find(t.name, t.hint)
	if i < 0 {
		return Gone
	}
	m := &row.members[i]
	var holds bool
	switch {
	case t.is == "null":
		holds = isNull(m.raw)
	case t.is != "":
		truth := row.read(m, t.kind)
		if truth == Gone {
			return Gone
		}
		switch t.is {
		case "true":
			holds = truth == True && m.value.ticks == 1
		case "false":
			holds = truth == True && m.value.ticks == 0
		default:
			holds = truth == Unknown
		}
	default:
		if truth := row.read(m, t.kind); truth != True {
			return truth
		}
		holds = t.holds(row, &m.value)
	}
	if holds != t.not {
		return True
	}
	return False
}

func (t *test) holds(row *Row, v *value) bool {
	if t.index != nil {
		row.key = v.appendIndex(row.key[:0], t.kind)
		_, found := t.index[string(row.key)]
		return found
	}
	for i := range t.among {
		if v.compare(t.kind, &t.among[i]) == 0 {
			return true
		}
	}
	if t.among != nil {
		return false
	}
	switch c := v.compare(t.kind, &t.operand); {
	case c < 0:
		return t.less
	case c > 0:
		return t.greater
	default:
		return t.equal
	}
}

// chooseEquality takes the equality that the fewest rows may be expected to fulfil:
// few values, and not one of a few that all rows share.
func (m *Matcher) chooseEquality() {
	least := 0
	for i, c := range m.subscription.Conditions {
		if c.Not || c.Operator != Eq && c.Operator != In {
			continue
		}
		cost := 10 * len(c.Values)
		switch m.conditions[i].kind {
		case KindBool:
			cost *= 1000
		case KindEnum:
			cost *= 100
		}
		if slices.Contains(m.table.Key, c.Column) {
			cost /= 10
		}
		if m.equality >= 0 && cost >= least {
			continue
		}
		m.equality, least = i, cost
	}
	if m.equality < 0 {
		return
	}
	t := &m.conditions[m.equality]
	values := t.among
	if values == nil {
		values = []value{t.operand}
	}
	for i := range values {
		m.values = append(m.values, string(values[i].appendIndex(nil, t.kind)))
	}
}

// Equality returns the condition, if there is one, that lets matchers be found by
// hash: a row that the matcher takes has one of the values in that column. The
// values are in index form: IndexKey brings a row's value into the same form.
func (m *Matcher) Equality() (column string, values []string, ok bool) {
	if m.equality < 0 {
		return "", nil, false
	}
	return m.subscription.Conditions[m.equality].Column, m.values, true
}

// IndexKey appends the index form of the row's value in the column of Equality to
// dst. It is the same for every matcher of a table whose Equality is on that column.
// True: here it is. Unknown: the value is null, so none of them takes the row.
// Gone: as Match would say for all of them. dst comes back unchanged then.
func (m *Matcher) IndexKey(dst []byte, row *Row) ([]byte, Truth) {
	if m.equality < 0 {
		return dst, Unknown
	}
	t := &m.conditions[m.equality]
	i := row.find(t.name, t.hint)
	if i < 0 {
		return dst, Gone
	}
	truth := row.read(&row.members[i], t.kind)
	if truth == True {
		dst = row.members[i].value.appendIndex(dst, t.kind)
	}
	return dst, truth
}
