-- Takes back Trumpet 2: dropping the trigger's function drops the triggers on every watched table.
drop function trumpet.capture() cascade;
drop view if exists trumpet.watched cascade;
drop function trumpet.capture_truncate(text, boolean);
drop function trumpet.pick_columns(json, text);
drop function trumpet.watch(regclass, text[], text[], text, int, int);
drop function trumpet.unwatch(regclass);
drop function trumpet.drop_triggers(regclass);
drop function trumpet.grant_watch(name);
delete from trumpet.migration where version = 2;
