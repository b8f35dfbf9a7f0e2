-- Trumpet 2: watched tables.
--
-- trumpet.watch('jobs') puts statement-level triggers on a table; all they know stands
-- in their arguments, where \d shows it. There is no table of watched tables that could
-- disagree with the triggers: trumpet.watched reads the triggers themselves.

-- The trigger's work: one record for one statement, inside the user's transaction.
-- It must never make the user's statement fail, and does not depend on the table's
-- columns: they may be added, renamed or dropped at any time.
--
-- Arguments: topic, key, columns ('' for all), max_rows, max_bytes, and whether the
-- table is the one that was named or a partition of it.
--
-- Rows are rendered as json, not jsonb: it costs writers less, keeps the order of the
-- columns, and takes what jsonb refuses ("\u0000" in a json column). As JSON values
-- both are the same. The settings make it the same whoever writes: timestamps,
-- intervals, bytea and floats are otherwise shown in the way of the session.
create function trumpet.capture() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp set timezone = 'UTC' set intervalstyle = 'postgres'
set bytea_output = 'hex' set extra_float_digits = 1
as $$
declare
  max_rows  constant int := tg_argv[3];
  max_bytes constant int := tg_argv[4];
  all_columns constant boolean := tg_argv[2] = '';
  n        bigint;
  old_json json;
  new_json json;
begin
  -- The short way, one statement: few rows, each at most 2000 bytes as stored, that is
  -- without large values. However well they are compressed, their text stays below the
  -- 1 GB at which Postgres gives up. "r.*" is the row even where a column is called r.
  case tg_op
  when 'INSERT' then
    insert into trumpet.record (topic, op, rows, key, after)
    select tg_argv[0], 'insert', w.n, tg_argv[1]::text[],
           case when all_columns then w.rows else trumpet.pick_columns(w.rows, tg_argv[2]) end
      from (select count(*) as n, bool_and(q.json is not null) as small, json_agg(q.json) as rows
              from (select case when pg_column_size(r.*) <= 2000 then row_to_json(r.*) end as json from new_rows r limit max_rows + 1) q) w
     where w.small and w.n <= max_rows and octet_length(w.rows::text) <= max_bytes;
  when 'UPDATE' then
    insert into trumpet.record (topic, op, rows, key, before, after)
    select tg_argv[0], 'update', u.n, tg_argv[1]::text[], u.before, u.after
      from (select w.n, case when all_columns then o.rows else trumpet.pick_columns(o.rows, tg_argv[2]) end as before,
                   case when all_columns then w.rows else trumpet.pick_columns(w.rows, tg_argv[2]) end as after
              from (select count(*) as n, bool_and(q.json is not null) as small, json_agg(q.json) as rows
                      from (select case when pg_column_size(r.*) <= 2000 then row_to_json(r.*) end as json from new_rows r limit max_rows + 1) q) w,
                   (select bool_and(q.json is not null) as small, json_agg(q.json) as rows
                      from (select case when pg_column_size(r.*) <= 2000 then row_to_json(r.*) end as json from old_rows r limit max_rows + 1) q) o
             where w.small and o.small and w.n <= max_rows
               and octet_length(w.rows::text) + octet_length(o.rows::text) <= max_bytes
            offset 0) u
     where u.before::text <> u.after::text;      -- an update that changed nothing is no event
  when 'DELETE' then
    insert into trumpet.record (topic, op, rows, key, before)
    select tg_argv[0], 'delete', o.n, tg_argv[1]::text[],
           case when all_columns then o.rows else trumpet.pick_columns(o.rows, tg_argv[2]) end
      from (select count(*) as n, bool_and(q.json is not null) as small, json_agg(q.json) as rows
              from (select case when pg_column_size(r.*) <= 2000 then row_to_json(r.*) end as json from old_rows r limit max_rows + 1) q) o
     where o.small and o.n <= max_rows and octet_length(o.rows::text) <= max_bytes;
  when 'TRUNCATE' then
    perform trumpet.capture_truncate(tg_argv[0], tg_argv[5] = 'partition');
    return null;
  end case;
  if found then
    return null;
  end if;

  -- The long way: nothing was touched, or much, or something large.
  if tg_op = 'DELETE' then
    select count(*) into n from old_rows;
  else
    select count(*) into n from new_rows;
  end if;
  if n = 0 then
    return null;
  end if;
  if n <= max_rows then
    begin
      if tg_op <> 'INSERT' then
        if (select sum(pg_column_size(r.*)) from old_rows r) <= max_bytes then
          select trumpet.pick_columns(json_agg(row_to_json(r.*)), tg_argv[2]) into old_json from old_rows r;
        end if;
      end if;
      if tg_op <> 'DELETE' then
        if (select sum(pg_column_size(r.*)) from new_rows r) <= max_bytes then
          select trumpet.pick_columns(json_agg(row_to_json(r.*)), tg_argv[2]) into new_json from new_rows r;
        end if;
      end if;
    exception when program_limit_exceeded or out_of_memory then
      old_json := null;
      new_json := null;
    end;
  end if;
  if n > max_rows
     or old_json is null and tg_op <> 'INSERT' or new_json is null and tg_op <> 'DELETE'
     or coalesce(octet_length(old_json::text), 0) + coalesce(octet_length(new_json::text), 0) > max_bytes then
    insert into trumpet.record (topic, op, statement, rows) values (tg_argv[0], 'bulk', lower(tg_op), n);
  elsif old_json::text is distinct from new_json::text then
    insert into trumpet.record (topic, op, rows, key, before, after)
    values (tg_argv[0], lower(tg_op), n, tg_argv[1]::text[], old_json, new_json);
  end if;
  return null;
end $$;

-- TRUNCATE of a watched table empties its topic. TRUNCATE of one partition takes some
-- rows that nobody can name: a bulk event. Truncating a partitioned table fires for the
-- table and then for every partition: those find the topic empty already.
create function trumpet.capture_truncate(topic text, is_partition boolean) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not is_partition then
    insert into trumpet.record (topic, op, rows) values (capture_truncate.topic, 'truncate', 0);
  elsif (select r.op from trumpet.record r
          where r.xid = pg_current_xact_id() and r.topic = capture_truncate.topic
          order by r.id desc limit 1) is distinct from 'truncate' then
    insert into trumpet.record (topic, op, statement, rows) values (capture_truncate.topic, 'bulk', 'truncate', 0);
  end if;
end $$;

-- The rows of a JSON array with the named columns only; all if columns is ''. A column
-- that is gone is left out.
create function trumpet.pick_columns(rows json, columns text) returns json
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if columns = '' then
    return rows;
  end if;
  return (select json_agg((select coalesce(json_object_agg(c.key, c.value), '{}')
                             from json_each(r.row) c where c.key = any (columns::text[])) order by r.n)
            from json_array_elements(rows) with ordinality r(row, n));
end $$;

-- The watched tables and their partitions, read from the triggers.
create view trumpet.watched as
  select t.tgrelid::regclass as relation,
         a.args[1] as topic,
         nullif(a.args[2], '')::text[] as key,
         nullif(a.args[3], '')::text[] as columns,
         a.args[4]::int as max_rows,
         a.args[5]::int as max_bytes,
         a.args[6] = 'partition' as is_partition,
         count(*) filter (where t.tgenabled <> 'D') = 4 as enabled
    from pg_catalog.pg_trigger t,
         -- tgargs holds the arguments one after the other, each ended by a zero byte.
         lateral (select array_agg(convert_from(decode(s.hex, 'hex'), getdatabaseencoding()) order by s.n) as args
                    from regexp_split_to_table(regexp_replace(encode(t.tgargs, 'hex'), '(..)', '\1 ', 'g'), '00 ')
                         with ordinality s(hex, n)) a
   where t.tgfoid = 'trumpet.capture()'::regprocedure
   group by t.tgrelid, a.args;

-- Watches a table: its changes become events from this transaction's commit on. For a
-- partitioned table name its root. Watching again replaces the settings, and takes in
-- partitions that have come since. The caller must own the table, or have TRIGGER on it.
--
--   columns    what events show; all columns if null. Those of the key are always shown.
--   key        what identifies a row; the primary key if null; '{}' for none.
--   topic      the table's name if null, with its schema before it unless that is public.
--   max_rows   a statement that touches more rows is one bulk event.
--   max_bytes  so is one whose rows take more as JSON, old and new together.
--
-- The first time it takes SHARE ROW EXCLUSIVE on the table until the transaction ends: reads go on,
-- writes wait. Again, and unwatch, take ACCESS EXCLUSIVE, because they drop triggers.
create function trumpet.watch(
  relation regclass, columns text[] default null, key text[] default null, topic text default null,
  max_rows int default 1000, max_bytes int default 8388608) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  class    record;
  missing  text;
  other    regclass;
  target   record;
  event    text;
begin
  if relation is null then
    raise exception 'trumpet.watch() needs a table, got NULL' using errcode = 'null_value_not_allowed';
  end if;
  perform pg_advisory_xact_lock(1953656176, 5);
  select c.relkind, c.relispartition, c.relpersistence, c.relname, n.nspname into strict class
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation;
  if class.relkind not in ('r', 'p') or class.relpersistence = 't' or class.nspname in ('trumpet', 'pg_catalog', 'information_schema') then
    raise exception 'trumpet: % cannot be watched', relation
      using errcode = 'wrong_object_type',
            hint = 'Ordinary and partitioned tables can, but not views, foreign, temporary and system tables.';
  end if;
  if class.relispartition then
    raise exception 'trumpet: % is a partition', relation
      using errcode = 'wrong_object_type',
            hint = format('Watch the whole table: select trumpet.watch(%L)', pg_partition_root(relation));
  end if;
  if max_rows is null or max_rows < 1 or max_rows > 100000 then
    raise exception 'trumpet: max_rows is from 1 to 100000, got %', coalesce(max_rows::text, 'NULL')
      using errcode = 'invalid_parameter_value';
  end if;
  if max_bytes is null or max_bytes < 1024 or max_bytes > 67108864 then
    raise exception 'trumpet: max_bytes is from 1024 to 67108864, got %', coalesce(max_bytes::text, 'NULL')
      using errcode = 'invalid_parameter_value';
  end if;

  if key is null then
    key := (select array_agg(a.attname::text order by array_position(i.indkey::int2[], a.attnum))
              from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
             where i.indrelid = relation and i.indisprimary);
    if key is null then
      raise exception 'trumpet: % has no primary key', relation
        using errcode = 'undefined_object',
              hint = 'Name the columns that identify a row, key => ''{…}'', or key => ''{}'' to go without.';
    end if;
  end if;
  if columns = '{}' then
    raise exception 'trumpet: columns is empty'
      using errcode = 'invalid_parameter_value', hint = 'Leave it out, or give null, for all columns.';
  end if;
  select string_agg(quote_ident(wanted), ', ') into missing
    from unnest(key || columns) wanted
   where not exists (select from pg_attribute a where a.attrelid = relation and a.attname = wanted
                        and a.attnum > 0 and not a.attisdropped);
  if missing is not null or array_position(key || columns, null) is not null then
    raise exception 'trumpet: % has no column %', relation, coalesce(missing, 'NULL')
      using errcode = 'undefined_column',
            hint = 'columns and key take the names as they are stored, without quotes.';
  end if;
  columns := (select array_agg(distinct c) from unnest(key || columns) c where columns is not null);

  topic := coalesce(topic, case when class.nspname = 'public' then class.relname else class.nspname || '.' || class.relname end);
  if not trumpet.valid_topic(topic) then
    raise exception 'trumpet: % is not a valid topic', quote_literal(topic)
      using errcode = 'invalid_parameter_value',
            hint = 'Name one: topic => ''…'', of 1 to 127 bytes, without white space, control characters and , ? & = # +';
  end if;
  select w.relation into other from trumpet.watched w
   where w.topic = watch.topic and not w.is_partition and w.relation <> watch.relation limit 1;
  if other is not null then
    raise exception 'trumpet: topic % is taken by %', quote_literal(topic), other
      using errcode = 'unique_violation', hint = 'Name another one: topic => ''…''';
  end if;

  perform trumpet.drop_triggers(relation);
  for target in
    select relation as relid, 'table' as is_a
    union all
    select p.relid, 'partition' from pg_partition_tree(relation) p where p.relid <> relation
  loop
    foreach event in array array['insert', 'update', 'delete', 'truncate'] loop
      execute format('create trigger %I after %s on %s %s for each statement execute function trumpet.capture(%L, %L, %L, %L, %L, %L)',
        'trumpet_' || event, event, target.relid::regclass,
        case event when 'insert' then 'referencing new table as new_rows'
                   when 'update' then 'referencing old table as old_rows new table as new_rows'
                   when 'delete' then 'referencing old table as old_rows' else '' end,
        topic, key, coalesce(columns::text, ''), max_rows, max_bytes, target.is_a);
    end loop;
  end loop;
  return topic;
end $$;

-- Takes the triggers off a table and all tables that are partitions of it, or once were.
create function trumpet.drop_triggers(relation regclass) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  target  record;
  dropped bigint := 0;
begin
  for target in
    select t.tgrelid::regclass as on_table, t.tgname
      from pg_trigger t
     where t.tgfoid = 'trumpet.capture()'::regprocedure
       and (t.tgrelid = relation
            or t.tgrelid in (select p.relid from pg_partition_tree(relation) p)
            or t.tgrelid in (select w.relation from trumpet.watched w join trumpet.watched named using (topic)
                              where w.is_partition and named.relation = drop_triggers.relation and not named.is_partition))
  loop
    execute format('drop trigger %I on %s', target.tgname, target.on_table);
    dropped := dropped + 1;
  end loop;
  return dropped;
end $$;

-- Ends watching a table. What is in the log stays there until it is pruned.
create function trumpet.unwatch(relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if relation is null then
    raise exception 'trumpet.unwatch() needs a table, got NULL' using errcode = 'null_value_not_allowed';
  end if;
  perform pg_advisory_xact_lock(1953656176, 5);
  if trumpet.drop_triggers(relation) = 0 then
    raise exception 'trumpet: % is not watched', relation
      using errcode = 'undefined_object', hint = 'select * from trumpet.watched shows what is.';
  end if;
end $$;

-- Lets a role that owns tables watch them.
create function trumpet.grant_watch(owner_role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('grant usage on schema trumpet to %I', owner_role);
  execute format('grant select on trumpet.watched to %I', owner_role);
  execute format('grant execute on function trumpet.watch(regclass, text[], text[], text, int, int), trumpet.unwatch(regclass),
    trumpet.drop_triggers(regclass), trumpet.valid_topic(text), trumpet.capture() to %I', owner_role);
end $$;

revoke execute on all functions in schema trumpet from public;

insert into trumpet.migration (version, name) values (2, 'watch');
