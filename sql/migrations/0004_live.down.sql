-- Takes back Trumpet 4. trumpet.grant_worker() is again as migration 3 made it.
drop view trumpet.live_queries;
drop function trumpet.live_query(text, text, text[], interval, interval, name, text);
drop function trumpet.live_aggregate(text, regclass, text[], text[], text, interval, interval, name);
drop function trumpet.aggregated_type(regclass, text[], text);
drop function trumpet.drop_live_query(text);
drop function trumpet.begin_live(text);
drop function trumpet.check_live(text, interval, interval, name);
drop function trumpet.live_topics(text[], text);
drop function trumpet.live_state();
drop function trumpet.live_results();
drop function trumpet.publish_result(text, bigint, bigint, json, text, text);
drop function trumpet.record_result(text, bigint, bigint, json, text);
drop table trumpet.live_result;
drop table trumpet.live;
drop sequence trumpet.live_version;

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

delete from trumpet.migration where version = 4;
