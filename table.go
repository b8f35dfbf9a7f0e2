package trumpet

import "strings"

// Table is a watched table as a filter sees it.
type Table struct {
	Topic        string
	Schema, Name string
	Key          []string // the columns that identify a row; none if nothing does
	Columns      []Column // the watched ones, in the table's order
}

// Column is a column of a watched table.
type Column struct {
	Name string
	// Type is what format_type() gives; for a domain, that of the type below it.
	// A type that is not in pg_catalog must be written with its schema.
	Type string
	Kind Kind
	// OldUnknown: events do not tell what it was before an update or a delete.
	OldUnknown bool
	// Labels are an enum's values. Without them a filter's values are not checked.
	Labels []string
}

// Kind says how a column's values are compared.
type Kind uint8

// The kinds. KindOther's values cannot be compared: there is only is.null.
const (
	KindOther       Kind = iota
	KindNumber           // smallint, integer, bigint, numeric: exactly
	KindFloat            // double precision
	KindReal             // real: values are rounded to it first
	KindText             // text, varchar: by bytes, as COLLATE "C" does
	KindChar             // char(n): as text without the blanks at its end
	KindBool             // false is less than true
	KindDate             // with infinity, as the three below
	KindTime             // without time zone
	KindTimestamp        // without time zone
	KindTimestampTZ      // values without a zone are in UTC
	KindUUID
	KindEnum // equal or not, no order
)

// KindOf returns the kind of a type by what format_type() calls it. It cannot know
// enums: whoever reads the catalog sets KindEnum where pg_type.typtype is 'e'.
func KindOf(formatType string) Kind {
	if strings.HasSuffix(formatType, "]") {
		return KindOther
	}
	name, _, _ := strings.Cut(formatType, "(") // numeric(10,2)
	switch name {
	case "smallint", "integer", "bigint", "numeric":
		return KindNumber
	case "double precision":
		return KindFloat
	case "real":
		return KindReal
	case "text", "character varying":
		return KindText
	case "character", "bpchar":
		return KindChar
	case "boolean":
		return KindBool
	case "date":
		return KindDate
	case "uuid":
		return KindUUID
	}
	head, zone, _ := strings.Cut(formatType, " ") // timestamp(3) with time zone
	name, _, _ = strings.Cut(head, "(")
	switch name + " " + zone {
	case "time without time zone":
		return KindTime
	case "timestamp without time zone":
		return KindTimestamp
	case "timestamp with time zone":
		return KindTimestampTZ
	}
	return KindOther
}
