package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

// MessagePrefix is that of the logical decoding messages that trumpet.place leaves between changes, where a record of a
// trigger or a broadcast stands.
const MessagePrefix = "trumpet"

// Decoder turns the messages of one stream into transactions. It is one goroutine's.
type Decoder struct {
	db     Querier
	types  *Types
	tables Tables

	relations map[uint32]*relation
	roots     map[uint32]uint32 // of partitions: the watched tables that they belong to

	began   *pglogrepl.BeginMessage // nil between transactions
	builder builder
	changed bool // the settings, in this transaction
	failed  int

	before, after []byte // rows, reused
}

// NewDecoder returns a decoder for a stream that begins where the settings are these. It asks the catalog
// through db, between two messages.
func NewDecoder(db Querier, tables Tables) *Decoder {
	return &Decoder{
		db:        db,
		types:     NewTypes(),
		tables:    tables,
		relations: map[uint32]*relation{},
		roots:     map[uint32]uint32{},
	}
}

// relation is a table or partition as the stream has described it, and what is shown of it.
type relation struct {
	id         uint32
	name       string
	isSettings bool
	full       bool // REPLICA IDENTITY FULL: the row before a change is known whole
	columns    []column

	table       *Table // nil: not watched
	isPartition bool   // and this is a partition of it
	resolved    bool   // table is known
	lost        bool   // it was a partition of a table that it does not belong to any more
}

type column struct {
	name     string
	member   []byte // the name as JSON, with the colon
	oid      uint32 // of the type
	identity bool
	shown    bool
}

// Decode takes the next message, and its place in the WAL. It returns a transaction with the message that
// commits it, else nil. After an error the stream cannot be gone on with.
func (d *Decoder) Decode(ctx context.Context, at pglogrepl.LSN, data []byte) (*Transaction, error) {
	if d.count(at, data) {
		return nil, nil
	}
	message, err := pglogrepl.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("parse message: %w", err)
	}
	switch m := message.(type) {
	case *pglogrepl.RelationMessage:
		d.relations[m.RelationID] = newRelation(m)
		d.forget() // the table was altered, and with it perhaps a type
		return nil, nil
	case *pglogrepl.BeginMessage:
		d.began = m
		d.builder.reset()
		d.changed, d.failed = false, 0
		return nil, nil
	case *pglogrepl.TypeMessage, *pglogrepl.OriginMessage:
		return nil, nil
	}
	if d.began == nil {
		return nil, fmt.Errorf("a %s outside a transaction", message.Type())
	}
	switch m := message.(type) {
	case *pglogrepl.InsertMessage:
		return nil, d.row(ctx, at, m.RelationID, "insert", nil, m.Tuple)
	case *pglogrepl.UpdateMessage:
		return nil, d.row(ctx, at, m.RelationID, "update", m.OldTuple, m.NewTuple)
	case *pglogrepl.DeleteMessage:
		return nil, d.row(ctx, at, m.RelationID, "delete", m.OldTuple, nil)
	case *pglogrepl.TruncateMessage:
		return nil, d.truncate(ctx, at, m.RelationIDs)
	case *pglogrepl.LogicalDecodingMessage:
		if m.Prefix == MessagePrefix {
			d.builder.cut()
		}
		return nil, nil
	case *pglogrepl.CommitMessage:
		transaction := &Transaction{
			XID:       d.began.Xid,
			Committed: m.CommitLSN,
			End:       m.TransactionEndLSN,
			At:        m.CommitTime,
			Records:   d.builder.finish(),
			Malformed: d.failed,
		}
		if d.changed {
			transaction.Tables = d.tables
		}
		d.began = nil
		d.builder.reset()
		return transaction, nil
	}
	return nil, fmt.Errorf("an unexpected message of type %s", message.Type())
}

// count takes a row of a topic that is past its bound in this transaction without looking at it: there may be
// millions more.
func (d *Decoder) count(at pglogrepl.LSN, data []byte) bool {
	if d.began == nil || len(data) < 5 {
		return false
	}
	var op string
	switch pglogrepl.MessageType(data[0]) {
	case pglogrepl.MessageTypeInsert:
		op = "insert"
	case pglogrepl.MessageTypeUpdate:
		op = "update"
	case pglogrepl.MessageTypeDelete:
		op = "delete"
	default:
		return false
	}
	r := d.relations[binary.BigEndian.Uint32(data[1:])]
	if r == nil || !r.resolved || r.table == nil || !d.builder.tally(r.table.Topic).isBulk {
		return false
	}
	d.builder.count(r, op, at)
	return true
}

func newRelation(m *pglogrepl.RelationMessage) *relation {
	r := &relation{
		id:         m.RelationID,
		name:       pgx.Identifier{m.Namespace, m.RelationName}.Sanitize(),
		isSettings: m.Namespace == settingsSchema && m.RelationName == settingsTable,
		full:       m.ReplicaIdentity == 'f',
	}
	for _, c := range m.Columns {
		r.columns = append(r.columns, column{name: c.Name, member: append(appendJSONString(nil, []byte(c.Name)), ':'), oid: c.DataType, identity: c.Flags&1 != 0})
	}
	return r
}

// relation returns what is known of one, with the table that it is, or belongs to.
func (d *Decoder) relation(ctx context.Context, id uint32) (*relation, error) {
	r := d.relations[id]
	if r == nil {
		return nil, fmt.Errorf("relation %d was not described", id)
	}
	if r.resolved {
		return r, nil
	}
	if err := d.resolve(ctx, r); err != nil {
		return nil, err
	}
	if r.table != nil {
		for i := range r.columns {
			c := &r.columns[i]
			c.shown = r.table.Columns == nil || slices.Contains(r.table.Columns, c.name)
		}
	}
	var oids []uint32
	for _, c := range r.columns {
		if c.shown || r.isSettings {
			oids = append(oids, c.oid)
		}
	}
	if missing := d.types.Missing(oids); len(missing) > 0 {
		if err := d.types.Load(ctx, d.db, missing); err != nil {
			return nil, err
		}
	}
	r.resolved = true
	return r, nil
}

// forget has everything asked for again that the catalog says.
func (d *Decoder) forget() {
	d.types.Forget()
	for _, r := range d.relations {
		r.resolved = false
	}
}

// resolve finds the table of a relation.
func (d *Decoder) resolve(ctx context.Context, r *relation) error {
	r.table, r.isPartition, r.lost = d.tables[r.id], false, false
	if r.table != nil || r.isSettings {
		return nil
	}
	rows, err := d.db.Query(ctx, `
		select coalesce(pg_catalog.pg_partition_root(c.oid)::oid, c.oid),
		       exists (select from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
		                where p.pubname = 'trumpet' and r.prrelid = c.oid)
		  from pg_catalog.pg_class c where c.oid = $1`, r.id)
	if err != nil {
		return fmt.Errorf("look for the table of %s: %w", r.name, err)
	}
	var (
		root   uint32
		direct bool // published by itself
	)
	if _, err := pgx.ForEachRow(rows, []any{&root, &direct}, func() error { return nil }); err != nil {
		return fmt.Errorf("look for the table of %s: %w", r.name, err)
	}
	if d.tables[root] == nil && d.tables[d.roots[r.id]] != nil {
		root = d.roots[r.id] // it has been detached, or dropped, since
	}
	r.table = d.tables[root]
	r.isPartition = r.table != nil
	if r.isPartition {
		d.roots[r.id] = root
	}
	r.lost = r.table == nil && !direct
	return nil
}

// row takes one row's change.
func (d *Decoder) row(ctx context.Context, at pglogrepl.LSN, id uint32, op string, before, after *pglogrepl.TupleData) error {
	r, err := d.relation(ctx, id)
	if err != nil {
		return err
	}
	switch {
	case r.isSettings:
		tables, err := d.tables.change(r, before, after, d.types)
		if err != nil {
			return err
		}
		d.tables, d.changed = tables, true
		d.forget()
		d.builder.cut()
		return nil
	case r.lost:
		d.lost(at)
		return nil
	case r.table == nil:
		return nil
	}
	oldRow, newRow, err := d.render(ctx, r, op, before, after)
	if errors.Is(err, ErrType) {
		// The catalog was read before or after the type was altered.
		d.forget()
		if r, err = d.relation(ctx, id); err != nil {
			return err
		}
		oldRow, newRow, err = d.render(ctx, r, op, before, after)
	}
	switch {
	case errors.Is(err, ErrType):
		d.failed++
		d.builder.count(r, op, at)
		d.builder.makeBulk(r.table.Topic)
		return nil
	case err != nil:
		return fmt.Errorf("row of %s: %w", r.name, err)
	case op == "update" && r.full && bytes.Equal(oldRow, newRow):
		return nil // nothing that events show has changed
	}
	if d.builder.count(r, op, at) {
		d.builder.add(r, op, at, oldRow, newRow)
	}
	return nil
}

// lost notes a change of a partition whose table is not known any more: it may have been any.
func (d *Decoder) lost(at pglogrepl.LSN) {
	for _, table := range d.tables {
		if table.Partitioned {
			d.builder.unknown(table.Topic, at)
		}
	}
}

// render writes a row before and after its change as JSON objects; nil for what there is not. Of the row
// before, what is not known is left out; of the one after, large values that were not changed and are
// not known.
func (d *Decoder) render(ctx context.Context, r *relation, op string, before, after *pglogrepl.TupleData) (oldRow, newRow []byte, err error) {
	if after != nil {
		if len(after.Columns) != len(r.columns) {
			return nil, nil, fmt.Errorf("%w: %d columns, %d described", ErrType, len(after.Columns), len(r.columns))
		}
		row := append(d.after[:0], '{')
		for i := range r.columns {
			value := after.Columns[i]
			if value.DataType == pglogrepl.TupleDataTypeToast {
				if !r.full || before == nil || i >= len(before.Columns) {
					continue
				}
				value = before.Columns[i]
			}
			if row, err = d.appendMember(ctx, row, &r.columns[i], value); err != nil {
				return nil, nil, err
			}
		}
		d.after = append(row, '}')
		newRow = d.after
	}
	if op == "insert" {
		return nil, newRow, nil
	}
	known := before
	if known == nil {
		if r.full || after == nil {
			return nil, nil, fmt.Errorf("%w: no row before the %s", ErrType, op)
		}
		known = after // what identifies the row was not changed
	}
	if len(known.Columns) != len(r.columns) {
		return nil, nil, fmt.Errorf("%w: %d columns before, %d described", ErrType, len(known.Columns), len(r.columns))
	}
	row := append(d.before[:0], '{')
	for i := range r.columns {
		if !r.columns[i].identity && !r.full {
			continue
		}
		if row, err = d.appendMember(ctx, row, &r.columns[i], known.Columns[i]); err != nil {
			return nil, nil, err
		}
	}
	d.before = append(row, '}')
	return d.before, newRow, nil
}

// appendMember appends a column and its value to an object, if events show it.
func (d *Decoder) appendMember(ctx context.Context, object []byte, c *column, value *pglogrepl.TupleDataColumn) ([]byte, error) {
	if !c.shown || value.DataType == pglogrepl.TupleDataTypeToast {
		return object, nil
	}
	if len(object) > 1 {
		object = append(object, ',')
	}
	object = append(object, c.member...)
	if value.DataType != pglogrepl.TupleDataTypeText {
		return append(object, "null"...), nil
	}
	whole, err := d.types.AppendJSON(object, c.oid, value.Data)
	if errors.Is(err, ErrCast) {
		var values [][]byte
		if values, err = d.types.Cast(ctx, d.db, c.oid, []string{string(value.Data)}); err == nil {
			whole = append(object, values[0]...)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("column %q: %w", c.name, err)
	}
	return whole, nil
}

// truncate takes a TRUNCATE of all these relations.
func (d *Decoder) truncate(ctx context.Context, at pglogrepl.LSN, ids []uint32) error {
	partitions := map[uint32][]uint32{} // by table
	for _, id := range ids {
		r, err := d.relation(ctx, id)
		switch {
		case err != nil:
			return err
		case r.lost:
			d.lost(at)
		case r.table == nil:
		case r.isPartition:
			partitions[d.roots[id]] = append(partitions[d.roots[id]], id)
		default:
			d.builder.truncate(r.table.Topic, at, false)
		}
	}
	for root, truncated := range partitions {
		all, err := d.leaves(ctx, root)
		if err != nil {
			return err
		}
		inPart := len(all) == 0 || slices.ContainsFunc(all, func(leaf uint32) bool { return !slices.Contains(truncated, leaf) })
		d.builder.truncate(d.tables[root].Topic, at, inPart)
	}
	return nil
}

// leaves are the partitions of a table that hold rows, now. Not by pg_partition_tree(), which would wait for
// whoever has one of them locked, and everybody with it.
func (d *Decoder) leaves(ctx context.Context, root uint32) ([]uint32, error) {
	rows, err := d.db.Query(ctx, `
		with recursive tree as (
		  select $1::oid as id
		  union all
		  select i.inhrelid from pg_catalog.pg_inherits i join tree on i.inhparent = tree.id)
		select tree.id from tree join pg_catalog.pg_class c on c.oid = tree.id where c.relkind <> 'p'`, root)
	if err != nil {
		return nil, fmt.Errorf("read partitions: %w", err)
	}
	leaves, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("read partitions: %w", err)
	}
	return leaves, nil
}
