-- Takes back Trumpet 6. Tables that were watched by the WAL are not watched any more.
do $$
declare
  slot record;
begin
  for slot in
    select s.slot_name, s.active from pg_catalog.pg_replication_slots s
     where s.slot_name operator(pg_catalog.~) pg_catalog.format('^trumpet_%s(_[1-9])?$',
             (select d.oid from pg_catalog.pg_database d where d.datname operator(pg_catalog.=) pg_catalog.current_database()))
  loop
    if slot.active then
      raise exception 'trumpet: a worker reads the WAL through slot %', slot.slot_name
        using errcode = 'object_in_use', hint = 'Stop the workers, or end watching by the WAL and wait a moment.';
    end if;
    perform pg_catalog.pg_drop_replication_slot(slot.slot_name);
  end loop;
  if exists (select from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid operator(pg_catalog.=) r.prpubid
              where p.pubname operator(pg_catalog.=) 'trumpet' and r.prrelid operator(pg_catalog.=) 'trumpet.wal_table'::pg_catalog.regclass) then
    drop publication trumpet;
  end if;
end $$;

drop function trumpet.watch(regclass, text[], text[], text, int, int, text);
drop function trumpet.unpublish(regclass);
drop function trumpet.publish(regclass, text[], text[]);
drop function trumpet.create_publication();
drop function trumpet.wal_append(pg_lsn, json, text[], text[], text[], bigint[], text[], text[], text[], bigint[], text[], text[], text[], boolean);
drop function trumpet.wal_end(boolean);
drop function trumpet.wal_begin(name, pg_lsn);
drop function trumpet.wal_resume();
drop function trumpet.timeline();
drop function trumpet.wal_pulse();
drop function trumpet.wal_state();
drop function trumpet.cut_until(pg_snapshot, pg_lsn);
drop function trumpet.cut();
drop function trumpet.sequence_until(pg_snapshot);
drop function trumpet.step(boolean, pg_snapshot);
drop function trumpet.watched_columns(text);
drop view trumpet.watched;
drop function trumpet.known_columns(regclass);
drop function trumpet.identity_columns(regclass);

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

create function trumpet.step(
  export boolean, out sequenced bigint, out snapshot pg_snapshot,
  out "position" bigint, out last_ordinal int, out tag int, out exported text)
language plpgsql as $$
declare
  head    record;
  step    record;
  payload text := '';
  packed  bigint := 0;
  roomy   boolean := pg_notification_queue_usage() <= 0.5;
begin
  if pg_current_xact_id_if_assigned() is not null then
    raise exception 'trumpet.% must be alone in its transaction', case when export then 'cut()' else 'sequence()' end
      using errcode = 'active_sql_transaction';
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'trumpet.% needs READ COMMITTED', case when export then 'cut()' else 'sequence()' end
      using errcode = 'active_sql_transaction';
  end if;
  if export then
    perform pg_advisory_xact_lock(1953656176, 2);
  elsif not pg_try_advisory_xact_lock(1953656176, 2) then
    sequenced := -1;
    snapshot := pg_current_snapshot();
    return;
  end if;
  sequenced := 0;
  -- A new statement after the lock: it sees what the step before has committed.
  select l.position, l.last_ordinal, l.tag, l.bytes, l.snapshot into strict head
    from trumpet.log l order by l.position desc limit 1;
  position := head.position;
  last_ordinal := head.last_ordinal;
  tag := head.tag;

  for step in
    with taken as materialized (           -- one statement, one snapshot
      select pg_current_snapshot() as snapshot, case when export then pg_export_snapshot() end as exported),
    fresh as materialized (
      select r.* from trumpet.record r where r.xid >= pg_snapshot_xmax(head.snapshot)
      union all
      select r.* from trumpet.record r where r.xid = any (array(select pg_snapshot_xip(head.snapshot)))),
    placed as (
      select f.*, max(f.id) over (partition by f.xid) as last_id from fresh f),
    numbered as materialized (
      select p.*,
             head.position + row_number() over in_order as position,
             head.bytes + sum(100 + coalesce(pg_column_size(p.before), 0) + coalesce(pg_column_size(p.after), 0)
                                  + coalesce(pg_column_size(p.data), 0)) over in_order as bytes,
             (floor(random() * 4294967296) - 2147483648)::int as tag,
             coalesce(lead(p.xid) over in_order = p.xid, false) as more,
             lead(p.xid) over in_order is null as newest,
             case when p.op in ('insert', 'update', 'delete') then p.rows::int - 1 else 0 end as last_ordinal
        from placed p
      window in_order as (order by p.last_id, p.id)),
    logged as (
      insert into trumpet.log (position, tag, xid, id, last_ordinal, more, bytes, snapshot)
      select n.position, n.tag, n.xid, n.id, n.last_ordinal, n.more, n.bytes,
             case when n.newest then taken.snapshot end
        from numbered n, taken)
    select taken.snapshot, taken.exported, n.position, n.last_ordinal, n.tag,
           case when coalesce(pg_column_size(n.before), 0) + coalesce(pg_column_size(n.after), 0)
                     + coalesce(pg_column_size(n.data), 0) <= 7000
                then trumpet.line(n.position, n.tag, n.id, n.last_ordinal, n.more, n.at, n.op, n.statement,
                                  n.rows, n.topic, n.key, n.before, n.after, n.data)
           end as line
      from taken left join numbered n on true
     order by n.position
  loop
    snapshot := step.snapshot;
    exported := step.exported;
    exit when step.position is null;       -- nothing new
    sequenced := sequenced + 1;
    position := step.position;
    last_ordinal := step.last_ordinal;
    tag := step.tag;
    continue when not roomy or packed > 524288;    -- past half a megabyte workers read the log
    if step.line is null or octet_length(step.line) > 7000 then
      step.line := step.position || E'\t' || lpad(to_hex(step.tag), 8, '0');   -- a stub: read it from the log
    end if;
    if octet_length(payload) + octet_length(step.line) > 7900 then
      perform trumpet.notify_lines(payload);
      payload := '';
    end if;
    packed := packed + octet_length(step.line);
    payload := payload || step.line || E'\n';
    if packed > 524288 then
      perform trumpet.notify_lines(payload);
      payload := '';
    end if;
  end loop;
  if packed > 524288 then
    payload := position || E'\n';     -- the last position alone: read up to here
  end if;
  if payload <> '' then
    perform trumpet.notify_lines(payload);
  end if;
end $$;

create or replace function trumpet.sequence(out sequenced bigint, out snapshot pg_snapshot)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan set jit = off
as $$
declare
  done record;
begin
  done := trumpet.step(false);             -- an assignment, because a query would cost more
  sequenced := done.sequenced;
  snapshot := done.snapshot;
end $$;

create function trumpet.cut(out "position" bigint, out last_ordinal int, out tag int, out snapshot text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan set jit = off
set lock_timeout = '5s'
as $$
declare
  done record;
begin
  perform set_config('idle_in_transaction_session_timeout', '2s', true);
  -- As for the sequencer's own session: what is told of must survive a crash, even where writers do
  -- not wait for their own commits.
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'local', true);
  end if;
  done := trumpet.step(true);
  position := done.position;
  last_ordinal := done.last_ordinal;
  tag := done.tag;
  snapshot := done.exported;
end $$;

create function trumpet.watched_columns(
  topic text, out relation oid, out schema_name text, out table_name text, out key text[], out picked boolean,
  out "column" text, out number int, out type text, out is_virtual boolean, out is_enum boolean, out labels text[])
returns setof record
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with recursive watched as materialized (
    select w.relation, w.key, w.columns from trumpet.watched w
     where w.topic = watched_columns.topic and not w.is_partition),
  base as (
    select a.attrelid, a.attname, a.attnum, a.attgenerated, a.atttypid as type
      from watched w join pg_attribute a on a.attrelid = w.relation
     where a.attnum > 0 and not a.attisdropped and (w.columns is null or a.attname = any (w.columns))
    union all
    select b.attrelid, b.attname, b.attnum, b.attgenerated, t.typbasetype
      from base b join pg_type t on t.oid = b.type where t.typtype = 'd')
  select w.relation, n.nspname, c.relname,
         array(select k.name from unnest(w.key) with ordinality k(name, n)
                where exists (select from base k2 where k2.attname = k.name) order by k.n),
         w.columns is not null,
         b.attname, b.attnum, format_type(b.type, -1), b.attgenerated = 'v', t.typtype = 'e',
         array(select e.enumlabel::text from pg_enum e where e.enumtypid = b.type order by e.enumsortorder)
    from watched w
    join pg_class c on c.oid = w.relation
    join pg_namespace n on n.oid = c.relnamespace
    join base b on b.attrelid = w.relation
    join pg_type t on t.oid = b.type and t.typtype <> 'd'
   order by b.attnum
$$;

create or replace function trumpet.verify_cluster() returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  here bigint := (select s.system_identifier from pg_control_system() s);
  head bigint;
begin
  if here = (select c.system_identifier from trumpet.cluster c) then
    return false;
  end if;
  perform pg_advisory_xact_lock(1953656176, 2);
  update trumpet.cluster c set system_identifier = here where c.system_identifier <> here;
  if not found then
    return false;                          -- another worker was faster
  end if;
  select max(l.position) into strict head from trumpet.log l;
  delete from trumpet.log;
  delete from trumpet.record r where pg_visible_in_snapshot(r.xid, pg_current_snapshot()) or r.xid >= pg_current_xact_id();
  insert into trumpet.log (position, tag, last_ordinal, more, bytes, snapshot)
  values (head, (floor(random() * 4294967296) - 2147483648)::int, 0, false, 0, pg_current_snapshot());
  return true;
end $$;

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

create or replace function trumpet.unwatch(relation regclass) returns void
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

create or replace function trumpet.grant_watch(owner_role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('grant usage on schema trumpet to %I', owner_role);
  execute format('grant select on trumpet.watched to %I', owner_role);
  execute format('grant execute on function trumpet.watch(regclass, text[], text[], text, int, int), trumpet.unwatch(regclass),
    trumpet.drop_triggers(regclass), trumpet.valid_topic(text), trumpet.capture() to %I', owner_role);
end $$;

create or replace function trumpet.grant_worker(worker_role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('grant usage on schema trumpet to %I', worker_role);
  execute format('grant select on trumpet.migration, trumpet.cluster, trumpet.live, trumpet.live_result, trumpet.live_queries to %I', worker_role);
  execute format('grant execute on function trumpet.sequence(), trumpet.cut(), trumpet.watched_columns(text), trumpet.head(), trumpet.recent(int),
    trumpet.read_log(bigint, int, int, bigint, int, bigint), trumpet.common_position(bigint[], int[]),
    trumpet.prune(interval, bigint, int), trumpet.publish_result(text, bigint, bigint, json, text, text), trumpet.live_results(), trumpet.live_state(),
    trumpet.verify_cluster(), trumpet.broadcast(text, jsonb) to %I', worker_role);
end $$;

revoke execute on function trumpet.step(boolean), trumpet.cut(), trumpet.watched_columns(text),
  trumpet.watch(regclass, text[], text[], text, int, int) from public;
do $$
begin
  perform trumpet.grant_worker(r.rolname)
     from pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a, pg_catalog.pg_roles r
    where p.oid operator(pg_catalog.=) 'trumpet.sequence()'::pg_catalog.regprocedure
      and a.privilege_type operator(pg_catalog.=) 'EXECUTE'
      and r.oid operator(pg_catalog.=) a.grantee and a.grantee operator(pg_catalog.<>) p.proowner;
  perform trumpet.grant_watch(r.rolname)
     from pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a, pg_catalog.pg_roles r
    where p.oid operator(pg_catalog.=) 'trumpet.unwatch(regclass)'::pg_catalog.regprocedure
      and a.privilege_type operator(pg_catalog.=) 'EXECUTE'
      and r.oid operator(pg_catalog.=) a.grantee and a.grantee operator(pg_catalog.<>) p.proowner;
end $$;

alter function trumpet.live_topics(text[], text) reset jit;
alter function trumpet.check_live(text, interval, interval, name) reset jit;
alter function trumpet.live_aggregate(text, regclass, text[], text[], text, interval, interval, name) reset jit;
alter table trumpet.record drop column lsn, drop column committed;
drop function trumpet.place();
drop table trumpet.wal_table;
drop table trumpet.wal_slot;
drop table trumpet.wal_read;

delete from trumpet.migration where version = 6;
