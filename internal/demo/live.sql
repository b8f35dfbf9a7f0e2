-- What the dashboard shows. Nobody asks for it: one worker of all looks when something has changed,
-- and every page gets the result. A new day begins with its first change.

select trumpet.live_query('stats', $$
  select (select count(*) from customers) as customers,
         (select count(*) from jobs where status not in ('done', 'cancelled')) as open_jobs,
         (select count(*) from invoices where issued_on = (now() at time zone 'UTC')::date) as invoices_today,
         (select coalesce(sum(amount), 0) from invoices where issued_on = (now() at time zone 'UTC')::date) as revenue_today
$$, depends_on => '{customers,jobs,invoices}', min_interval => '250ms');

select trumpet.live_aggregate('jobs_by_status', 'jobs', '{count as jobs}', group_by => '{status}', min_interval => '250ms');

select trumpet.live_aggregate('revenue_by_day', 'invoices', '{sum(amount) as revenue,count as invoices}',
  group_by => '{issued_on}', min_interval => '250ms');
