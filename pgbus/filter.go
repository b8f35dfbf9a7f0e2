package pgbus

import (
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
)

// appendCondition appends a matcher's filter as a boolean expression to dst, and
// its values to args, numbered behind those that are there already. Column names
// stand alone: the query must have one table only. The expression is true for
// exactly the rows that the matcher takes, and null where it says Unknown; without
// conditions it is true. It is a chain of and: in parentheses it can be joined by or.
func appendCondition(dst []byte, m *trumpet.Matcher, args []any) ([]byte, []any) {
	conditions := m.Subscription().Conditions
	if len(conditions) == 0 {
		return append(dst, "true"...), args
	}
	columns := m.Table().Columns
	for i, c := range conditions {
		if i > 0 {
			dst = append(dst, " and "...)
		}
		if c.Not {
			dst = append(dst, "not "...)
		}
		for j := range columns {
			if columns[j].Name == c.Column {
				dst, args = appendComparison(dst, c, &columns[j], args)
				break
			}
		}
	}
	return dst, args
}

var sqlOperators = map[trumpet.Operator]string{
	trumpet.Eq: "=", trumpet.Neq: "<>", trumpet.Lt: "<", trumpet.Lte: "<=", trumpet.Gt: ">", trumpet.Gte: ">=",
}

// appendComparison appends one condition, in parentheses.
func appendComparison(dst []byte, c trumpet.Condition, column *trumpet.Column, args []any) ([]byte, []any) {
	name := pgx.Identifier{c.Column}.Sanitize()
	dst = append(dst, '(')
	if c.Operator == trumpet.Is {
		return append(appendIs(dst, name, column.Type, c.Values[0]), ')'), args
	}
	typ := castType(column)
	if column.Kind == trumpet.KindEnum && typ == "text" {
		name += "::text"
	}
	// The value goes as text, so that Postgres reads it, and not the driver.
	var operator, value string
	if c.Operator == trumpet.In {
		args = append(args, c.Values)
		operator, value = " = ", "any($"+strconv.Itoa(len(args))+"::text[]"
		if typ != "text" {
			value += "::" + typ + "[]"
		}
		value += ")"
	} else {
		args = append(args, c.Values[0])
		operator, value = " "+sqlOperators[c.Operator]+" ", "$"+strconv.Itoa(len(args))+"::text"
		if typ != "text" {
			value += "::" + typ
		}
	}
	if column.Kind != trumpet.KindText && column.Kind != trumpet.KindChar {
		return append(dst, name+operator+value+")"...), args
	}
	// By bytes, whatever the column's collation is. An index in that collation is of
	// use for equality only, and only if the condition is written in it too: what is
	// equal by bytes is equal in every collation.
	if !c.Not && (c.Operator == trumpet.Eq || c.Operator == trumpet.In) {
		dst = append(dst, name+operator+value+" and "...)
	}
	return append(dst, name+` collate "C"`+operator+value+")"...), args
}

// appendIs appends what is.null and its like ask: whether events show the column as
// null. A composite value of nulls is none, so "is null" would not do; and a json
// column may hold JSON's null.
func appendIs(dst []byte, name, typ, what string) []byte {
	switch {
	case what != "null":
		return append(dst, name+" is "+what...)
	case typ == "json" || typ == "jsonb":
		return append(dst, name+" is null or "+typ+"_typeof("+name+") = 'null'"...)
	}
	return append(dst, name+" is not distinct from null"...)
}

// castType returns what a filter's values are cast to: the column's type without what
// would round them or cut them off. Enums whose values nobody checked are compared as
// text: one that the enum does not have would be an error.
func castType(column *trumpet.Column) string {
	switch column.Kind {
	case trumpet.KindNumber:
		typ, _, _ := strings.Cut(column.Type, "(")
		return typ
	case trumpet.KindFloat:
		return "double precision"
	case trumpet.KindReal:
		return "real"
	case trumpet.KindChar:
		return "bpchar"
	case trumpet.KindBool:
		return "boolean"
	case trumpet.KindDate:
		return "date"
	case trumpet.KindTime:
		return "time"
	case trumpet.KindTimestamp:
		return "timestamp"
	case trumpet.KindTimestampTZ:
		return "timestamptz"
	case trumpet.KindUUID:
		return "uuid"
	case trumpet.KindEnum:
		if column.Labels != nil {
			return column.Type
		}
	}
	return "text"
}
