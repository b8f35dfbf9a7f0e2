package trumpet

// Value returns a column's value as it stands in the row's JSON; false if the row has no such column.
func (r *Row) Value(column string) (json []byte, ok bool) {
	for i := range r.members {
		if string(r.members[i].name) == column {
			return r.members[i].raw, true
		}
	}
	return nil, false
}
