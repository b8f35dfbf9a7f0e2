package trumpet

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Compile fits the conditions to the table's columns. Its error, a *Refusal, says
// what is wrong and what to do.
func (s Subscription) Compile(t Table) (*Matcher, error) {
	m := &Matcher{table: t, equality: -1}
	m.subscription = Subscription{Topic: s.Topic, Conditions: make([]Condition, len(s.Conditions))}
	for i, c := range s.Conditions {
		place := slices.IndexFunc(t.Columns, func(column Column) bool { return column.Name == c.Column })
		if place < 0 {
			return nil, Refuse(ErrFilter, "topic %s has no column %s; it has %s", s.Topic, shown(c.Column), columnList(t.Columns))
		}
		column := &t.Columns[place]
		if column.OldUnknown {
			return nil, Refuse(ErrFilter, "topic %s cannot be filtered by %s: its table is watched by the WAL, where only the columns that identify a row "+
				"are known before a change; the table's owner can run: alter table %s.%s replica identity full; and the same for each of its partitions, if it has any", s.Topic, shown(c.Column), t.Schema, t.Name)
		}
		if err := c.check(column); err != nil {
			return nil, err
		}
		c.Values = slices.Clone(c.Values)
		if c.Operator != Is {
			for j, text := range c.Values {
				v, err := parseOperand(column, text)
				if err != nil {
					return nil, err
				}
				c.Values[j] = v.write(column.Kind)
			}
		}
		m.subscription.Conditions[i] = c
	}
	// Values that were written differently may be one now.
	m.subscription.canonical()
	if n := len(m.subscription.appendFilter(nil)); n > MaxFilterBytes {
		return nil, refuseLength(s.Topic, n)
	}
	for _, c := range m.subscription.Conditions {
		place := slices.IndexFunc(t.Columns, func(column Column) bool { return column.Name == c.Column })
		m.conditions = append(m.conditions, newTest(c, &t.Columns[place], place))
	}
	m.chooseEquality()
	return m, nil
}

// check refuses what the column's kind cannot do.
func (c Condition) check(column *Column) error {
	switch {
	case !slices.Contains(Operators, c.Operator):
		return Refuse(ErrFilter, "there is no operator %s; there are %s", shown(string(c.Operator)), operatorList())
	case len(c.Values) == 0, len(c.Values) > 1 && c.Operator != In:
		return Refuse(ErrFilter, "column %s: %s cannot take %d values", shown(c.Column), c.Operator, len(c.Values))
	case c.Operator == Is && c.Values[0] == "null":
		return nil
	case c.Operator == Is && !slices.Contains([]string{"true", "false", "unknown"}, c.Values[0]):
		return Refuse(ErrFilter, "column %s: is takes null, true, false or unknown", shown(c.Column))
	case c.Operator == Is && column.Kind != KindBool:
		return Refuse(ErrFilter, "column %s has type %s; only a boolean can be is.%s", shown(c.Column), column.Type, c.Values[0])
	case column.Kind == KindOther:
		return Refuse(ErrFilter, "column %s has type %s, whose values filters cannot compare; is.null and not.is.null can be used", shown(c.Column), column.Type)
	case column.Kind == KindEnum && slices.Contains([]Operator{Lt, Lte, Gt, Gte}, c.Operator):
		return Refuse(ErrFilter, "column %s has type %s, an enum, which filters do not order; eq, neq, in and is can be used", shown(c.Column), column.Type)
	}
	return nil
}

// parseOperand reads a filter's value as one of the column.
func parseOperand(column *Column, text string) (v value, err error) {
	refuse := func(format string, args ...any) (value, error) {
		start := []any{shown(column.Name), column.Type, shown(text)}
		return value{}, Refuse(ErrFilter, "column %s has type %s: %s "+format, append(start, args...)...)
	}
	if !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
		return refuse("is not text that Postgres can hold")
	}
	ok := false
	switch column.Kind {
	case KindNumber:
		whole := column.Type != "numeric" && !strings.HasPrefix(column.Type, "numeric(")
		if v.number, ok = parseDecimal([]byte(text)); !ok && !whole {
			v.number, ok = parseDecimalName([]byte(properName(text)))
		}
		switch {
		case !ok && !whole:
			return refuse("is not a number, with at most %d as its exponent", maxExponent)
		case !ok, whole && len(v.number.fraction) > 0:
			return refuse("is not a whole number")
		case whole:
			bits := 64
			switch column.Type {
			case "smallint":
				bits = 16
			case "integer":
				bits = 32
			}
			if _, err := strconv.ParseInt(string(v.number.appendText(nil)), 10, bits); err != nil {
				return refuse("is too large for it")
			}
		}
	case KindFloat, KindReal:
		if v.float, ok = parseFloatOperand(text, column.Kind); !ok {
			return refuse("is not a number in its range")
		}
	case KindText:
		v.text = []byte(text)
	case KindChar:
		v.text = []byte(strings.TrimRight(text, " "))
	case KindBool:
		switch strings.ToLower(text) {
		case "true", "t", "yes", "y", "on", "1":
			v.ticks = 1
		case "false", "f", "no", "n", "off", "0":
		default:
			return refuse("is not true or false")
		}
	case KindDate, KindTime, KindTimestamp, KindTimestampTZ:
		if v.ticks, ok = parseTicks([]byte(text), column.Kind); !ok {
			return refuse("is not like %s", map[Kind]string{
				KindDate: "2026-11-26", KindTime: "12:34:56.789", KindTimestamp: "2026-11-26T12:34:56.789 without a zone",
				KindTimestampTZ: "2026-11-26T12:34:56.789Z or …+01:00 (in a URL a + is written %2B)",
			}[column.Kind])
		}
	case KindUUID:
		if v.text, ok = parseUUID(text); !ok {
			return refuse("is not like 5f3a09c1-8b1e-4c57-9d53-0f6c4f0e7a11")
		}
	case KindEnum:
		if column.Labels != nil && !slices.Contains(column.Labels, text) {
			return refuse("is none of its values, which are %s", list(column.Labels))
		}
		v.text = []byte(text)
	}
	return v, nil
}

// write writes the value as Postgres takes it, the same for equal values.
func (v *value) write(kind Kind) string {
	switch kind {
	case KindNumber:
		return string(v.number.appendText(nil))
	case KindFloat, KindReal:
		switch f := v.float; {
		case math.IsNaN(f):
			return "NaN"
		case math.IsInf(f, 0):
			return map[bool]string{true: "Infinity", false: "-Infinity"}[f > 0]
		case f == 0:
			return "0"
		default:
			return strconv.FormatFloat(f, 'g', -1, floatBits(kind))
		}
	case KindBool:
		return strconv.FormatBool(v.ticks != 0)
	case KindDate, KindTime, KindTimestamp, KindTimestampTZ:
		return formatTicks(v.ticks, kind)
	default:
		return string(v.text)
	}
}

// properName spells NaN and the infinities as Postgres writes them. It reads them in
// any case.
func properName(text string) string {
	switch strings.ToLower(text) {
	case "nan":
		return "NaN"
	case "infinity", "inf", "+infinity", "+inf":
		return "Infinity"
	case "-infinity", "-inf":
		return "-Infinity"
	}
	return text
}

func parseFloatOperand(text string, kind Kind) (f float64, ok bool) {
	switch properName(text) {
	case "NaN":
		return math.NaN(), true
	case "Infinity":
		return math.Inf(1), true
	case "-Infinity":
		return math.Inf(-1), true
	}
	if strings.Trim(text, "0123456789.eE+-") != "" {
		return 0, false // 0x1p-2, which Go reads too
	}
	f, err := strconv.ParseFloat(text, floatBits(kind))
	mantissa, _, _ := strings.Cut(strings.ToLower(text), "e")
	if err != nil || f == 0 && strings.ContainsAny(mantissa, "123456789") {
		return 0, false // Postgres does not round to zero or to infinity either
	}
	return f, true
}

// parseUUID reads what Postgres reads: 32 digits, with hyphens behind any group of
// four, in braces or not.
func parseUUID(text string) (canonical []byte, ok bool) {
	if strings.HasPrefix(text, "{") && strings.HasSuffix(text, "}") {
		text = text[1 : len(text)-1]
	}
	digits := 0
	for i := range len(text) {
		if text[i] == '-' && digits%4 == 0 && digits > 0 && digits < 32 && text[i-1] != '-' {
			continue
		}
		if _, isHex := unhex(text[i]); !isHex || digits == 32 {
			return nil, false
		}
		if digits == 8 || digits == 12 || digits == 16 || digits == 20 {
			canonical = append(canonical, '-')
		}
		canonical = append(canonical, strings.ToLower(text[i:i+1])...)
		digits++
	}
	return canonical, digits == 32
}

func columnList(columns []Column) string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.Name
	}
	return list(names)
}

// list names things for an error, but not hundreds.
func list(names []string) string {
	const most = 40
	if len(names) > most {
		names = append(slices.Clone(names[:most]), "…")
	}
	return strings.Join(names, ", ")
}

// quoted is for names and values in errors.
func quoted(s string) string { return strconv.QuoteToGraphic(s) }
