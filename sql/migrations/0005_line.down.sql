-- Takes back Trumpet 5: the line is again made as in migration 1.
create or replace function trumpet.line(
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

delete from trumpet.migration where version = 5;
