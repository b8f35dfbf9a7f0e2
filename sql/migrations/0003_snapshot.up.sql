-- Trumpet 3: the clean cut.
--
-- A snapshot for a client, or a live query's result, is worth nothing without the exact place in the
-- log that it is true of. trumpet.cut() makes one step of the sequencer and exports, for another
-- session to read with, the very snapshot by which that step decided what is in the log. So the log
-- up to the cut's position is what that snapshot sees: no more, no less.

-- The work of trumpet.sequence() and trumpet.cut(); see migration 1 for how it decides what is new.
-- Nobody but these two may call it: they bring their owner's rights, the search_path, and the
-- planner's settings, which to set here once more would cost every step a tenth of its time.
--
-- export: waits for its turn instead of giving up, and exports the snapshot. The export stands in the
-- statement that finds the new records: each statement of a READ COMMITTED transaction has a
-- snapshot of its own, and one taken before or after would see less or more than the log has.
--
-- sequenced: how many records got a position; -1 if another session is at it.
-- snapshot: what this step saw. A caller may sleep when nothing is in progress in it.
-- position, last_ordinal, tag: where the log ends now; null if another session is at it.
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

-- One step of the sequencer, for the worker that has the duty; migration 1 says what it does.
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

-- One step of the sequencer and its snapshot, for  set transaction snapshot  in a REPEATABLE READ
-- transaction of another session, which must begin before this one ends. After that commit this one:
-- positions exist once they are committed, so the cut is good only if the commit succeeded.
--
-- Until then no other session can step. So it waits for its turn for 5 s at most, and whoever is
-- frozen in between loses the session after 2 s; the step is then rolled back and costs nobody an event.
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

-- The table behind a topic, one row for each of its watched columns, in their order; none if no table
-- has the topic. Types are those below any domain, without a length or a precision: what a value is
-- compared as. A column that is named in trumpet.watch() and gone since is left out. picked says
-- whether the watched columns were named: such rows are rendered in another way (trumpet.pick_columns).
-- Generated columns that are virtual (PostgreSQL 18) are null to triggers, and so in events.
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

-- As before, but the user's statement no longer fails for a json column with "\u0000" or half a
-- surrogate pair, in any column: json takes them, and whatever takes json apart does not. Such a
-- statement becomes a bulk event.
create or replace function trumpet.pick_columns(rows json, columns text) returns json
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if columns = '' then
    return rows;
  end if;
  return (select json_agg((select coalesce(json_object_agg(c.key, c.value), '{}')
                             from json_each(r.row) c where c.key = any (columns::text[])) order by r.n)
            from json_array_elements(rows) with ordinality r(row, n));
exception when data_exception or out_of_memory then
  return null;
end $$;

-- Ranges show dates in the way of the session that writes; json_agg's own dates never did.
alter function trumpet.capture() set datestyle = 'ISO, MDY';

-- What a worker's role needs, and nothing more.
create or replace function trumpet.grant_worker(worker_role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('grant usage on schema trumpet to %I', worker_role);
  execute format('grant select on trumpet.migration, trumpet.cluster to %I', worker_role);
  execute format('grant execute on function trumpet.sequence(), trumpet.cut(), trumpet.watched_columns(text), trumpet.head(), trumpet.recent(int),
    trumpet.read_log(bigint, int, int, bigint, int, bigint), trumpet.common_position(bigint[], int[]),
    trumpet.prune(interval, bigint, int),
    trumpet.verify_cluster(), trumpet.broadcast(text, jsonb) to %I', worker_role);
end $$;

revoke execute on function trumpet.step(boolean), trumpet.cut(), trumpet.watched_columns(text) from public;

-- Who ran workers before goes on to.
do $$
begin
  perform trumpet.grant_worker(r.rolname)
     from pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a, pg_catalog.pg_roles r
    where p.oid operator(pg_catalog.=) 'trumpet.sequence()'::pg_catalog.regprocedure
      and a.privilege_type operator(pg_catalog.=) 'EXECUTE'
      and r.oid operator(pg_catalog.=) a.grantee and a.grantee operator(pg_catalog.<>) p.proowner;
end $$;

insert into trumpet.migration (version, name) values (3, 'snapshot');
