package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/trumpet-realtime/trumpet"
)

// maxGroups bounds an aggregate's groups.
const maxGroups = 10_000

var (
	errTooManyGroups = fmt.Errorf("there are more than %d groups", maxGroups)
	// errGone is a change that cannot be followed: the table is to be read anew.
	errGone = errors.New("a change cannot be followed")
)

// plan is an aggregate's definition, fitted to its table.
type plan struct {
	definition *definition
	table      trumpet.Table
	matcher    *trumpet.Matcher
	groupBy    []trumpet.Column
	columns    []trumpet.Column // of each aggregate; none for count(*)
	scales     []int            // of each aggregate's sum: digits behind the point; -1: as many as it needs
}

// newPlan fits a definition to its table.
func newPlan(d *definition, table trumpet.Table) (*plan, error) {
	p := &plan{definition: d, table: table, scales: make([]int, len(d.Aggregates))}
	subscription := trumpet.Subscription{Topic: table.Topic}
	if d.Filter != "" {
		var err error
		if subscription, err = trumpet.ParseSubscription(table.Topic + "?" + d.Filter); err != nil {
			return nil, err
		}
	}
	var err error
	if p.matcher, err = subscription.Compile(table); err != nil {
		return nil, err
	}
	for _, name := range d.GroupBy {
		c, err := p.column(name)
		if err != nil {
			return nil, err
		}
		p.groupBy = append(p.groupBy, c)
	}
	for i, a := range d.Aggregates {
		c, err := p.column(a.Column)
		if err != nil {
			return nil, err
		}
		p.columns = append(p.columns, c)
		if p.scales[i] = -1; c.Type != "numeric" {
			p.scales[i] = 0
		}
	}
	return p, nil
}

func (p *plan) column(name string) (trumpet.Column, error) {
	if name == "" {
		return trumpet.Column{}, nil
	}
	for _, c := range p.table.Columns {
		if c.Name == name {
			return c, nil
		}
	}
	return trumpet.Column{}, trumpet.Refuse(errGone, "topic %s has no column %q any more", p.table.Topic, name)
}

// group is the rows that are alike in all group_by columns.
type group struct {
	values []string // of the group_by columns, as JSON
	rows   int64
	cells  []cell
}

// cell is one aggregate of a group.
type cell struct {
	count int64 // of values that are not null
	sum   sum   // of those that are numbers
	// How many are no numbers: NaN, Infinity, -Infinity.
	odd [3]int64

	// The least or greatest value as JSON, "" for none; how many rows are known to have it, at
	// least; and the position as of which it was read from the table: changes up to there are in it.
	extreme string
	ties    int64
	asOf    int64
	lost    bool // the last row that was known to have it is gone: it has to be read
	beyond  *trumpet.Matcher
	equal   *trumpet.Matcher
}

// oddNumbers are the numbers that cannot be added, as JSON.
var oddNumbers = [3]string{`"NaN"`, `"Infinity"`, `"-Infinity"`}

// groups are an aggregate's state.
type groups map[string]*group

// contribution is what one row is for an aggregate.
type contribution struct {
	counts bool     // the filter takes it
	key    []byte   // of its group
	group  []string // its values; filled where a group is new
	values []string // of each aggregate's column, as JSON
}

// equal reports whether two rows are the same for an aggregate.
func (c *contribution) equal(other *contribution) bool {
	return c.counts == other.counts && string(c.key) == string(other.key) && slices.Equal(c.values, other.values)
}

// none is the state of an empty table.
func (p *plan) none() groups {
	if len(p.groupBy) > 0 {
		return make(groups)
	}
	return groups{"": {cells: make([]cell, len(p.columns))}}
}

// contributionOf reads a row. The strings it gives are views that are copied where they are kept.
func (p *plan) contributionOf(row *trumpet.Row, c *contribution) error {
	c.counts, c.key, c.group, c.values = false, c.key[:0], c.group[:0], c.values[:0]
	switch p.matcher.Match(row) {
	case trumpet.Gone:
		return errGone
	case trumpet.True:
		c.counts = true
	default:
		return nil
	}
	for i := range p.groupBy {
		raw, ok := row.Value(p.groupBy[i].Name)
		if !ok {
			return errGone
		}
		value := canonical(string(raw), p.groupBy[i].Kind)
		c.group = append(c.group, value)
		c.key = append(append(strconv.AppendInt(c.key, int64(len(value)), 10), ':'), value...)
	}
	for i := range p.columns {
		value := ""
		if p.columns[i].Name != "" {
			raw, ok := row.Value(p.columns[i].Name)
			if !ok {
				return errGone
			}
			value = string(raw)
		}
		c.values = append(c.values, value)
	}
	return nil
}

// canonical makes equal values one text: 1.50 and 1.5.
func canonical(raw string, kind trumpet.Kind) string {
	if kind == trumpet.KindNumber && strings.Contains(raw, ".") {
		raw = strings.TrimRight(strings.TrimRight(raw, "0"), ".")
		if raw == "-0" {
			raw = "0"
		}
	}
	return raw
}

// apply adds a row to its group, n = 1, or takes it away, n = -1, at a position.
func (p *plan) apply(all groups, c *contribution, n, position int64) error {
	g := all[string(c.key)]
	if g == nil {
		if len(all) >= maxGroups {
			return errTooManyGroups
		}
		g = &group{values: slices.Clone(c.group), cells: make([]cell, len(p.columns))}
		all[string(c.key)] = g
	}
	g.rows += n
	for i := range g.cells {
		if err := p.applyValue(&g.cells[i], i, c.values[i], n, position); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) applyValue(c *cell, i int, value string, n, position int64) error {
	if value == "null" || p.columns[i].Name == "" {
		return nil
	}
	c.count += n
	switch p.definition.Aggregates[i].Function {
	case "sum", "avg":
		if odd := slices.Index(oddNumbers[:], value); odd >= 0 {
			c.odd[odd] += n
		} else if !c.sum.add(value, n) {
			return errGone
		}
	case "min", "max":
		if position > c.asOf {
			return p.applyExtreme(c, i, value, n)
		}
	}
	return nil
}

func (p *plan) applyExtreme(c *cell, i int, value string, n int64) error {
	if c.count == 0 { // now it is known again
		c.extreme, c.ties, c.lost = "", 0, false
		return nil
	}
	switch {
	case c.lost:
		return nil
	case c.extreme == "" && n > 0 && c.count == 1:
		return p.setExtreme(c, i, value)
	case c.extreme == "":
		c.lost = true
		return nil
	}
	var row trumpet.Row
	if err := row.Parse(appendMember(nil, p.columns[i].Name, value)); err != nil {
		return errGone
	}
	switch {
	case n > 0 && c.beyond.Match(&row) == trumpet.True:
		return p.setExtreme(c, i, value)
	case c.equal.Match(&row) != trumpet.True:
	case n > 0:
		c.ties++
	default:
		if c.ties--; c.ties <= 0 {
			c.lost = true
		}
	}
	return nil
}

// setExtreme makes a value the extreme. What is beyond it, or equal to it, is asked as a filter asks.
func (p *plan) setExtreme(c *cell, i int, value string) error {
	c.extreme, c.ties, c.lost = strings.Clone(value), 1, false
	operator := trumpet.Gt
	if p.definition.Aggregates[i].Function == "min" {
		operator = trumpet.Lt
	}
	text, err := plain(value)
	if err != nil {
		return errGone
	}
	column := p.columns[i].Name
	ask := func(o trumpet.Operator) (*trumpet.Matcher, error) {
		return trumpet.Subscription{Topic: p.table.Topic, Conditions: []trumpet.Condition{{Column: column, Operator: o, Values: []string{text}}}}.Compile(p.table)
	}
	if c.beyond, err = ask(operator); err == nil {
		c.equal, err = ask(trumpet.Eq)
	}
	return err
}

// plain is a JSON scalar as Postgres takes it.
func plain(value string) (string, error) {
	if !strings.HasPrefix(value, `"`) {
		return value, nil
	}
	var text string
	err := json.Unmarshal([]byte(value), &text)
	return text, err
}

func appendMember(dst []byte, name, value string) []byte {
	quoted, err := json.Marshal(name)
	if err != nil {
		panic(err) // a string
	}
	dst = append(append(append(dst, '{'), quoted...), ':')
	return append(append(dst, value...), '}')
}

// settle removes a group that has no rows; false if what was counted cannot be.
func (p *plan) settle(all groups, key []byte) bool {
	g := all[string(key)]
	if g == nil {
		return true
	}
	if g.rows < 0 || slices.ContainsFunc(g.cells, func(c cell) bool { return c.count < 0 || c.count > g.rows }) {
		return false
	}
	if g.rows == 0 && len(p.groupBy) > 0 {
		delete(all, string(key))
	}
	return true
}

// result is the rows, ordered by the group_by columns: numbers by value, others by bytes, null last.
func (p *plan) result(all groups) []byte {
	ordered := make([]*group, 0, len(all))
	for _, g := range all {
		ordered = append(ordered, g)
	}
	slices.SortFunc(ordered, func(a, b *group) int {
		for i := range p.groupBy {
			if c := compareJSON(a.values[i], b.values[i]); c != 0 {
				return c
			}
		}
		return 0
	})
	dst := []byte{'['}
	for i, g := range ordered {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = p.appendGroup(dst, g)
	}
	return append(dst, ']')
}

func (p *plan) appendGroup(dst []byte, g *group) []byte {
	dst = append(dst, '{')
	member := func(name string) {
		if dst[len(dst)-1] != '{' {
			dst = append(dst, ',')
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			panic(err) // a string
		}
		dst = append(append(dst, quoted...), ':')
	}
	for i := range p.groupBy {
		member(p.groupBy[i].Name)
		dst = append(dst, g.values[i]...)
	}
	for i, a := range p.definition.Aggregates {
		member(a.Name)
		dst = p.appendValue(dst, a.Function, i, g)
	}
	return append(dst, '}')
}

func (p *plan) appendValue(dst []byte, function string, i int, g *group) []byte {
	c := &g.cells[i]
	switch {
	case function == "count" && p.columns[i].Name == "":
		return strconv.AppendInt(dst, g.rows, 10)
	case function == "count":
		return strconv.AppendInt(dst, c.count, 10)
	case c.count == 0:
		return append(dst, "null"...)
	case function == "min", function == "max":
		return append(dst, c.extreme...)
	case c.odd[0] > 0 || c.odd[1] > 0 && c.odd[2] > 0:
		return append(dst, oddNumbers[0]...)
	case c.odd[1] > 0:
		return append(dst, oddNumbers[1]...)
	case c.odd[2] > 0:
		return append(dst, oddNumbers[2]...)
	case function == "avg":
		return c.sum.appendAverage(dst, c.count, p.scales[i])
	}
	return c.sum.appendText(dst, p.scales[i])
}

// compareJSON orders scalars.
func compareJSON(a, b string) int {
	aNull, bNull := a == "null", b == "null"
	switch {
	case a == b:
		return 0
	case aNull || bNull:
		if aNull {
			return 1
		}
		return -1
	}
	var difference sum
	if difference.add(a, 1) && difference.add(b, -1) {
		return difference.unscaled.Sign()
	}
	return strings.Compare(a, b)
}
