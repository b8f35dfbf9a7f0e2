package wal

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Querier is what reading the catalog and asking Postgres for JSON need: a connection or a pool. Its
// session has the settings that the texts were written with, because what Postgres renders depends on
// them as well.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Types knows how values of each type are rendered. Of built-in scalar types it knows that always,
// others it reads from the catalog. It is not safe for concurrent use.
type Types struct {
	loaded map[uint32]*typeInfo
	// scratch holds what was quoted within arrays and composites, while it is rendered.
	scratch []byte
}

// NewTypes returns Types that know the built-in scalar types.
func NewTypes() *Types { return &Types{loaded: make(map[uint32]*typeInfo)} }

type typeKind uint8

const (
	kindString typeKind = iota // all that has no other kind
	kindBool
	kindNumber
	kindTimestamp
	kindTimestampTZ
	kindJSON
	kindVector
	kindArray
	kindComposite
	kindCast // of an extension or a user, with a function that makes json of it
)

// typeInfo is how values of a type are rendered. Domains share that of the type below them, as
// their texts are the same and Postgres looks through them, too.
type typeInfo struct {
	kind typeKind
	// cast says that Postgres must render the value, as it is of kindCast or contains such a value.
	cast       bool
	delimiter  byte            // between an array's elements
	element    *typeInfo       // of an array or a vector
	attributes []typeAttribute // of a composite, in order
	oid        uint32
	name       string // for SQL; empty for built-in scalar types
}

type typeAttribute struct {
	member string // the name as the JSON object has it, with its colon
	value  *typeInfo
}

var (
	stringType      = &typeInfo{kind: kindString}
	boolType        = &typeInfo{kind: kindBool}
	numberType      = &typeInfo{kind: kindNumber}
	timestampType   = &typeInfo{kind: kindTimestamp}
	timestampTZType = &typeInfo{kind: kindTimestampTZ}
	jsonType        = &typeInfo{kind: kindJSON}
	int2VectorType  = &typeInfo{kind: kindVector, element: numberType}
	oidVectorType   = &typeInfo{kind: kindVector, element: stringType}
)

// builtinType returns what is known of a type without asking, or nil. These OIDs are the same in
// every Postgres, as they are assigned by hand. A type that is not here is only read from the
// catalog.
func builtinType(oid uint32) *typeInfo {
	switch oid {
	case 16:
		return boolType
	case 20, 21, 23, 700, 701, 1700: // int8, int2, int4, float4, float8, numeric
		return numberType
	case 1114:
		return timestampType
	case 1184:
		return timestampTZType
	case 114, 3802: // json, jsonb
		return jsonType
	case 22:
		return int2VectorType
	case 30:
		return oidVectorType
	case 25, 1042, 1043, 18, 19, // text, bpchar, varchar, "char", name
		17, 2950, 142, 4072, // bytea, uuid, xml, jsonpath
		1082, 1083, 1266, 1186, // date (its text is ISO 8601 already), time, timetz, interval
		790, 1560, 1562, // money, bit, varbit
		869, 650, 829, 774, // inet, cidr, macaddr, macaddr8
		600, 601, 602, 603, 604, 628, 718, // point, lseg, path, box, polygon, line, circle
		3904, 3906, 3908, 3910, 3912, 3926, // int4range, numrange, tsrange, tstzrange, daterange, int8range
		4451, 4532, 4533, 4534, 4535, 4536, // the multiranges
		3614, 3615, // tsvector, tsquery
		24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191, // regproc and its like
		26, 27, 28, 29, 5069, // oid, tid, xid, cid, xid8
		3220, 2970, 5038, 1790, 1033: // pg_lsn, txid_snapshot, pg_snapshot, refcursor, aclitem
		return stringType
	}
	return nil
}

func (t *Types) lookup(oid uint32) *typeInfo {
	if known := builtinType(oid); known != nil {
		return known
	}
	return t.loaded[oid]
}

// Missing returns which of the type OIDs it does not know yet.
func (t *Types) Missing(oids []uint32) []uint32 {
	var missing []uint32
	for _, oid := range oids {
		if t.lookup(oid) == nil {
			missing = append(missing, oid)
		}
	}
	return missing
}

// Forget drops all that was read from the catalog, so that it is read again: a composite type was
// altered, or a type was given another name.
func (t *Types) Forget() { clear(t.loaded) }

// The types below a type are found in one statement and so in one snapshot: what is known of a type
// always fits what is known of its parts.
//
// Postgres has arrays and composites rendered by their parts even where a cast to json exists, and
// only then asks for such a cast, of types that are not its own (json_categorize_type in its
// sources). Only a cast by function counts.
const loadTypes = `
with recursive needed(oid) as (
  select n.oid from pg_catalog.unnest($1::pg_catalog.oid[]) as n(oid)
  union
  select part.oid
    from needed n
    join pg_catalog.pg_type t on t.oid = n.oid
    cross join lateral (
      select t.typbasetype where t.typtype = 'd'
      union all
      select t.typelem where t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
      union all
      select a.atttypid from pg_catalog.pg_attribute a
       where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) as part(oid))
select t.oid,
       case when t.typtype = 'd' then 'domain'
            when t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc then 'array'
            when t.typtype = 'c' then 'composite'
            when t.oid >= 16384 and exists (
              select from pg_catalog.pg_cast c
               where c.castsource = t.oid and c.casttarget = 'pg_catalog.json'::pg_catalog.regtype
                 and c.castmethod = 'f') then 'cast'
            else 'string' end,
       pg_catalog.format('%I.%I', s.nspname, t.typname),
       case when t.typtype = 'd' then t.typbasetype else t.typelem end,
       coalesce(e.typdelim, ',')::pg_catalog.text,
       a.names, a.types
  from needed n
  join pg_catalog.pg_type t on t.oid = n.oid
  join pg_catalog.pg_namespace s on s.oid = t.typnamespace
  left join pg_catalog.pg_type e on e.oid = t.typelem
  left join lateral (
    select pg_catalog.array_agg(a.attname::pg_catalog.text order by a.attnum) as names,
           pg_catalog.array_agg(a.atttypid order by a.attnum) as types
      from pg_catalog.pg_attribute a
     where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) a on true
 where t.typtype <> 'p'` // no column is of a pseudo-type

// typeRow is a row of loadTypes.
type typeRow struct {
	oid       uint32
	kind      string
	name      string
	part      uint32 // the domain's base or the array's element
	delimiter string
	names     []string
	types     []uint32
}

// Load reads these types, and whatever they are made of, from the catalog. A type that does not
// exist (any more) stays missing, or known as it was. A pseudo-type stays missing.
func (t *Types) Load(ctx context.Context, db Querier, oids []uint32) error {
	rows, err := db.Query(ctx, loadTypes, oids)
	if err != nil {
		return fmt.Errorf("load types: %w", err)
	}
	catalog := make(map[uint32]typeRow)
	var r typeRow
	_, err = pgx.ForEachRow(rows, []any{&r.oid, &r.kind, &r.name, &r.part, &r.delimiter, &r.names, &r.types}, func() error {
		catalog[r.oid] = r
		r.names, r.types = nil, nil
		return nil
	})
	if err != nil {
		return fmt.Errorf("load types: %w", err)
	}
	built := make(map[uint32]*typeInfo, len(catalog))
	for oid := range catalog {
		buildType(oid, catalog, built)
	}
	maps.Copy(t.loaded, built)
	return nil
}

// buildType makes a type of the catalog's rows, after its parts, and keeps it in built. It returns
// nil if the type or a part of it is not there.
func buildType(oid uint32, catalog map[uint32]typeRow, built map[uint32]*typeInfo) *typeInfo {
	if known := builtinType(oid); known != nil {
		return known
	}
	if info := built[oid]; info != nil {
		return info
	}
	row, found := catalog[oid]
	if !found {
		return nil
	}
	if row.kind == "domain" {
		base := buildType(row.part, catalog, built)
		if base != nil {
			built[oid] = base
		}
		return base
	}
	info := &typeInfo{oid: oid, name: row.name}
	switch row.kind {
	case "array":
		element := buildType(row.part, catalog, built)
		if element == nil || len(row.delimiter) != 1 {
			return nil
		}
		info.kind, info.cast = kindArray, element.cast
		info.element, info.delimiter = element, row.delimiter[0]
	case "composite":
		info.kind = kindComposite
		for i, name := range row.names {
			value := buildType(row.types[i], catalog, built)
			if value == nil {
				return nil
			}
			member := append(appendJSONString(nil, []byte(name)), ':')
			info.attributes = append(info.attributes, typeAttribute{member: string(member), value: value})
			info.cast = info.cast || value.cast
		}
	case "cast":
		info.kind, info.cast = kindCast, true
	}
	built[oid] = info
	return info
}

// Cast renders texts of types for which AppendJSON gave ErrCast, by asking Postgres. All fail if
// one of them does. ErrType means that Postgres refuses one of them, or that the type was dropped or
// has another name now. It must not be within a transaction, which a refusal would end.
//
// Postgres reads each text as a value again. Where domains are within arrays or composites it checks
// their constraints, which a value may break that is older than the constraint.
func (t *Types) Cast(ctx context.Context, db Querier, oid uint32, texts []string) ([][]byte, error) {
	info := t.lookup(oid)
	if info == nil || info.name == "" {
		return nil, fmt.Errorf("cast values of type %d: %w", oid, ErrType)
	}
	records := []byte{'['}
	for i, text := range texts {
		if i > 0 {
			records = append(records, ',')
		}
		records = append(appendJSONString(append(records, `{"value":`...), []byte(text)), '}')
	}
	records = append(records, ']')
	// A string in JSON is read by the type's input function, whereas a cast from text may do anything.
	// By now another type may have the name.
	rows, err := db.Query(ctx, `
		select pg_catalog.to_json(v.value)::pg_catalog.text
		  from rows from (pg_catalog.json_to_recordset($1::pg_catalog.text::pg_catalog.json) as (value `+info.name+`))
		       with ordinality as v(value, n)
		 where pg_catalog.to_regtype($2::pg_catalog.text)::pg_catalog.oid = $3::pg_catalog.oid
		 order by v.n`, string(records), info.name, info.oid)
	var values [][]byte
	if err == nil {
		values, err = pgx.CollectRows(rows, pgx.RowTo[[]byte])
	}
	if code, refused := refusal(err); refused {
		return nil, fmt.Errorf("cast values of type %d: %w: SQLSTATE %s", oid, ErrType, code) // its message may show the value
	}
	if err != nil {
		return nil, fmt.Errorf("cast values of type %d: %w", oid, err)
	}
	if len(values) != len(texts) {
		return nil, fmt.Errorf("cast values of type %d: %w: %s is not its name any more", oid, ErrType, info.name)
	}
	return values, nil
}

// refusal tells whether Postgres failed because of a value or its type, so that it will again. Casts
// of extensions and users fail with any SQLSTATE, those of PostGIS with XX000, so these are all but
// those that say how the session or the server fares.
func refusal(err error) (sqlstate string, refused bool) {
	postgres, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(postgres.Code) != 5 {
		return "", false
	}
	switch postgres.Code[:2] {
	case "08", "25", "40", "53", "55", "57", "58":
		return "", false
	}
	return postgres.Code, true
}
