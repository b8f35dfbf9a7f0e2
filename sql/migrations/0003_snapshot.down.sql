-- Takes back Trumpet 3. The functions that it replaced are again as migrations 1 and 2 made them.
drop function trumpet.cut();
drop function trumpet.watched_columns(text);
alter function trumpet.capture() reset datestyle;

create or replace function trumpet.pick_columns(rows json, columns text) returns json
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if columns = '' then
    return rows;
  end if;
  return (select json_agg((select coalesce(json_object_agg(c.key, c.value), '{}')
                             from json_each(r.row) c where c.key = any (columns::text[])) order by r.n)
            from json_array_elements(rows) with ordinality r(row, n));
end $$;

create or replace function trumpet.sequence(out sequenced bigint, out snapshot pg_snapshot)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
-- The plan must not depend on statistics: the index finds the few new records
-- among millions of old ones, and compiling for them would cost more than running.
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan set jit = off
as $$
declare
  head    record;
  step    record;
  payload text := '';
  packed  bigint := 0;
  roomy   boolean := pg_notification_queue_usage() <= 0.5;
begin
  if pg_current_xact_id_if_assigned() is not null then
    raise exception 'trumpet.sequence() must be alone in its transaction'
      using errcode = 'active_sql_transaction';
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'trumpet.sequence() needs READ COMMITTED'
      using errcode = 'active_sql_transaction';
  end if;
  if not pg_try_advisory_xact_lock(1953656176, 2) then
    sequenced := -1;
    snapshot := pg_current_snapshot();
    return;
  end if;
  sequenced := 0;
  -- A new statement after the lock: it sees what the step before has committed.
  select l.position, l.bytes, l.snapshot into strict head
    from trumpet.log l order by l.position desc limit 1;

  for step in
    with taken as materialized (           -- one statement, one snapshot
      select pg_current_snapshot() as snapshot),
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
    select taken.snapshot, n.position, n.tag,
           case when coalesce(pg_column_size(n.before), 0) + coalesce(pg_column_size(n.after), 0)
                     + coalesce(pg_column_size(n.data), 0) <= 7000
                then trumpet.line(n.position, n.tag, n.id, n.last_ordinal, n.more, n.at, n.op, n.statement,
                                  n.rows, n.topic, n.key, n.before, n.after, n.data)
           end as line
      from taken left join numbered n on true
     order by n.position
  loop
    snapshot := step.snapshot;
    exit when step.position is null;       -- nothing new
    sequenced := sequenced + 1;
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
    payload := (head.position + sequenced) || E'\n';     -- the last position alone: read up to here
  end if;
  if payload <> '' then
    perform trumpet.notify_lines(payload);
  end if;
end $$;

-- What a worker's role needs, and nothing more.
create or replace function trumpet.grant_worker(worker_role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('grant usage on schema trumpet to %I', worker_role);
  execute format('grant select on trumpet.migration, trumpet.cluster to %I', worker_role);
  execute format('grant execute on function trumpet.sequence(), trumpet.head(), trumpet.recent(int),
    trumpet.read_log(bigint, int, int, bigint, int, bigint), trumpet.common_position(bigint[], int[]),
    trumpet.prune(interval, bigint, int),
    trumpet.verify_cluster(), trumpet.broadcast(text, jsonb) to %I', worker_role);
end $$;

drop function trumpet.step(boolean);
delete from trumpet.migration where version = 3;
