package wal

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"

	"github.com/jackc/pglogrepl"
)

// Table is how a table is watched: a row of trumpet.wal_table.
type Table struct {
	Topic       string   `json:"topic"`
	Key         []string `json:"key"`     // empty, not nil, for rows without a key
	Columns     []string `json:"columns"` // nil: all
	MaxRows     int      `json:"max_rows"`
	MaxBytes    int      `json:"max_bytes"`
	Partitioned bool     `json:"partitioned"`
}

// Tables are the watched tables by their relations' OIDs. It is never changed.
type Tables map[uint32]*Table

// ParseTables reads them as trumpet.wal_read has them.
func ParseTables(text []byte) (Tables, error) {
	var tables Tables
	if err := json.Unmarshal(text, &tables); err != nil {
		return nil, fmt.Errorf("read watched tables: %w", err)
	}
	return tables, nil
}

// String is how trumpet.wal_read has them.
func (t Tables) String() string {
	text, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(text)
}

// Where the decoder finds the settings in the stream.
const (
	settingsSchema = "trumpet"
	settingsTable  = "wal_table"
)

// errSettings is a row of trumpet.wal_table that this version does not understand.
var errSettings = errors.New("trumpet.wal_table has another form than this version knows")

// change returns the tables after a change of trumpet.wal_table: the row before, of which only the key is
// known, and the one after it, either of which may be nil.
func (t Tables) change(relation *relation, before, after *pglogrepl.TupleData, types *Types) (Tables, error) {
	changed := maps.Clone(t)
	if changed == nil {
		changed = Tables{}
	}
	if before != nil {
		row, err := settingsRow(relation, before, types)
		if err != nil {
			return nil, err
		}
		delete(changed, row.id)
	}
	if after != nil {
		row, err := settingsRow(relation, after, types)
		if err != nil {
			return nil, err
		}
		changed[row.id] = row.table
	}
	return changed, nil
}

type settings struct {
	id    uint32
	table *Table
}

func settingsRow(relation *relation, tuple *pglogrepl.TupleData, types *Types) (settings, error) {
	members := map[string]json.RawMessage{}
	for i, column := range tuple.Columns {
		if i >= len(relation.columns) || column.DataType != pglogrepl.TupleDataTypeText {
			continue
		}
		value, err := types.AppendJSON(nil, relation.columns[i].oid, column.Data)
		if err != nil {
			return settings{}, fmt.Errorf("%w: %w", errSettings, err)
		}
		members[relation.columns[i].name] = value
	}
	var id string
	if err := json.Unmarshal(members["id"], &id); err != nil {
		return settings{}, fmt.Errorf("%w: id: %w", errSettings, err)
	}
	number, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return settings{}, fmt.Errorf("%w: id: %w", errSettings, err)
	}
	row := settings{id: uint32(number), table: new(Table)}
	text, err := json.Marshal(members)
	if err != nil {
		return settings{}, fmt.Errorf("%w: %w", errSettings, err)
	}
	if err := json.Unmarshal(text, row.table); err != nil {
		return settings{}, fmt.Errorf("%w: %w", errSettings, err)
	}
	return row, nil
}
