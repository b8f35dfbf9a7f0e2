-- Trumpet 1: records, the log, the sequencer, broadcasts, pruning.
--
-- Plain SQL for PostgreSQL 14 to 18. It needs CREATE on the database and nothing
-- else: no superuser, no extension, no shared library.
--
-- How an event goes: a trigger (migration 2) or trumpet.broadcast() writes one row
-- into trumpet.record inside the user's own transaction. At commit at most one
-- transaction at a time sends an empty NOTIFY. A worker then calls
-- trumpet.sequence(), which gives every newly committed record a position in
-- trumpet.log and notifies the workers of them, many packed in one payload.
--
-- Advisory locks of this database, all with the class 1953656176 ('trmp'):
--   1  wake-ups: held by the transaction that sends one, and by an awake sequencer
--   2  one step of the sequencer at a time
--   3  sequencer duty: held by the session of the worker that has it
--   4  pruning
--   5  changes of the schema and of watches

create schema trumpet;

create table trumpet.migration (
  version    int primary key,
  name       text not null,
  applied_at timestamptz not null default now()
);

-- One row: what makes this log this log. The secret signs what the sequencer
-- notifies, because any role may NOTIFY on any channel: HMAC-SHA256, RFC 2104, whose
-- two padded keys are kept ready because SQL has no XOR of bytea.
create table trumpet.cluster (
  one               boolean primary key default true check (one),
  system_identifier bigint not null,
  secret            bytea not null check (length(secret) = 64),
  inner_key         bytea not null,
  outer_key         bytea not null
);
insert into trumpet.cluster (system_identifier, secret, inner_key, outer_key)
select s.system_identifier, k.secret,
       (select string_agg(set_byte('\x00', 0, get_byte(k.secret, i) # 54), '' order by i) from generate_series(0, 63) i),
       (select string_agg(set_byte('\x00', 0, get_byte(k.secret, i) # 92), '' order by i) from generate_series(0, 63) i)
  from pg_control_system() s,
       (select sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
            || sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())) as secret) k;

-- What one statement did to one table, or one broadcast. Append-only. Its one
-- index is what the sequencer needs; every further one would be paid by writers.
create table trumpet.record (
  xid       xid8 not null default pg_current_xact_id(),
  -- Never give this sequence a cache above 1: the order of ids within a row's
  -- changes rests on it.
  id        bigint generated always as identity (cache 1),
  at        timestamptz not null default clock_timestamp(),
  topic     text not null,
  op        text not null,   -- insert, update, delete, truncate, bulk, broadcast
  statement text,            -- bulk: which statement it was
  rows      bigint not null, -- how many rows the statement touched
  key       text[],          -- names of the key's columns
  before    json,            -- array of rows before the change
  after     json,            -- array of rows after it
  data      jsonb,           -- a broadcast's value
  -- Whether this is its transaction's first record. The left side is evaluated
  -- before the right one, which notes the transaction for the next record; a
  -- rolled-back savepoint takes that note back with it.
  first     boolean not null default
            coalesce(current_setting('trumpet.transaction', true), '')
            <> set_config('trumpet.transaction', pg_current_xact_id()::text, true),
  primary key (xid, id)
);

-- Positions: contiguous, given by the sequencer only. The oldest row is an anchor:
-- its record may be gone, but a client that has seen exactly that far can go on.
create table trumpet.log (
  position     bigint primary key,
  tag          int not null,      -- random: tells a position that was given twice
  xid          xid8,              -- the record; null in the row that begins a log
  id           bigint,
  last_ordinal int not null,      -- its events are 0 to last_ordinal
  more         boolean not null,  -- further records of the same transaction follow
  bytes        bigint not null,   -- what the log holds up to here, cumulative
  -- The snapshot of the step that wrote this row, on the step's last row. The
  -- newest row therefore always has it: there is no row that every step updates,
  -- and so nothing that bloats while some transaction stays open for hours.
  snapshot     pg_snapshot
);
insert into trumpet.log (position, tag, last_ordinal, more, bytes, snapshot)
values (0, (floor(random() * 4294967296) - 2147483648)::int, 0, false, 0, pg_current_snapshot());

-- The wake-up, decided at commit and once a transaction. Whoever gets the lock
-- notifies; everybody else commits without touching NOTIFY's cluster-wide lock. The
-- lock is free again as soon as that one transaction has committed. An awake
-- sequencer holds it too: then nobody needs to notify at all. With a queue that is
-- half full a wake-up is left out rather than risk the user's commit: the
-- heartbeat finds the record.
--
-- Postgres refuses PREPARE TRANSACTION after a NOTIFY. Who needs it sets trumpet.wake to off in
-- that session or transaction, or, for the whole database, runs as the owner of this table:
-- alter table trumpet.record disable trigger wake. Workers that start then poll.
create function trumpet.wake() returns trigger
language plpgsql as $$
begin
  if pg_catalog.current_setting('trumpet.wake', true) operator(pg_catalog.=) 'off' then
    return null;
  end if;
  if pg_catalog.pg_try_advisory_xact_lock(1953656176, 1)
     and pg_catalog.pg_notification_queue_usage() operator(pg_catalog.<) 0.5 then
    perform pg_catalog.pg_notify('trumpet_wake', '');
  end if;
  return null;
end $$;

create constraint trigger wake after insert on trumpet.record
  deferrable initially deferred
  for each row when (new.first)
  execute function trumpet.wake();

-- True for what Trumpet takes as a topic's name. trumpet.ValidTopic in Go draws the
-- same line.
create function trumpet.valid_topic(topic text) returns boolean
language sql immutable as $$
  select topic <> '' and octet_length(topic) <= 127 and topic !~ '[[:space:][:cntrl:],?&=#+]'
$$;

-- Sends a JSON value to everybody who listens to the topic: in the caller's
-- transaction, durable, in order with the changes of rows. Returns the record's id.
create function trumpet.broadcast(topic text, data jsonb) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  record_id bigint;
  size int;
begin
  if topic is null or not trumpet.valid_topic(topic) then
    raise exception 'trumpet: % is not a valid topic', coalesce(quote_literal(topic), 'NULL')
      using errcode = 'invalid_parameter_value',
            hint = 'A topic has 1 to 127 bytes, without white space, control characters and , ? & = # +';
  end if;
  if data is null then
    raise exception 'trumpet: a broadcast needs data, got NULL'
      using errcode = 'null_value_not_allowed',
            hint = 'For the JSON value null write ''null''::jsonb.';
  end if;
  size := octet_length(data::text);
  if size > 1048576 then
    raise exception 'trumpet: the data of a broadcast has at most 1048576 bytes, this has %', size
      using errcode = 'program_limit_exceeded',
            hint = 'Store it, and broadcast where it can be fetched.';
  end if;
  insert into trumpet.record (topic, op, rows, data)
  values (broadcast.topic, 'broadcast', 1, broadcast.data)
  returning id into record_id;
  return record_id;
end $$;

-- One record as one line: the form in which it is notified and read from the log.
-- Tab-separated. In JSON's text form a bare tab, line feed or carriage return is only ever
-- white space between values, so it becomes a space. A change here needs one in pgbus/line.go.
create function trumpet.line(
  "position" bigint, tag int, id bigint, last_ordinal int, more boolean, at timestamptz,
  op text, statement text, rows bigint, topic text, key text[],
  before json, after json, data jsonb) returns text
language sql stable as $$
  select $1 || E'\t' || lpad(to_hex($2), 8, '0') || E'\t' || $3 || E'\t' || $4
    || case when $5 then E'\t1\t' else E'\t0\t' end
    || (extract(epoch from $6) * 1000000)::bigint
    || E'\t' || $7 || E'\t' || coalesce($8, '') || E'\t' || $9
    || E'\t' || to_json($10)::text
    || E'\t' || coalesce(to_json($11)::text, '')
    || E'\t' || coalesce(translate($12::text, E'\t\n\r', '   '), '')
    || E'\t' || coalesce(translate($13::text, E'\t\n\r', '   '), '')
    || E'\t' || coalesce($14::text, '')
$$;

-- Notifies all workers of lines: the first line is their signature, cut to 128 bits.
create function trumpet.notify_lines(lines text) returns void
language sql as $$
  select pg_notify('trumpet', left(encode(sha256(c.outer_key || sha256(c.inner_key || convert_to($1, 'UTF8'))), 'hex'), 32)
                              || E'\n' || $1)
    from trumpet.cluster c
$$;

-- One step of the sequencer: every record that has become visible since the last
-- step gets the next positions, and the workers are told, all in this transaction.
--
-- "Has become visible" is exact: what the last step's snapshot did not see and this
-- statement's snapshot sees. No lock on writers, no waiting for long transactions.
-- Transactions stand in the order of their last record's id: a transaction that
-- waited for another one's row lock, or saw its effects in a watched statement,
-- wrote its last record after it.
--
-- While the notification queue is more than half full, nobody is told: a NOTIFY that
-- finds it full fails, and this step with it. Workers find the new positions by their
-- heartbeat then.
--
-- sequenced: how many records got a position; -1 if another session is at it.
-- snapshot: what this step saw. A caller may sleep when nothing is in progress in it.
create function trumpet.sequence(out sequenced bigint, out snapshot pg_snapshot)
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

-- Where the log ends, and whether committed records wait for a position. Reads only.
create function trumpet.head(out "position" bigint, out last_ordinal int, out tag int, out pending boolean)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  seen pg_snapshot;
begin
  select l.position, l.last_ordinal, l.tag, l.snapshot into strict position, last_ordinal, tag, seen
    from trumpet.log l order by l.position desc limit 1;
  pending := exists (select from trumpet.record r where r.xid >= pg_snapshot_xmax(seen))
    or exists (select from trumpet.record r where r.xid = any (array(select pg_snapshot_xip(seen))));
end $$;

-- The lines after an event id, up to a position, in order: at most max_records, and
-- about max_bytes as stored, but at least one. Where the id is in the middle of its
-- record, that record comes first.
-- A position whose record is gone gives a null. Raises TRM01 if the log no longer
-- reaches back to the id, TRM02 if it has no such id, TRM03 if the next position is gone.
create function trumpet.read_log(
  after_position bigint, after_ordinal int, after_tag int, until_position bigint,
  max_records int default 1000, max_bytes bigint default 4194304)
returns setof text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  anchor trumpet.log;
  first_position bigint;
begin
  select l.* into anchor from trumpet.log l where l.position = after_position;
  if not found and after_position < (select min(l.position) from trumpet.log l) then
    raise exception 'trumpet: the log no longer reaches back to position %', after_position
      using errcode = 'TRM01';
  end if;
  if anchor.position is null or anchor.tag <> after_tag or after_ordinal > anchor.last_ordinal then
    raise exception 'trumpet: no event %.% with this tag in the log', after_position, after_ordinal
      using errcode = 'TRM02';
  end if;
  first_position := after_position + 1;
  if after_ordinal < anchor.last_ordinal then
    perform from trumpet.record r where r.xid = anchor.xid and r.id = anchor.id;
    if not found then
      raise exception 'trumpet: the rest of position % is no longer in the log', after_position
        using errcode = 'TRM01';
    end if;
    first_position := after_position;
  end if;
  if not exists (select from trumpet.log l where l.position = first_position)
    and exists (select from trumpet.log l where l.position > first_position) then
    raise exception 'trumpet: position % is no longer in the log', first_position
      using errcode = 'TRM03';
  end if;
  return query
    select trumpet.line(l.position, l.tag, r.id, l.last_ordinal, l.more, r.at, r.op, r.statement,
                        r.rows, r.topic, r.key, r.before, r.after, r.data)
      from trumpet.log l left join trumpet.record r on r.xid = l.xid and r.id = l.id
     where l.position >= first_position and l.position <= until_position
       and l.position < first_position + max_records
       and (l.position = first_position or l.bytes <= anchor.bytes + max_bytes)
     order by l.position;
end $$;

-- The newest of these positions, ascending and without gaps, up to which the log has
-- the same tags; null if it has none of them. So a worker finds what it has in common
-- with a log that lost its tail: a standby that was behind, a restored backup.
create function trumpet.common_position(positions bigint[], tags int[]) returns bigint
language sql stable security definer
set search_path = pg_catalog, pg_temp set jit = off as $$
  with given as materialized (
    select g.position, l.tag is not null as kept
      from unnest(positions, tags) g ("position", tag)
      left join trumpet.log l on l.position = g.position and l.tag = g.tag
     where g.position >= (select min(o.position) from trumpet.log o))
  select max(g.position) from given g
   where g.kept and g.position < coalesce((select min(h.position) from given h where not h.kept), g.position + 1)
$$;

-- The newest event id whose record is at most max_records behind the head: where a
-- worker that starts begins to read.
create function trumpet.recent(max_records int, out "position" bigint, out last_ordinal int, out tag int)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select l.position, l.last_ordinal, l.tag from trumpet.log l
   where l.position >= (select h.position - max_records from trumpet.head() h)
   order by l.position limit 1
$$;

-- Removes, oldest first, at most max_records records that are older than keep, or
-- that stand before the newest keep_bytes of the log. Only what has a position, and
-- never the newest row of the log. A client whose last id is removed gets a reset.
--
-- pruned: how many went. oldest: when the oldest one that is left was written.
create function trumpet.prune(keep interval, keep_bytes bigint, max_records int default 5000,
                              out pruned bigint, out oldest timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  anchor bigint;
  head   record;
  cut    bigint;
begin
  pruned := 0;
  if keep is null or keep < interval '0' or keep_bytes is null or keep_bytes < 0 then
    raise exception 'trumpet.prune() needs a keep and a keep_bytes of at least 0'
      using errcode = 'invalid_parameter_value';
  end if;
  if not pg_try_advisory_xact_lock(1953656176, 4) then
    return;
  end if;
  select min(l.position) into strict anchor from trumpet.log l;
  select l.position, l.bytes into strict head from trumpet.log l order by l.position desc limit 1;
  -- The first position that stays. It is looked for among the next max_records only.
  select min(l.position) into cut
    from trumpet.log l join trumpet.record r on r.xid = l.xid and r.id = l.id
   where l.position > anchor and l.position <= anchor + max_records
     and r.at >= clock_timestamp() - keep and l.bytes > head.bytes - keep_bytes;
  -- The anchor of what stays is the row before it. The head's own record may go:
  -- its row in the log stays.
  cut := coalesce(cut - 1, least(anchor + max_records, head.position));
  if cut > anchor then
    delete from trumpet.record r using trumpet.log l
     where l.position > anchor and l.position <= cut and r.xid = l.xid and r.id = l.id;
    get diagnostics pruned = row_count;
    delete from trumpet.log l where l.position < cut;
  end if;
  select r.at into oldest
    from trumpet.log l join trumpet.record r on r.xid = l.xid and r.id = l.id
   where l.position > cut order by l.position limit 1;
end $$;

-- A database that was restored from a dump, or moved, into another cluster counts its
-- transactions anew: the snapshots in the log mean nothing there. Then the log begins
-- again, and every client gets a reset. Returns whether it did. Each
-- worker calls it before it reads the head.
create function trumpet.verify_cluster() returns boolean
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

-- What a worker's role needs, and nothing more.
create function trumpet.grant_worker(worker_role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('grant usage on schema trumpet to %I', worker_role);
  execute format('grant select on trumpet.migration, trumpet.cluster to %I', worker_role);
  execute format('grant execute on function trumpet.sequence(), trumpet.head(), trumpet.recent(int),
    trumpet.read_log(bigint, int, int, bigint, int, bigint), trumpet.common_position(bigint[], int[]),
    trumpet.prune(interval, bigint, int),
    trumpet.verify_cluster(), trumpet.broadcast(text, jsonb) to %I', worker_role);
end $$;

-- Lets a role broadcast from SQL.
create function trumpet.grant_broadcast(application_role name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('grant usage on schema trumpet to %I', application_role);
  execute format('grant execute on function trumpet.broadcast(text, jsonb) to %I', application_role);
end $$;

revoke execute on all functions in schema trumpet from public;

insert into trumpet.migration (version, name) values (1, 'log');
