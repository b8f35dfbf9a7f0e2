-- Trumpet 4: live queries and live aggregates.
--
-- The DBA names a query. When a table that it depends on changes, one worker of all runs it, in a cut
-- (migration 3), and publishes the result if it is another than before: a record of its own, which
-- every worker hears in its place of the log. A live aggregate is a query of a simple form over one
-- table, which that worker keeps up from the changes themselves.
--
-- A result's record: op result, topic the live query's name; after the rows, a JSON array; data what
-- there is to know of them:
--   as_of    the log's position that the rows are true of; 0 if there are none yet
--   version  of the definition, 0 if it was dropped
--   stale    true if the rows could not be brought up to date
--   error    why
--
-- Advisory lock 6 (see migration 1): the live duty, held by a session of the worker that has it.

create sequence trumpet.live_version;

-- What was defined. Only the schema's owner writes here.
create table trumpet.live (
  name         text primary key,
  version      bigint not null unique,   -- another one for each definition
  query        text,                     -- null for an aggregate
  aggregates   json,                     -- [{"name", "function", "column"}]; null for a query
  group_by     text[],                   -- columns; null for a query
  filter       text,                     -- as in a subscription, status=eq.open&…; or null
  depends_on   text[] not null,          -- topics
  min_interval interval not null,
  timeout      interval not null,
  run_as       name,                     -- null: the worker's own role
  search_path  text not null,
  defined_at   timestamptz not null default now(),
  defined_by   name not null default current_user,
  check ((query is null) = (aggregates is not null))
);

-- The newest result of each: what a worker that starts gives to its clients, however long ago it was
-- published, and whatever was pruned from the log since.
create table trumpet.live_result (
  name    text primary key references trumpet.live on delete cascade,
  at      timestamptz not null,          -- when it was published
  as_of   bigint not null,
  value   json,                          -- null: there was none yet
  error   text,                          -- as clients see it; null: the value is true now
  detail  text,                          -- as operators see it
  since   timestamptz not null,          -- when it became so: stale, or true
  -- Its record, and a position that it comes after: so its own is found without an index.
  xid     xid8 not null default pg_current_xact_id(),
  id      bigint not null,
  follows bigint not null
);

-- One record that tells everybody of a result.
create function trumpet.record_result(name text, version bigint, as_of bigint, value json, error text) returns bigint
language sql as $$
  insert into trumpet.record (topic, op, rows, after, data)
  values ($1, 'result', 0, $4, jsonb_build_object('as_of', $3, 'version', $2)
    || case when $5 is null then '{}' else jsonb_build_object('stale', true, 'error', $5) end)
  returning id
$$;

-- Called by the worker that has the duty, with a new result, or with why there is none, in words for
-- clients and for operators: then the value stays what it was, and is stale. False if the definition is another one by now, or about to be; or if
-- the result is older than the one that is there: that is from a worker that had the duty before.
create function trumpet.publish_result(name text, version bigint, as_of bigint, value json, error text default null, detail text default null) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  known trumpet.live_result;
  record_id bigint;
begin
  -- A definition that is being replaced is not waited for: the worker comes back.
  perform from trumpet.live l where l.name = publish_result.name and l.version = publish_result.version for key share skip locked;
  if not found then
    return false;
  end if;
  if error is null and (value is null or octet_length(value::text) > 1048576 or json_typeof(value) <> 'array') then
    raise exception 'trumpet: a result is a JSON array of at most 1048576 bytes'
      using errcode = 'invalid_parameter_value';
  end if;
  select r.* into known from trumpet.live_result r where r.name = publish_result.name for update;
  if known.as_of > as_of and known.as_of <= (select max(l.position) from trumpet.log l) then
    return false;
  end if;
  error := left(error, 1000);
  if error is not null then
    value := known.value;
    as_of := known.as_of;
  end if;
  record_id := trumpet.record_result(name, version, as_of, value, error);
  update trumpet.live_result r
     set at = clock_timestamp(), as_of = publish_result.as_of, value = publish_result.value, error = publish_result.error, detail = left(publish_result.detail, 4000),
         since = case when (r.error is null) = (publish_result.error is null) then r.since else clock_timestamp() end,
         xid = pg_current_xact_id(), id = record_id, follows = (select max(l.position) from trumpet.log l)
   where r.name = publish_result.name;
  return true;
end $$;

-- The newest result of each live query, with its place in the log: null if it has none any more. One that
-- has none yet is left out: it comes in its place, and there may be older ones before it. What the definitions are is told by trumpet.live.
create function trumpet.live_results(
  out name text, out version bigint, out at timestamptz, out as_of bigint, out value text, out error text, out "position" bigint, out tag int)
returns setof record
language sql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
  select r.name, l.version, r.at, r.as_of, translate(r.value::text, E'\t\n\r', '   '), r.error, p.position, p.tag
    from trumpet.live_result r join trumpet.live l on l.name = r.name
    left join lateral (select g.position, g.tag from trumpet.log g
                        where g.position > r.follows and g.xid = r.xid and g.id = r.id order by g.position limit 1) p on true
   where p.position is not null
      or pg_visible_in_snapshot(r.xid, (select g.snapshot from trumpet.log g order by g.position desc limit 1))
$$;

-- Changes with every change of a definition. Asked for with every heartbeat.
create function trumpet.live_state() returns text
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select count(*) || ':' || coalesce(max(l.version), 0) from trumpet.live l
$$;

-- The topics of these names: of watched tables, by their topics or as SQL names the tables.
create function trumpet.live_topics(depends_on text[], names_in text) returns text[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  topics text[] := '{}';
  given  text;
  topic  text;
  own    text := current_setting('search_path');
  named  regclass;
begin
  if coalesce(cardinality(depends_on), 0) = 0 or array_position(depends_on, null) is not null then
    raise exception 'trumpet: depends_on names no table'
      using errcode = 'invalid_parameter_value',
            hint = 'Name the watched tables that the query reads: depends_on => ''{jobs,customers}''';
  end if;
  foreach given in array depends_on loop
    select w.topic into topic from trumpet.watched w where w.topic = given and not w.is_partition limit 1;
    if not found then
      perform set_config('search_path', names_in, true);
      begin
        named := pg_catalog.to_regclass(given);
      exception when syntax_error or invalid_name then
        named := null;
      end;
      perform pg_catalog.set_config('search_path', own, true);
      select w.topic into topic from trumpet.watched w where w.relation = named and not w.is_partition limit 1;
    end if;
    if topic is null then
      raise exception 'trumpet: depends_on names %, which is no watched table', quote_literal(given)
        using errcode = 'undefined_object',
              hint = case when named is null then 'select * from trumpet.watched shows what is.'
                          else format('Watch it first: select trumpet.watch(%L)', named) end;
    end if;
    if topic <> all (topics) then
      topics := topics || topic;
    end if;
    topic := null;
  end loop;
  return topics;
end $$;

-- What is the same for both kinds: checks, and the definition's record. Returns the new version.
create function trumpet.check_live(name text, min_interval interval, timeout interval, run_as name) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  taken regclass;
begin
  if name is null or not trumpet.valid_topic(name) then
    raise exception 'trumpet: % is not a valid name', coalesce(quote_literal(name), 'NULL')
      using errcode = 'invalid_parameter_value',
            hint = 'It is a topic: 1 to 127 bytes, without white space, control characters and , ? & = # +';
  end if;
  select w.relation into taken from trumpet.watched w where w.topic = check_live.name limit 1;
  if found then
    raise exception 'trumpet: topic % is that of table %', quote_literal(name), taken
      using errcode = 'unique_violation', hint = 'Give the live query another name.';
  end if;
  if min_interval is null or min_interval < interval '50 ms' or min_interval > interval '1 day' then
    raise exception 'trumpet: min_interval is from 50 ms to 1 day, got %', coalesce(min_interval::text, 'NULL')
      using errcode = 'invalid_parameter_value';
  end if;
  if timeout is null or timeout < interval '10 ms' or timeout > interval '1 hour' then
    raise exception 'trumpet: timeout is from 10 ms to 1 hour, got %', coalesce(timeout::text, 'NULL')
      using errcode = 'invalid_parameter_value';
  end if;
  if run_as is not null and not exists (select from pg_roles r where r.rolname = run_as) then
    raise exception 'trumpet: there is no role %', quote_ident(run_as)
      using errcode = 'undefined_object', hint = format('create role %I; and grant it SELECT on what the query reads', run_as);
  end if;
end $$;

-- Begins a definition's life: nothing is known yet, and everybody hears of it.
create function trumpet.begin_live(name text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into trumpet.live_result (name, at, as_of, error, since, id, follows)
  select l.name, clock_timestamp(), 0, 'not run yet', clock_timestamp(),
         trumpet.record_result(l.name, l.version, 0, null, 'not run yet'), (select max(g.position) from trumpet.log g)
    from trumpet.live l where l.name = $1
$$;

-- Names a query, or replaces the one of this name. From this transaction's commit on one worker of all
-- runs it when a table it depends on changes, and publishes its rows as topic name: an array of
-- objects, in the query's order, always an array. Only the schema's owner may.
--
--   query         one SELECT; give it an ORDER BY if it has several rows, or another order
--                 is another result.
--   depends_on    the watched tables whose changes make it run: by topics, or as SQL names them.
--   min_interval  between two runs. The first change after a quiet time runs it at once.
--   timeout       how long it may take.
--   run_as        the role as which it runs, read-only. The workers' role must be a member of it,
--                 and so must be who defines it. If null, the workers' own role.
--   search_path   where its names are looked up; as it is in this session, if left out.
create function trumpet.live_query(
  name text, query text, depends_on text[], min_interval interval default '250 ms', timeout interval default '5 s',
  run_as name default null, search_path text default pg_catalog.current_setting('search_path')) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  topics text[];
  own_role text := current_setting('role');
  own_path text := current_setting('search_path');
  rows   refcursor;
  reason text;
  state  text;
begin
  perform pg_advisory_xact_lock(1953656176, 5);
  perform trumpet.check_live(name, min_interval, timeout, run_as);
  topics := trumpet.live_topics(depends_on, search_path);
  query := rtrim(query, E'; \t\r\n');
  if coalesce(query, '') = '' then
    raise exception 'trumpet: the query is empty' using errcode = 'invalid_parameter_value';
  end if;
  begin
    if run_as is not null then
      perform set_config('role', run_as, true);
    end if;
    perform set_config('search_path', live_query.search_path, true), set_config('standard_conforming_strings', 'on', true);
    -- A cursor takes one statement only. Nothing is fetched, so nothing is run; and what
    -- stands in brackets then is surely one query, and changes nothing.
    open rows for execute query;
    close rows;
    execute 'explain select pg_catalog.row_to_json(q) from (' || query || E'\n) q';
    perform pg_catalog.set_config('search_path', own_path, true), pg_catalog.set_config('role', own_role, true);
  exception when others then
    get stacked diagnostics reason = message_text, state = returned_sqlstate;
    raise exception 'trumpet: the query of % cannot run%: %', quote_literal(name), coalesce(' as ' || quote_ident(run_as), ''), reason
      using errcode = state,
            hint = case when state = '42501' and reason like '%role%' then format('grant %I to %I', run_as, current_user)
                        when state = '42501' then format('Grant %I what the query reads: usage on the schema, select on tables and columns.', coalesce(run_as, current_user))
                        when state in ('42P01', '3F000') then 'Write the schema before the table, or give search_path.'
                        else 'It has to be one SELECT, which may begin with WITH.' end;
  end;
  delete from trumpet.live l where l.name = live_query.name;
  insert into trumpet.live (name, version, query, depends_on, min_interval, timeout, run_as, search_path)
  values (name, nextval('trumpet.live_version'), query, topics, min_interval, timeout, run_as, live_query.search_path);
  perform trumpet.begin_live(name);
end $$;

-- Names aggregates over one watched table, or replaces the live query of this name. One worker of all
-- reads them once, and then keeps them up from the table's changes, however large it is. Their result is
-- what this query's would be, published as topic name:
--   select group_by…, aggregates… from relation where filter group by group_by… order by group_by…
-- Without group_by it is an array of one object.
--
--   aggregates  count, count(column), sum(column), avg(column), min(column), max(column), each with
--               " as name" behind it if it is to be called otherwise than sum_column
--   group_by    columns
--   filter      as in a subscription: status=eq.open&priority=gt.1
--   timeout     how long reading the table may take: at the start, when changes could not be
--               followed (a bulk statement, a column that went), and when it is compared now and then
-- The others are as in trumpet.live_query. Columns are named as they are stored, without quotes.
create function trumpet.live_aggregate(
  name text, relation regclass, aggregates text[] default '{count}', group_by text[] default '{}', filter text default null,
  min_interval interval default '250 ms', timeout interval default '5 min', run_as name default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  exact  constant regtype[] := '{int2,int4,int8,numeric}';
  ranked constant regtype[] := exact || '{float4,float8,date,timestamp,timestamptz}'::regtype[];
  alike  constant regtype[] := exact || '{text,varchar,bpchar,bool,date,timestamp,timestamptz,uuid}'::regtype[];
  own_role text := current_setting('role');
  watch  record;
  given  text;
  parts  text[];
  chosen json[] := '{}';
  names  text[] := group_by;
  kind   regtype;
  fault  text;
begin
  perform pg_advisory_xact_lock(1953656176, 5);
  perform trumpet.check_live(name, min_interval, timeout, run_as);
  select w.topic, w.columns into watch from trumpet.watched w where w.relation = live_aggregate.relation and not w.is_partition;
  if not found then
    raise exception 'trumpet: % is no watched table', coalesce(relation::text, 'NULL')
      using errcode = 'undefined_object', hint = format('Watch it first: select trumpet.watch(%L)', relation);
  end if;
  if coalesce(cardinality(aggregates), 0) not between 1 and 32 or group_by is null or cardinality(group_by) > 8 then
    raise exception 'trumpet: a live aggregate has 1 to 32 aggregates, and at most 8 columns in group_by'
      using errcode = 'invalid_parameter_value', hint = 'For example: aggregates => ''{count,sum(amount)}'', group_by => ''{status}''';
  end if;

  foreach given in array group_by loop
    kind := trumpet.aggregated_type(relation, watch.columns, given);
    if kind <> all (alike) and not exists (select from pg_type t where t.oid = kind and t.typtype = 'e')
       or exists (select from pg_attribute a join pg_collation c on c.oid = a.attcollation
                   where a.attrelid = relation and a.attname = given and not c.collisdeterministic) then
      raise exception 'trumpet: a live aggregate cannot group by %, whose type is %', quote_ident(given), kind
        using errcode = 'datatype_mismatch',
              hint = 'It groups by integers, numeric, text in a deterministic collation, boolean, date, timestamps, uuid and enums. Use trumpet.live_query() for others.';
    end if;
  end loop;

  foreach given in array aggregates loop
    parts := regexp_match(given, '^\s*(count|sum|avg|min|max)\s*(?:\(\s*(.*?)\s*\))?(?:\s+as\s+(.*?))?\s*$', 'i');
    parts := array[lower(parts[1]), nullif(nullif(parts[2], ''), '*'), parts[3]];
    parts[3] := coalesce(parts[3], concat_ws('_', parts[1], parts[2]));
    if parts[1] is null or parts[2] is null and parts[1] <> 'count' or parts[3] = '' then
      raise exception 'trumpet: % is no aggregate that can be kept up', coalesce(quote_literal(given), 'NULL')
        using errcode = 'invalid_parameter_value',
              hint = 'There are count, count(column), sum(column), avg(column), min(column) and max(column), each with " as name" if wanted. Use trumpet.live_query() for others.';
    end if;
    if parts[3] = any (names) then
      raise exception 'trumpet: two columns of the result are called %', quote_ident(parts[3])
        using errcode = 'duplicate_column', hint = 'Name one of them otherwise: sum(amount) as revenue';
    end if;
    names := names || parts[3];
    kind := case when parts[2] is not null then trumpet.aggregated_type(relation, watch.columns, parts[2]) end;
    if parts[1] in ('sum', 'avg') and kind <> all (exact) or parts[1] in ('min', 'max') and kind <> all (ranked) then
      raise exception 'trumpet: %(%) cannot be kept up, because the column''s type is %', parts[1], quote_ident(parts[2]), kind
        using errcode = 'datatype_mismatch',
              hint = case when kind in ('float4'::regtype, 'float8'::regtype)
                          then 'A sum of floating-point numbers depends on the order in which they are added. Make the column numeric, or use trumpet.live_query().'
                          else 'Use trumpet.live_query() for it.' end;
    end if;
    chosen := chosen || json_build_object('name', parts[3], 'function', parts[1], 'column', parts[2]);
  end loop;

  -- The worker reads the filter as it reads a client's; here only what SQL can see is looked at.
  filter := nullif(ltrim(filter, '?'), '');
  foreach given in array coalesce(string_to_array(filter, '&'), '{}') loop
    if given !~ '^[^=]+=(not\.)?(eq|neq|lt|lte|gt|gte|in|is)\.' then
      raise exception 'trumpet: % is no condition of a filter', quote_literal(given)
        using errcode = 'invalid_parameter_value', hint = 'A filter looks like status=eq.open&priority=gt.1; docs/protocol.md has the rest.';
    end if;
    if given !~ '^[^=]*[%+]' then
      perform trumpet.aggregated_type(relation, watch.columns, split_part(given, '=', 1));
    end if;
  end loop;

  begin
    if run_as is not null then
      perform set_config('role', run_as, true);
    end if;
    execute format('explain select %s from %s', coalesce((select string_agg(distinct quote_ident(c), ', ')
                     from unnest(group_by || array(select a->>'column' from unnest(chosen) a)) c), '1'), relation);
    perform set_config('role', own_role, true);
  exception when insufficient_privilege then
    get stacked diagnostics fault = message_text;
    raise exception 'trumpet: % cannot be read%: %', relation, coalesce(' as ' || quote_ident(run_as), ''), fault
      using errcode = 'insufficient_privilege',
            hint = case when fault like '%role%' then format('grant %I to %I', run_as, current_user)
                        else format('grant select on %s to %I', relation, coalesce(run_as, current_user)) end;
  end;
  delete from trumpet.live l where l.name = live_aggregate.name;
  insert into trumpet.live (name, version, aggregates, group_by, filter, depends_on, min_interval, timeout, run_as, search_path)
  values (name, nextval('trumpet.live_version'), array_to_json(chosen), live_aggregate.group_by, live_aggregate.filter, array[watch.topic],
          min_interval, timeout, run_as, 'pg_catalog, pg_temp');
  perform trumpet.begin_live(name);
end $$;

-- The type of a watched column; for a domain, the one below it.
create function trumpet.aggregated_type(relation regclass, watched text[], "column" text) returns regtype
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  type oid := (select a.atttypid from pg_attribute a where a.attrelid = relation and a.attname = "column" and a.attnum > 0 and not a.attisdropped);
  base oid;
begin
  if type is null then
    raise exception 'trumpet: % has no column %', relation, coalesce(quote_ident("column"), 'NULL')
      using errcode = 'undefined_column', hint = 'Columns are named as they are stored, without quotes.';
  end if;
  if "column" <> all (watched) then
    raise exception 'trumpet: column % of % is not watched', quote_ident("column"), relation
      using errcode = 'undefined_column', hint = format('Watch the table anew, with that column: columns => %L', watched || "column");
  end if;
  loop
    select t.typbasetype into base from pg_type t where t.oid = type;
    exit when base = 0;
    type := base;
  end loop;
  return type;
end $$;

-- Ends a live query, or a live aggregate. Its listeners are told.
create function trumpet.drop_live_query(name text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_advisory_xact_lock(1953656176, 5);
  delete from trumpet.live l where l.name = drop_live_query.name;
  if not found then
    raise exception 'trumpet: there is no live query %', coalesce(quote_literal(name), 'NULL')
      using errcode = 'undefined_object', hint = 'select * from trumpet.live_queries shows what is.';
  end if;
  perform trumpet.record_result(name, 0, 0, null, 'dropped');
end $$;

-- What is defined, and how it is, for people.
create view trumpet.live_queries as
  select l.name, case when l.query is null then 'aggregate' else 'query' end as kind,
         coalesce(l.query, (select string_agg(case when a->>'column' is null then a->>'function' else (a->>'function') || '(' || (a->>'column') || ')' end
                                              || ' as ' || (a->>'name'), ', ') from json_array_elements(l.aggregates) a)
                           || coalesce(' by ' || array_to_string(nullif(l.group_by, '{}'), ', '), '') || coalesce(' where ' || l.filter, '')) as definition,
         l.depends_on, l.min_interval, l.timeout, l.run_as,
         r.error is not null as stale, coalesce(r.detail, r.error) as error, r.since, nullif(r.as_of, 0) as as_of, r.at as published_at, r.value,
         l.defined_at, l.defined_by
    from trumpet.live l join trumpet.live_result r on r.name = l.name;

-- What a worker's role needs, and nothing more.
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

revoke execute on function trumpet.record_result(text, bigint, bigint, json, text), trumpet.publish_result(text, bigint, bigint, json, text, text),
  trumpet.live_results(), trumpet.live_state(), trumpet.live_topics(text[], text), trumpet.check_live(text, interval, interval, name), trumpet.begin_live(text),
  trumpet.live_query(text, text, text[], interval, interval, name, text), trumpet.aggregated_type(regclass, text[], text),
  trumpet.live_aggregate(text, regclass, text[], text[], text, interval, interval, name), trumpet.drop_live_query(text) from public;

-- The workers' roles that are there get what is new.
do $$
begin
  perform trumpet.grant_worker(r.rolname)
     from pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a, pg_catalog.pg_roles r
    where p.oid operator(pg_catalog.=) 'trumpet.sequence()'::pg_catalog.regprocedure
      and a.privilege_type operator(pg_catalog.=) 'EXECUTE'
      and r.oid operator(pg_catalog.=) a.grantee and a.grantee operator(pg_catalog.<>) p.proowner;
end $$;

insert into trumpet.migration (version, name) values (4, 'live');
