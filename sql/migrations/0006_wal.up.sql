-- Trumpet 6: the WAL capture.
--
-- A table may be watched without triggers: its changes are published (CREATE PUBLICATION), and the worker
-- that sequences reads them from the write-ahead log, through the one replication slot that there is. It
-- writes them into trumpet.record with the transaction's own id, as a trigger would have done, and from
-- there on both captures are the same: one step gives positions to what has become visible.
--
-- While there is a slot, a step needs more than a snapshot: whatever that snapshot sees must have been read
-- from the WAL. So the worker takes a snapshot, and then the place where the WAL ends; reads up to there;
-- and steps with that snapshot (trumpet.sequence_until). Others can step only if they find in
-- trumpet.wal_read that it has been read far enough.
--
-- The slot exists while tables are watched this way, and the worker makes and drops it. Where its
-- position was lost, or there was none before, each of its topics gets a bulk event: rows may have changed
-- that no other event tells of.

-- The tables watched this way. It is published itself, so that the reader of the WAL hears of a change of
-- the settings in its place among the changes of rows.
create table trumpet.wal_table (
  id          oid primary key,        -- the relation's, which is what stands in the WAL
  relation    regclass not null,      -- the same as a name, so that a dump can be restored
  topic       text not null,
  key         text[] not null,
  columns     text[],                 -- null: all
  max_rows    int not null,
  max_bytes   int not null,
  partitioned boolean not null
);

-- The slot, while there is one.
create table trumpet.wal_slot (
  one      boolean primary key default true check (one),
  name     name not null,
  made_at  timestamptz not null default now(),
  timeline text not null            -- of the server; '' if it does not tell
);

-- How far the WAL has been read: the changes of every transaction whose commit ends at lsn or before are in
-- trumpet.record. The newest row counts; the others are about to go. Not one row that is
-- updated: its dead versions would pile up while some transaction stays open for hours.
create table trumpet.wal_read (
  lsn    pg_lsn primary key,
  tables json not null              -- trumpet.wal_table as of there, by id
);

-- Where a record stands in the WAL: what brings both captures into one order. For a trigger's record and a
-- broadcast that is where the WAL ended when it was written, after the changes that it tells of; for one from the WAL,
-- the change itself. Steps order transactions by committed, the place of the commit, where it
-- is known, and else by their last record: whatever a transaction saw comes before it.
alter table trumpet.record add column lsn pg_lsn, add column committed pg_lsn;

-- The place for a trigger's record or a broadcast. Rows of one table and operation that stand together in the WAL become
-- one record; so where there is a slot, its reader is told that something stands between them.
create function trumpet.place() returns pg_lsn
language plpgsql as $$
begin
  if exists (select from trumpet.wal_slot) then
    perform pg_catalog.pg_logical_emit_message(true, 'trumpet', '');
  end if;
  return pg_catalog.pg_current_wal_insert_lsn();
end $$;
alter table trumpet.record alter column lsn set default trumpet.place();

-- As in migration 3, and with
-- upto: the snapshot to step with. If null, a new one; where there is a slot only if the WAL has been read
-- far enough for it. Else sequenced is -1, and wal says how far it would have to be read.
drop function trumpet.step(boolean);
create function trumpet.step(
  export boolean, upto pg_snapshot, out sequenced bigint, out snapshot pg_snapshot,
  out "position" bigint, out last_ordinal int, out tag int, out exported text, out wal pg_lsn)
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
  if upto is null and exists (select from trumpet.wal_slot) then
    select pg_current_snapshot(), case when export then pg_export_snapshot() end, pg_current_wal_insert_lsn()
      into snapshot, exported, wal;
    if (select r.lsn from trumpet.wal_read r order by r.lsn desc limit 1) < wal then
      sequenced := -1;
      return;
    end if;
    upto := snapshot;
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
      select coalesce(upto, pg_current_snapshot()) as snapshot,
             case when upto is null and export then pg_export_snapshot() else exported end as exported),
    fresh as materialized (
      select r.* from trumpet.record r where r.xid >= pg_snapshot_xmax(head.snapshot)
         and (upto is null or pg_visible_in_snapshot(r.xid, upto))
      union all
      select r.* from trumpet.record r where r.xid = any (array(select pg_snapshot_xip(head.snapshot)))
         and (upto is null or pg_visible_in_snapshot(r.xid, upto))),
    placed as (
      select f.*, coalesce(max(f.committed) over of_one, max(f.lsn) over of_one, '0/0') as place, max(f.id) over of_one as last_id
        from fresh f window of_one as (partition by f.xid)),
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
      window in_order as (order by p.place, p.last_id, p.lsn nulls first, p.id)),
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

-- As in migration 3.
create or replace function trumpet.sequence(out sequenced bigint, out snapshot pg_snapshot)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan set jit = off
as $$
declare
  done record;
begin
  done := trumpet.step(false, null);       -- an assignment, because a query would cost more
  sequenced := done.sequenced;
  snapshot := done.snapshot;
end $$;

-- A step for the worker that reads the WAL. It has read what this snapshot sees.
create function trumpet.sequence_until(upto pg_snapshot, out sequenced bigint, out snapshot pg_snapshot)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan set jit = off
as $$
declare
  done record;
begin
  if upto is null then
    raise exception 'trumpet.sequence_until() needs a snapshot, got NULL' using errcode = 'null_value_not_allowed';
  end if;
  done := trumpet.step(false, upto);
  sequenced := done.sequenced;
  snapshot := done.snapshot;
end $$;

-- As in migration 3. Where the WAL has to be read first, position is null: then whoever reads it is to be
-- woken, and trumpet.cut_until() called in this transaction with upto and wal.
drop function trumpet.cut();
create function trumpet.cut(
  out "position" bigint, out last_ordinal int, out tag int, out snapshot text, out upto pg_snapshot, out wal pg_lsn)
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
  done := trumpet.step(true, null);
  snapshot := done.exported;
  if done.sequenced < 0 then
    upto := done.snapshot;
    wal := done.wal;
    return;
  end if;
  position := done.position;
  last_ordinal := done.last_ordinal;
  tag := done.tag;
end $$;

-- The second half of a cut: waits, for 3 s at most, until the WAL has been read.
create function trumpet.cut_until(upto pg_snapshot, wal pg_lsn, out "position" bigint, out last_ordinal int, out tag int)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan set jit = off
as $$
declare
  done  record;
  began constant timestamptz := clock_timestamp();
begin
  loop
    -- Without a slot nobody reads any more, and nothing is left to be read.
    exit when (select r.lsn from trumpet.wal_read r order by r.lsn desc limit 1) >= cut_until.wal
      or not exists (select from trumpet.wal_slot);
    if clock_timestamp() - began > interval '3 s' then
      raise exception 'trumpet: the WAL has not been read up to %', wal
        using errcode = 'TRM04', hint = 'The worker that sequences reads it: look at its log.';
    end if;
    perform pg_sleep(0.001);
  end loop;
  done := trumpet.step(false, upto);
  position := done.position;
  last_ordinal := done.last_ordinal;
  tag := done.tag;
end $$;

-- What the worker that sequences goes by.
-- wanted: tables are watched by the WAL. slot: what there is, or null. lsn, tables: as in trumpet.wal_read.
create function trumpet.wal_state(out wanted boolean, out slot name, out lsn pg_lsn, out tables json)
language sql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  select exists (select from trumpet.wal_table t join pg_class c on c.oid = t.relation),
         s.name, case when s.name is not null then r.lsn end, case when s.name is not null then r.tables end
    from (select) one
    left join trumpet.wal_slot s on true
    left join lateral (select w.lsn, w.tables from trumpet.wal_read w order by w.lsn desc limit 1) r on true
$$;

-- The same for heartbeats, with what the slot keeps from being removed. One row, all null but wanted where
-- there is no slot; none if no table is watched this way either.
-- confirmed: up to where the slot's reader has confirmed. retained: bytes of WAL. safe: how many more can be
-- written before the slot is given up (max_slot_wal_keep_size); null: any number. status: pg_replication_slots.wal_status.
create function trumpet.wal_pulse(
  out wanted boolean, out slot name, out confirmed pg_lsn, out wal pg_lsn, out retained bigint, out safe bigint, out status text)
returns setof record
language sql stable security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  select s.wanted, s.slot, r.confirmed_flush_lsn, pg_current_wal_insert_lsn(),
         pg_wal_lsn_diff(pg_current_wal_insert_lsn(), r.restart_lsn)::bigint, r.safe_wal_size,
         case when s.slot is not null then coalesce(r.wal_status, 'gone') end
    from trumpet.wal_state() s left join pg_replication_slots r on r.slot_name = s.slot
   where s.wanted or s.slot is not null
$$;

-- Which of its histories the server is in (PostgreSQL manual, 26.3.6).
create function trumpet.timeline() returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  return left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);
exception when insufficient_privilege then
  return '';                               -- some hosted servers keep it to themselves
end $$;

-- A slot goes on to be read. After a fail-over to a standby that kept the slot it may be ahead of what that standby had
-- of trumpet.wal_read: what is in between is not sent again. So the topics are told, by bulk events. Returns whether.
create function trumpet.wal_resume() returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update trumpet.wal_slot s set timeline = trumpet.timeline() where s.timeline <> trumpet.timeline();
  if not found then
    return false;
  end if;
  insert into trumpet.record (topic, op, rows)
  select t.topic, 'bulk', 0 from trumpet.wal_table t join pg_class c on c.oid = t.id order by t.topic;
  return true;
end $$;

-- A slot begins: the WAL is read from lsn on. Whatever was committed before is in no record, so each topic
-- gets a bulk event. False if watches are being changed just now: try again.
create function trumpet.wal_begin(slot name, lsn pg_lsn) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not pg_try_advisory_xact_lock_shared(1953656176, 5) then
    return false;
  end if;
  delete from trumpet.wal_slot;
  delete from trumpet.wal_read;
  insert into trumpet.wal_slot (name, timeline) values (wal_begin.slot, trumpet.timeline());
  insert into trumpet.wal_read (lsn, tables)
  select wal_begin.lsn, coalesce(json_object_agg(t.id, json_build_object('topic', t.topic, 'key', t.key, 'columns', t.columns,
           'max_rows', t.max_rows, 'max_bytes', t.max_bytes, 'partitioned', t.partitioned)), '{}')
    from trumpet.wal_table t join pg_class c on c.oid = t.id;
  insert into trumpet.record (topic, op, rows)
  select t.topic, 'bulk', 0 from trumpet.wal_table t join pg_class c on c.oid = t.id order by t.topic;
  return true;
end $$;

-- The slot is no more, or is about to be dropped. Unless forced, only if no table needs it: false if one does.
-- If forced, what was not read is lost. Topics of tables that went to triggers meanwhile are told at once, by
-- bulk events; the others when another slot begins.
create function trumpet.wal_end(forced boolean) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not forced then
    if not pg_try_advisory_xact_lock_shared(1953656176, 5) or (select w.wanted from trumpet.wal_state() w) then
      return false;
    end if;
  else
    insert into trumpet.record (topic, op, rows)
    select l.value ->> 'topic', 'bulk', 0
      from (select r.tables from trumpet.wal_read r order by r.lsn desc limit 1) newest, json_each(newest.tables) l
     where l.key::oid not in (select w.id from trumpet.wal_table w);
  end if;
  delete from trumpet.wal_slot;
  delete from trumpet.wal_read;
  return true;
end $$;

-- Takes what was read from the WAL, up to and with the transaction whose commit ends at reached. tables: the
-- settings as of there, null if they are what they were. The arrays have one element for each record, in
-- their order; '' stands for null.
--
-- wait: until it is on disk. Else a crash may take it back, and then it is read once more; the step that
-- follows is waited for, and comes later in the WAL.
--
-- late: topics of records that come too late, because a step has passed their transaction; those are left
-- out. That can be so right after a slot began; the topics get a bulk event.
create function trumpet.wal_append(
  reached pg_lsn, tables json, committed text[], lsns text[], xids text[], at_micros bigint[], topics text[], ops text[],
  statements text[], counts bigint[], keys text[], befores text[], afters text[], wait boolean, out late text[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan set jit = off
as $$
declare
  newest trumpet.wal_read;
  passed pg_snapshot;
begin
  if not wait then
    perform set_config('synchronous_commit', 'off', true);
  end if;
  select r.* into newest from trumpet.wal_read r order by r.lsn desc limit 1;
  if not found or newest.lsn > reached or not exists (select from trumpet.wal_slot) then
    raise exception 'trumpet: the WAL has been read up to % by another session', newest.lsn
      using errcode = 'TRM05';
  end if;
  if cardinality(topics) > 0 then
    select l.snapshot into strict passed from trumpet.log l order by l.position desc limit 1;
    insert into trumpet.record (xid, at, topic, op, statement, rows, key, before, after, first, lsn, committed)
    select r.xid::xid8, timestamptz 'epoch' + r.micros * interval '1 microsecond', r.topic, r.op, nullif(r.statement, ''), r.count,
           nullif(r.key, '')::text[], nullif(r.before, '')::json, nullif(r.after, '')::json, false, r.lsn::pg_lsn, r.committed::pg_lsn
      from unnest(committed, lsns, xids, at_micros, topics, ops, statements, counts, keys, befores, afters)
           with ordinality r(committed, lsn, xid, micros, topic, op, statement, count, key, before, after, n)
     where not pg_visible_in_snapshot(r.xid::xid8, passed)
     order by r.n;
    select array_agg(distinct r.topic) into late
      from unnest(topics, xids) r(topic, xid) where pg_visible_in_snapshot(r.xid::xid8, passed);
    insert into trumpet.record (topic, op, rows, first)
    select l.topic, 'bulk', 0, false from unnest(late) l(topic);
  end if;
  if newest.lsn < reached then
    insert into trumpet.wal_read (lsn, tables) values (reached, coalesce(wal_append.tables, newest.tables));
    -- By its key: looking for all that are less would visit every dead row that a long transaction keeps.
    delete from trumpet.wal_read r where r.lsn = newest.lsn;
  elsif wal_append.tables is not null then
    update trumpet.wal_read r set tables = wal_append.tables where r.lsn = reached;
  end if;
end $$;

-- As in migration 1.
create or replace function trumpet.verify_cluster() returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  here bigint := (select s.system_identifier from pg_control_system() s);
  head bigint;
  tables trumpet.wal_table[];
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
  delete from trumpet.wal_slot;            -- slots are not dumped
  delete from trumpet.wal_read;
  -- Tables have other ids here, and one may have another's.
  tables := array(select w from trumpet.wal_table w);
  delete from trumpet.wal_table;
  insert into trumpet.wal_table (id, relation, topic, key, columns, max_rows, max_bytes, partitioned)
  select t.relation, t.relation, t.topic, t.key, t.columns, t.max_rows, t.max_bytes, t.partitioned from unnest(tables) t;
  delete from trumpet.record r where pg_visible_in_snapshot(r.xid, pg_current_snapshot()) or r.xid >= pg_current_xact_id();
  insert into trumpet.log (position, tag, last_ordinal, more, bytes, snapshot)
  values (head, (floor(random() * 4294967296) - 2147483648)::int, 0, false, 0, pg_current_snapshot());
  return true;
end $$;

-- The columns that identify a row in the WAL: what is known there of a row before its change. Null if that
-- is the whole row (REPLICA IDENTITY FULL); empty if it is nothing.
create function trumpet.identity_columns(relation regclass) returns text[]
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when c.relreplident <> 'f' then
         array(select a.attname::text from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
                where i.indrelid = c.oid and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end
                order by array_position(i.indkey::int2[], a.attnum)) end
    from pg_class c where c.oid = relation
$$;

-- The same for a topic's table: of a partitioned one, whose rows are in its partitions, what is known of all of them.
create function trumpet.known_columns(relation regclass) returns text[]
language sql stable set search_path = pg_catalog, pg_temp set jit = off as $$
  with recursive tree as (
    select $1::oid as id
    union all
    select i.inhrelid from pg_inherits i join tree on i.inhparent = tree.id)
  select i.columns from (select trumpet.identity_columns(t.id) as columns from tree t join pg_class c on c.oid = t.id where c.relkind <> 'p') i
   order by i.columns is null, cardinality(i.columns) limit 1
$$;

-- The watched tables and their partitions, read from the triggers and from the publication.
-- identity: what is known of a row before its change; null: all. Of a partitioned table: in every partition.
create or replace view trumpet.watched as
  select t.tgrelid::regclass as relation,
         a.args[1] as topic,
         nullif(a.args[2], '')::text[] as key,
         nullif(a.args[3], '')::text[] as columns,
         a.args[4]::int as max_rows,
         a.args[5]::int as max_bytes,
         a.args[6] = 'partition' as is_partition,
         count(*) filter (where t.tgenabled <> 'D') = 4 as enabled,
         'triggers' as capture,
         null::text[] as identity
    from pg_catalog.pg_trigger t,
         -- tgargs holds the arguments one after the other, each ended by a zero byte.
         lateral (select array_agg(convert_from(decode(s.hex, 'hex'), getdatabaseencoding()) order by s.n) as args
                    from regexp_split_to_table(regexp_replace(encode(t.tgargs, 'hex'), '(..)', '\1 ', 'g'), '00 ')
                         with ordinality s(hex, n)) a
   where t.tgfoid = 'trumpet.capture()'::regprocedure
   group by t.tgrelid, a.args
  union all
  select m.relation, w.topic, w.key, w.columns, w.max_rows, w.max_bytes, m.relation <> w.relation,
         exists (select from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
                  where p.pubname = 'trumpet' and r.prrelid = w.relation),
         'wal', case when w.partitioned and m.relation = w.relation then trumpet.known_columns(m.relation) else trumpet.identity_columns(m.relation) end
    from trumpet.wal_table w
    join pg_catalog.pg_class c on c.oid = w.relation,
         -- Not pg_partition_tree(), which waits for whoever has a partition locked.
         lateral (with recursive tree as (
                    select w.id
                    union all
                    select i.inhrelid from pg_catalog.pg_inherits i join tree on i.inhparent = tree.id where w.partitioned)
                  select tree.id::regclass from tree) m(relation);

-- The publication, made when the first table needs it.
create function trumpet.create_publication() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
              where p.pubname = 'trumpet' and r.prrelid = 'trumpet.wal_table'::regclass) then
    if current_setting('server_version_num')::int >= 180000 then  -- it may have been made before an upgrade
      execute 'alter publication trumpet set (publish_generated_columns = stored)';
    end if;
    return;
  end if;
  if exists (select from pg_publication p where p.pubname = 'trumpet') then
    raise exception 'trumpet: there is a publication trumpet, which is not Trumpet''s'
      using errcode = 'duplicate_object', hint = 'alter publication trumpet rename to …';
  end if;
  -- From version 18 on the WAL's readers can have stored generated columns.
  execute 'create publication trumpet for table trumpet.wal_table'
    || case when current_setting('server_version_num')::int >= 180000 then ' with (publish_generated_columns = stored)' else '' end;
end $$;

-- Publishes a table. It must be so that no statement of its writers can fail because it is published:
-- Postgres refuses UPDATE and DELETE of a published table whose rows nothing identifies, or whose identity is
-- not among the published columns.
create function trumpet.publish(relation regclass, columns text[], key text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  class  record;
  part   record;
  listed text := '';
  named  text;
begin
  if current_setting('wal_level') <> 'logical' then
    raise exception 'trumpet: the WAL capture needs wal_level = logical, it is %', current_setting('wal_level')
      using errcode = 'object_not_in_prerequisite_state',
            hint = 'alter system set wal_level = logical; and restart Postgres. Or leave capture out, for triggers.';
  end if;
  select c.relkind, c.relpersistence, pg_get_userbyid(n.nspowner) as schema_owner, trumpet.identity_columns(c.oid) as identity into strict class
    from pg_class c, pg_namespace n where c.oid = publish.relation and n.nspname = 'trumpet';
  if class.relpersistence = 'u' then
    raise exception 'trumpet: % is unlogged, so its changes are not in the WAL', relation
      using errcode = 'wrong_object_type', hint = 'Leave capture out, for triggers.';
  end if;
  if not pg_has_role(class.schema_owner, 'usage') then
    raise exception 'trumpet: capture by WAL needs the rights of %, who owns schema trumpet', class.schema_owner
      using errcode = 'insufficient_privilege',
            hint = format('grant %I to %I; publications are changed by their owner only.', class.schema_owner, current_user);
  end if;
  select string_agg(quote_ident(a.attname), ', ') into named
    from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attgenerated = 's'
     and (columns is null or a.attname = any (columns));
  if named is not null and current_setting('server_version_num')::int < 180000 then
    raise exception 'trumpet: generated columns of % are not in the WAL before PostgreSQL 18: %', relation, named
      using errcode = 'feature_not_supported',
            hint = 'Name the others, columns => ''{…}'', or leave capture out, for triggers.';
  end if;
  if class.relkind = 'p' and not exists (select from pg_index i where i.indrelid = publish.relation and i.indisprimary) then
    raise exception 'trumpet: % is partitioned and has no primary key: UPDATE and DELETE of partitions to come would fail', relation
      using errcode = 'object_not_in_prerequisite_state',
            hint = format('alter table %s add primary key (…); or leave capture out, for triggers.', relation);
  end if;
  for part in
    select c.oid::regclass as relation, c.relkind, trumpet.identity_columns(c.oid) as identity
      from pg_class c where c.oid = publish.relation or c.oid in (select t.relid from pg_partition_tree(publish.relation) t)
     order by c.oid <> publish.relation, c.oid
  loop
    if part.identity = '{}' then
      raise exception 'trumpet: nothing identifies a row of % in the WAL: UPDATE and DELETE would fail', part.relation
        using errcode = 'object_not_in_prerequisite_state',
              hint = format('alter table %s add primary key (…); or: alter table %1$s replica identity full;', part.relation);
    end if;
    if not key <@ part.identity then
      raise exception 'trumpet: the key of %, %, is not what identifies a row of it in the WAL', part.relation, array_to_string(key, ', ')
        using errcode = 'object_not_in_prerequisite_state',
              hint = format('alter table %s replica identity full; or using index, of an index on the key.', part.relation);
    end if;
  end loop;

  perform trumpet.create_publication();
  -- A partition is published by itself, and has no list of its own.
  if columns is not null and class.identity is not null and class.relkind = 'r' and current_setting('server_version_num')::int >= 150000 then
    listed := (select ' (' || string_agg(quote_ident(a.attname), ', ' order by a.attnum) || ')' from pg_attribute a
                where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attname = any (columns || class.identity));
  end if;
  execute format('alter publication trumpet add table only %s%s', relation, listed);
end $$;

-- Takes a table out of the publication. Returns whether it was in.
create function trumpet.unpublish(relation regclass) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from trumpet.wal_table w where w.relation = unpublish.relation) then
    return false;
  end if;
  if not exists (select from trumpet.wal_slot) then
    -- Nobody has read what was written since it was published.
    insert into trumpet.record (topic, op, rows)
    select w.topic, 'bulk', 0 from trumpet.wal_table w where w.relation = unpublish.relation;
  end if;
  delete from trumpet.wal_table w
   where w.relation = unpublish.relation or not exists (select from pg_class c where c.oid = w.relation);  -- dropped since
  if exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
              where p.pubname = 'trumpet' and r.prrelid = unpublish.relation) then
    execute format('alter publication trumpet drop table only %s', relation);
  end if;
  return true;
end $$;

-- As in migration 2, and with
--
--   capture    triggers, or wal: no triggers, the changes are read from the write-ahead log. That needs
--              wal_level = logical, a workers' role with the attribute REPLICATION, a caller who has the rights of
--              the owner of schema trumpet, and rows that are identified (a primary key). Events show old values,
--              and can be filtered by them, with REPLICA IDENTITY FULL only. max_rows and max_bytes bound what one
--              transaction does to the table: the WAL does not know statements.
--
-- It may be called again to go from one capture to the other while others write: no change is missed.
create function trumpet.watch(
  relation regclass, columns text[] default null, key text[] default null, topic text default null,
  max_rows int default 1000, max_bytes int default 8388608, capture text default 'triggers') returns text
language plpgsql set search_path = pg_catalog, pg_temp set jit = off as $$
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

  if capture is null or capture not in ('triggers', 'wal') then
    raise exception 'trumpet: capture is triggers or wal, got %', coalesce(quote_literal(capture), 'NULL')
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

  if capture = 'wal' or exists (select from trumpet.wal_table w where w.relation = watch.relation) then
    -- No transaction may be halfway through writing to it.
    execute format('lock table %s in %s mode', relation,
                   case when exists (select from trumpet.watched w where w.relation = watch.relation and w.capture = 'triggers')
                        then 'access exclusive'            -- dropping triggers takes it
                        else 'share row exclusive' end);
  end if;
  perform trumpet.drop_triggers(relation), trumpet.unpublish(relation);
  if capture = 'wal' then
    perform trumpet.publish(relation, columns, key);
    insert into trumpet.wal_table (id, relation, topic, key, columns, max_rows, max_bytes, partitioned)
    values (watch.relation, watch.relation, watch.topic, watch.key, watch.columns, watch.max_rows, watch.max_bytes, class.relkind = 'p');
    return topic;
  end if;
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

-- As in migration 2.
create or replace function trumpet.unwatch(relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if relation is null then
    raise exception 'trumpet.unwatch() needs a table, got NULL' using errcode = 'null_value_not_allowed';
  end if;
  perform pg_advisory_xact_lock(1953656176, 5);
  if exists (select from trumpet.wal_table w where w.relation = unwatch.relation) then
    execute format('lock table %s in share row exclusive mode', relation);
    perform trumpet.unpublish(relation);
  elsif trumpet.drop_triggers(relation) = 0 then
    raise exception 'trumpet: % is not watched', relation
      using errcode = 'undefined_object', hint = 'select * from trumpet.watched shows what is.';
  end if;
end $$;

-- As in migration 3. old_known: events tell what the column was before the change.
drop function trumpet.watched_columns(text);
create function trumpet.watched_columns(
  topic text, out relation oid, out schema_name text, out table_name text, out key text[], out picked boolean,
  out "column" text, out number int, out type text, out is_virtual boolean, out is_enum boolean, out labels text[],
  out old_known boolean)
returns setof record
language sql stable security definer set search_path = pg_catalog, pg_temp set jit = off as $$
  with recursive watched as materialized (
    select w.relation, w.key, w.columns, w.identity from trumpet.watched w
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
         array(select e.enumlabel::text from pg_enum e where e.enumtypid = b.type order by e.enumsortorder),
         w.identity is null or b.attname = any (w.identity)
    from watched w
    join pg_class c on c.oid = w.relation
    join pg_namespace n on n.oid = c.relnamespace
    join base b on b.attrelid = w.relation
    join pg_type t on t.oid = b.type and t.typtype <> 'd'
   order by b.attnum
$$;

-- What reads trumpet.watched must not be compiled: the planner takes it for larger than it is.
alter function trumpet.live_topics(text[], text) set jit = off;
alter function trumpet.check_live(text, interval, interval, name) set jit = off;
alter function trumpet.live_aggregate(text, regclass, text[], text[], text, interval, interval, name) set jit = off;

-- Lets a role that owns tables watch them, by triggers.
create or replace function trumpet.grant_watch(owner_role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('grant usage on schema trumpet to %I', owner_role);
  execute format('grant select on trumpet.watched, trumpet.wal_table to %I', owner_role);
  execute format('grant execute on function trumpet.watch(regclass, text[], text[], text, int, int, text), trumpet.unwatch(regclass),
    trumpet.drop_triggers(regclass), trumpet.valid_topic(text), trumpet.capture(), trumpet.publish(regclass, text[], text[]),
    trumpet.unpublish(regclass) to %I', owner_role);
end $$;

-- What a worker's role needs, and nothing more; to read the WAL it needs the attribute REPLICATION too.
create or replace function trumpet.grant_worker(worker_role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('grant usage on schema trumpet to %I', worker_role);
  execute format('grant select on trumpet.migration, trumpet.cluster, trumpet.live, trumpet.live_result, trumpet.live_queries, trumpet.wal_table, trumpet.wal_slot to %I', worker_role);
  execute format('grant execute on function trumpet.sequence(), trumpet.sequence_until(pg_snapshot), trumpet.cut(), trumpet.cut_until(pg_snapshot, pg_lsn),
    trumpet.wal_state(), trumpet.wal_pulse(), trumpet.wal_begin(name, pg_lsn), trumpet.wal_resume(), trumpet.wal_end(boolean),
    trumpet.wal_append(pg_lsn, json, text[], text[], text[], bigint[], text[], text[], text[], bigint[], text[], text[], text[], boolean),
    trumpet.watched_columns(text), trumpet.head(), trumpet.recent(int),
    trumpet.read_log(bigint, int, int, bigint, int, bigint), trumpet.common_position(bigint[], int[]),
    trumpet.prune(interval, bigint, int), trumpet.publish_result(text, bigint, bigint, json, text, text), trumpet.live_results(), trumpet.live_state(),
    trumpet.verify_cluster(), trumpet.broadcast(text, jsonb) to %I', worker_role);
end $$;

revoke execute on function trumpet.place(), trumpet.timeline(), trumpet.step(boolean, pg_snapshot), trumpet.sequence_until(pg_snapshot), trumpet.cut(), trumpet.cut_until(pg_snapshot, pg_lsn),
  trumpet.wal_state(), trumpet.wal_pulse(), trumpet.wal_begin(name, pg_lsn), trumpet.wal_resume(), trumpet.wal_end(boolean),
  trumpet.wal_append(pg_lsn, json, text[], text[], text[], bigint[], text[], text[], text[], bigint[], text[], text[], text[], boolean),
  trumpet.create_publication(), trumpet.publish(regclass, text[], text[]), trumpet.unpublish(regclass),
  trumpet.watch(regclass, text[], text[], text, int, int, text), trumpet.watched_columns(text) from public;

-- Whoever may read trumpet.watched calls them; they read catalogs only.
grant execute on function trumpet.identity_columns(regclass), trumpet.known_columns(regclass) to public;

-- Who could watch before, and who ran workers, goes on to.
do $$
begin
  perform trumpet.grant_watch(r.rolname)
     from pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a, pg_catalog.pg_roles r
    where p.oid operator(pg_catalog.=) 'trumpet.watch(regclass, text[], text[], text, int, int)'::pg_catalog.regprocedure
      and a.privilege_type operator(pg_catalog.=) 'EXECUTE'
      and r.oid operator(pg_catalog.=) a.grantee and a.grantee operator(pg_catalog.<>) p.proowner;
  perform trumpet.grant_worker(r.rolname)
     from pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a, pg_catalog.pg_roles r
    where p.oid operator(pg_catalog.=) 'trumpet.sequence()'::pg_catalog.regprocedure
      and a.privilege_type operator(pg_catalog.=) 'EXECUTE'
      and r.oid operator(pg_catalog.=) a.grantee and a.grantee operator(pg_catalog.<>) p.proowner;
end $$;
drop function trumpet.watch(regclass, text[], text[], text, int, int);

insert into trumpet.migration (version, name) values (6, 'wal');
