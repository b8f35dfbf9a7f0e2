package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// watched is a relation with triggers of ours, as the catalog has it.
type watched struct {
	Schema, Name         string // as quote_ident gives them
	Kind, Persistence    string // of pg_class
	Attached             bool   // it is a partition now
	RootSchema, RootName string // of which table
	RootTopics           []string
	Triggers             []string
	Enabled              []string // pg_trigger.tgenabled, for each trigger
	Events               []int32  // which of INSERT 4, DELETE 8, UPDATE 16, TRUNCATE 32 each is for
	Topic                string
	Key, Columns         []string
	MaxRows, MaxBytes    string
	IsPartition          bool // the triggers were put on it as a partition
	Attributes           []string
	HasPrimaryKey        bool
	Identified           bool // a unique index keeps its key unique
	Subscribed           bool // a subscription writes to it
}

// name is SQL; raw is what a regclass is read from.
func (w *watched) name() string { return qualified(w.Schema, w.Name) }
func (w *watched) raw() string  { return w.Schema + "." + w.Name }

const watchedQuery = `
	with triggers as materialized (
	  select t.tgrelid, t.tgname::text as name, t.tgenabled::text as enabled, (t.tgtype & 60)::int as event, a.args
	    from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace s on s.oid = p.pronamespace,
	         lateral (select array_agg(convert_from(decode(s.hex, 'hex'), getdatabaseencoding()) order by s.n) as args
	                    from regexp_split_to_table(regexp_replace(encode(t.tgargs, 'hex'), '(..)', '\1 ', 'g'), '00 ')
	                         with ordinality s(hex, n)) a
	   where s.nspname = 'trumpet' and p.proname = 'capture'),
	relations as (
	  select tgrelid, (array_agg(args[1] order by name))[1] as topic, (array_agg(args[2] order by name))[1] as key,
	         (array_agg(args[3] order by name))[1] as columns, (array_agg(args[4] order by name))[1] as max_rows,
	         (array_agg(args[5] order by name))[1] as max_bytes, (array_agg(args[6] order by name))[1] as is_a,
	         array_agg(name order by name) as names, array_agg(enabled order by name) as enabled, array_agg(event order by name) as events
	    from triggers group by tgrelid)
	select quote_ident(n.nspname), quote_ident(c.relname), c.relkind::text, c.relpersistence::text, c.relispartition,
	       coalesce(quote_ident(rn.nspname), ''), coalesce(quote_ident(root.relname), ''),
	       array(select o.topic from relations o where o.tgrelid = root.oid),
	       r.names, r.enabled, r.events, r.topic, coalesce(nullif(r.key, '')::text[], '{}'), coalesce(nullif(r.columns, '')::text[], '{}'),
	       r.max_rows, r.max_bytes, r.is_a = 'partition',
	       array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
	       exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary),
	       exists (select from pg_index i where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null
	                  and (select array_agg(a.attname::text) from pg_attribute a where a.attrelid = c.oid
	                          and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])) <@ nullif(r.key, '')::text[]),
	       exists (select from pg_subscription_rel u where u.srrelid = c.oid)
	  from relations r join pg_class c on c.oid = r.tgrelid join pg_namespace n on n.oid = c.relnamespace
	  left join pg_class root on c.relispartition and root.oid = pg_partition_root(c.oid)
	  left join pg_namespace rn on rn.oid = root.relnamespace
	 order by n.nspname, c.relname limit 10000`

// watches compares the triggers with what trumpet.watch made, and with the tables as they are now.
func (e *examination) watches() error {
	all, err := rows[watched](e, watchedQuery)
	if err != nil {
		return err
	}
	for i := range all {
		w := &all[i]
		e.triggers(w)
		e.shape(w)
		if w.Subscribed {
			e.add(Warning, fmt.Sprintf("a subscription of logical replication writes to %s: those rows are no events, because it fires no statement triggers", w.name()),
				"-- watch the table in the database where it is written, and run workers there")
		}
		if w.Persistence == "u" && !w.IsPartition {
			e.add(Warning, fmt.Sprintf("%s is unlogged: after a crash of Postgres it is empty, and no event tells of that", w.name()),
				"alter table "+w.name()+" set logged;")
		}
	}
	if err := e.partitions(all); err != nil {
		return err
	}
	if len(all) == 0 {
		e.add(OK, "no table is watched by triggers")
	}
	return nil
}

// triggers says which triggers are missing or do not fire.
func (e *examination) triggers(w *watched) {
	var missing, silent, enable []string
	for _, event := range []struct {
		bit  int32
		name string
	}{{4, "insert"}, {16, "update"}, {8, "delete"}, {32, "truncate"}} {
		i := slices.Index(w.Events, event.bit)
		switch {
		case i < 0:
			missing = append(missing, strings.ToUpper(event.name))
		case w.Enabled[i] == "D" || w.Enabled[i] == "R":
			silent = append(silent, strings.ToUpper(event.name))
			enable = append(enable, "enable trigger "+identifier(quoteIdent(w.Triggers[i])))
		}
	}
	if len(missing) > 0 {
		e.add(Error, fmt.Sprintf("%s is watched, but its trigger for %s is missing: nobody hears of that", w.name(), strings.Join(missing, ", ")), e.again(w))
	}
	if len(silent) > 0 {
		e.add(Error, fmt.Sprintf("%s is watched, but its trigger for %s is disabled: nobody hears of that", w.name(), strings.Join(silent, ", ")),
			"alter table "+w.name()+" "+strings.Join(enable, ", ")+";")
	}
}

// shape says what of the watch the table has no longer.
func (e *examination) shape(w *watched) {
	if w.IsPartition || w.Attached {
		e.attachment(w)
		return // its root is told of the same columns
	}
	gone := func(wanted []string) (lost []string) {
		for _, name := range wanted {
			if !slices.Contains(w.Attributes, name) {
				lost = append(lost, name)
			}
		}
		return lost
	}
	if lost := gone(w.Key); len(lost) > 0 {
		mend := []string{e.again(w)}
		if !w.HasPrimaryKey {
			mend = append([]string{"-- first give it a primary key: alter table " + w.name() + " add primary key (…);"}, mend...)
		}
		e.add(Error, fmt.Sprintf("%s is watched with the key %s, but has no column %s any more: its events do not say which row they are of",
			w.name(), names(w.Key), names(lost)), mend...)
	} else if len(w.Key) > 0 && !w.Identified {
		e.add(Warning, fmt.Sprintf("nothing keeps the key %s of %s unique: two rows could be told as one", names(w.Key), w.name()),
			"alter table "+w.name()+" add unique ("+identifiers(w.Key)+");")
	}
	if lost := slices.DeleteFunc(gone(w.Columns), func(name string) bool { return slices.Contains(w.Key, name) }); len(lost) > 0 {
		e.add(Warning, fmt.Sprintf("%s is watched for the column %s, which it has no more: it was dropped or renamed, and events leave it out", w.name(), names(lost)),
			"-- name what is wanted, if a column was renamed: "+e.again(w))
	}
}

// attachment says where a partition was attached or detached since its table was watched.
func (e *examination) attachment(w *watched) {
	root := qualified(w.RootSchema, w.RootName)
	switch {
	case w.Attached && !w.IsPartition:
		e.add(Warning, fmt.Sprintf("%s is watched on its own, and now a partition of %s: what is written through that is not told of it", w.name(), root),
			"select trumpet.unwatch("+literal(w.raw())+"); -- and watch "+root+" instead")
	case !w.Attached && w.IsPartition:
		e.add(Warning, fmt.Sprintf("%s is a partition no more, and what is written to it still goes to the topic %s", w.name(), literal(w.Topic)),
			"select trumpet.unwatch("+literal(w.raw())+");")
	case !slices.Contains(w.RootTopics, w.Topic):
		e.add(Warning, fmt.Sprintf("%s is a partition of %s now, and what is written to it directly goes to the topic %s of another table", w.name(), root, literal(w.Topic)),
			"select trumpet.unwatch("+literal(w.raw())+"); -- and watch "+root+", again if it is watched")
	}
}

// partitions finds those that came after their table was watched.
func (e *examination) partitions(all []watched) error {
	found, err := rows[struct{ RootSchema, RootName, Schema, Name string }](e, `
		with triggers as materialized (
		  select distinct t.tgrelid from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace s on s.oid = p.pronamespace
		   where s.nspname = 'trumpet' and p.proname = 'capture')
		select quote_ident(rn.nspname), quote_ident(r.relname), quote_ident(n.nspname), quote_ident(c.relname)
		  from triggers w join pg_class r on r.oid = w.tgrelid and r.relkind = 'p' and not r.relispartition
		  join pg_namespace rn on rn.oid = r.relnamespace, lateral pg_partition_tree(r.oid) p
		  join pg_class c on c.oid = p.relid join pg_namespace n on n.oid = c.relnamespace
		 where p.relid not in (select tgrelid from triggers)
		 order by 1, 2, 3, 4 limit 10000`)
	if err != nil {
		return err
	}
	late := map[string][]string{}
	for _, f := range found {
		root := qualified(f.RootSchema, f.RootName)
		late[root] = append(late[root], qualified(f.Schema, f.Name))
	}
	for i := range all {
		if partitions := late[all[i].name()]; len(partitions) > 0 {
			e.add(Warning, fmt.Sprintf("%s of %s came after it was watched: what is written to %s directly is no event",
				plural(int64(len(partitions)), "partition", "partitions"), all[i].name(), names(partitions)), e.again(&all[i]))
		}
	}
	return nil
}

// again is the statement that watches the table anew with the settings that it has, but for what is gone.
func (e *examination) again(w *watched) string {
	if w.IsPartition {
		return "-- watch the table that it is a partition of again: select relation, topic from trumpet.watched where not is_partition;"
	}
	has := func(name string) bool { return slices.Contains(w.Attributes, name) }
	var b strings.Builder
	b.WriteString("select trumpet.watch(" + literal(w.raw()))
	if len(w.Columns) > 0 {
		var left []string
		for _, column := range w.Columns {
			if has(column) {
				left = append(left, column)
			}
		}
		if len(left) == 0 { // without columns it would show all of them
			return "-- say which columns events may show: select trumpet.watch(" + literal(w.raw()) + ", columns => '{…}');"
		}
		b.WriteString(", columns => " + textArray(left))
	}
	if !slices.ContainsFunc(w.Key, func(name string) bool { return !has(name) }) {
		b.WriteString(", key => " + textArray(w.Key))
	}
	b.WriteString(", topic => " + literal(w.Topic))
	for _, setting := range []struct{ name, value, usual string }{{"max_rows", w.MaxRows, "1000"}, {"max_bytes", w.MaxBytes, "8388608"}} {
		if _, err := strconv.Atoi(setting.value); err == nil && setting.value != setting.usual {
			b.WriteString(", " + setting.name + " => " + setting.value)
		}
	}
	b.WriteString(");")
	return b.String()
}

func textArray(texts []string) string {
	if len(texts) == 0 {
		return "'{}'"
	}
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = literal(text)
	}
	return "array[" + strings.Join(quoted, ", ") + "]"
}

// quoteIdent quotes a name that may need it; quote_ident also spares those that do not.
func quoteIdent(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func identifiers(all []string) string {
	quoted := make([]string, len(all))
	for i, name := range all {
		quoted[i] = identifier(quoteIdent(name))
	}
	return strings.Join(quoted, ", ")
}
