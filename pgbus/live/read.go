package live

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
)

// identifier quotes a name.
func identifier(names ...string) string { return pgx.Identifier(names).Sanitize() }

// where is the filter as SQL.
func (p *plan) where(bus Bus) (string, []any) {
	condition, args := bus.Condition(nil, p.matcher, nil)
	return string(condition), args
}

// readGroups reads the whole state from the table, in a cut.
func (p *plan) readGroups(ctx context.Context, bus Bus, tx pgx.Tx) (groups, error) {
	all := make(groups)
	query, args := p.groupsQuery(bus)
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		if len(all) == maxGroups {
			return nil, errTooManyGroups
		}
		texts := make([]string, len(rows.RawValues()))
		for i, raw := range rows.RawValues() {
			texts[i] = string(raw) // null is empty
		}
		g, err := p.groupOf(texts)
		if err != nil {
			return nil, err
		}
		all[keyOf(g.values)] = g
	}
	return all, rows.Err()
}

// groupsQuery is for the group_by values, the number of rows, and for each aggregate what
// groupOf takes: all as text.
func (p *plan) groupsQuery(bus Bus) (string, []any) {
	var columns, by []string
	for _, c := range p.groupBy {
		columns = append(columns, "coalesce(to_json("+identifier(c.Name)+")::text, 'null')")
		by = append(by, identifier(c.Name))
	}
	columns = append(columns, "count(*)::text")
	for i, a := range p.definition.Aggregates {
		c := p.columns[i]
		if c.Name == "" {
			continue
		}
		name := identifier(c.Name)
		columns = append(columns, "count("+name+")::text")
		switch a.Function {
		case "sum", "avg":
			if c.Type != "numeric" {
				columns = append(columns, "sum("+name+")::text")
				break
			}
			columns = append(columns, "sum("+name+") filter (where "+name+"::text not in ('NaN', 'Infinity', '-Infinity'))::text")
			for _, odd := range oddNumbers {
				columns = append(columns, "count(*) filter (where "+name+"::text = '"+strings.Trim(odd, `"`)+"')::text")
			}
		case "min", "max":
			columns = append(columns, "to_json("+a.Function+"("+name+"))::text")
		}
	}
	where, args := p.where(bus)
	query := "select " + strings.Join(columns, ", ") + " from " + identifier(p.table.Schema, p.table.Name) + " where " + where
	if len(by) > 0 {
		query += " group by " + strings.Join(by, ", ")
	}
	return query, args
}

// groupOf reads one row of groupsQuery.
func (p *plan) groupOf(texts []string) (*group, error) {
	g := &group{cells: make([]cell, len(p.columns))}
	next := func() string {
		text := texts[0]
		texts = texts[1:]
		return text
	}
	var failure error
	count := func() (n int64) {
		if _, err := fmt.Sscan(next(), &n); err != nil {
			failure = fmt.Errorf("read count: %w", err)
		}
		return n
	}
	for _, c := range p.groupBy {
		g.values = append(g.values, canonical(next(), c.Kind))
	}
	g.rows = count()
	for i, a := range p.definition.Aggregates {
		if p.columns[i].Name == "" {
			continue
		}
		c := &g.cells[i]
		c.count = count()
		switch a.Function {
		case "sum", "avg":
			if text := next(); text != "" && !c.sum.add(text, 1) {
				return nil, fmt.Errorf("sum of %s is %q", a.Column, text)
			}
			for j := range c.odd {
				if p.columns[i].Type == "numeric" {
					c.odd[j] = count()
				}
			}
		case "min", "max":
			if text := next(); text != "" {
				if err := p.setExtreme(c, i, text); err != nil {
					return nil, err
				}
			}
		}
	}
	return g, failure
}

func keyOf(values []string) string {
	var b strings.Builder
	for _, value := range values {
		fmt.Fprintf(&b, "%d:%s", len(value), value)
	}
	return b.String()
}

// errHidden is the reason of a refusal.
var errHidden = errors.New("row-level security")

// readTable reads how many digits behind the point the columns' sums have, where their types say so. It
// refuses a table of which the role does not see all: events tell of all rows.
func (p *plan) readTable(ctx context.Context, tx pgx.Tx) error {
	var hidden bool
	if err := tx.QueryRow(ctx, "select row_security_active($1::text::regclass)", identifier(p.table.Schema, p.table.Name)).Scan(&hidden); err != nil {
		return err
	}
	if hidden {
		return trumpet.Refuse(errHidden, "row-level security hides rows of %s from the role that counts them; give the role BYPASSRLS, or use trumpet.live_query", p.table.Name)
	}
	rows, err := tx.Query(ctx, `
		select a.attname::text, substring(format_type(t.oid, case when t.typtype = 'd' then t.typtypmod else a.atttypmod end) from '[(]\d+,(\d+)[)]')::int
		  from pg_attribute a join pg_type t on t.oid = a.atttypid
		 where a.attrelid = to_regclass($1::text) and a.attnum > 0 and not a.attisdropped`, identifier(p.table.Schema, p.table.Name))
	if err != nil {
		return err
	}
	var (
		name  string
		scale *int32
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &scale}, func() error {
		for i, c := range p.columns {
			if c.Name == name && c.Type == "numeric" && scale != nil {
				p.scales[i] = int(*scale)
			}
		}
		return nil
	})
	return err
}

// maxReread bounds the groups whose extremes are read one by one; with more the whole table is read.
const maxReread = 100

// readExtremes reads the extremes of a group that were lost, in a cut: as JSON, empty for none. With an index
// on the group_by columns and the aggregate's it takes one look for each.
func (p *plan) readExtremes(ctx context.Context, bus Bus, tx pgx.Tx, g *group) ([]string, error) {
	var columns []string
	for i := range g.cells {
		if g.cells[i].lost {
			columns = append(columns, "coalesce(to_json("+p.definition.Aggregates[i].Function+"("+identifier(p.columns[i].Name)+"))::text, '')")
		}
	}
	where, args := p.where(bus)
	where = "(" + where + ")"
	for i, c := range p.groupBy {
		if g.values[i] == "null" {
			where += " and " + identifier(c.Name) + " is null"
			continue
		}
		text, err := plain(g.values[i])
		if err != nil {
			return nil, err
		}
		args = append(args, text)
		where += fmt.Sprintf(" and %s = $%d::text::%s", identifier(c.Name), len(args), c.Type)
	}
	rows, err := tx.Query(ctx, "select "+strings.Join(columns, ", ")+" from "+identifier(p.table.Schema, p.table.Name)+" where "+where, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (texts []string, err error) {
		for _, raw := range row.RawValues() {
			texts = append(texts, string(raw))
		}
		return texts, nil
	})
}

// find notes the extremes that readExtremes read.
func (p *plan) find(g *group, texts []string, at int64) error {
	for i := range g.cells {
		c := &g.cells[i]
		if !c.lost {
			continue
		}
		text := texts[0]
		texts = texts[1:]
		c.extreme, c.ties, c.lost, c.asOf = "", 0, false, at
		if text == "" {
			continue
		}
		if err := p.setExtreme(c, i, text); err != nil {
			return err
		}
	}
	return nil
}

// differ tells of the first group in which two states differ; an extreme that is known as of
// another position is left out.
func (p *plan) differ(kept, read groups, at int64) (string, bool) {
	for key, g := range read {
		other := kept[key]
		if other == nil {
			return fmt.Sprintf("group %v is missing", g.values), true
		}
		if what := p.differs(other, g, at); what != "" {
			return fmt.Sprintf("group %v: %s", g.values, what), true
		}
	}
	for key, g := range kept {
		if read[key] == nil {
			return fmt.Sprintf("group %v is too many", g.values), true
		}
	}
	return "", false
}

func (p *plan) differs(kept, read *group, at int64) string {
	if kept.rows != read.rows {
		return fmt.Sprintf("%d rows instead of %d", kept.rows, read.rows)
	}
	for i, a := range p.definition.Aggregates {
		k, r := &kept.cells[i], &read.cells[i]
		switch {
		case k.count != r.count, k.odd != r.odd, !k.sum.equal(&r.sum):
			return a.Name
		case !k.lost && k.asOf <= at && k.extreme != r.extreme && compareJSON(k.extreme, r.extreme) != 0:
			return a.Name
		}
	}
	return ""
}

// clone copies a state.
func (all groups) clone() groups {
	copied := make(groups, len(all))
	for key, g := range all {
		c := *g
		c.cells = make([]cell, len(g.cells))
		for i := range g.cells {
			c.cells[i] = g.cells[i]
			c.cells[i].sum = sum{scale: g.cells[i].sum.scale}
			c.cells[i].sum.unscaled.Set(&g.cells[i].sum.unscaled)
		}
		copied[key] = &c
	}
	return copied
}
