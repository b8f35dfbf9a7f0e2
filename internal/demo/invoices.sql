-- What the company is owed. A job that is archived leaves its invoice behind, so job_id refers to
-- nothing. Days are UTC's, wherever the writer is.

create table invoices (
  id          bigint generated always as identity primary key,
  job_id      bigint,
  customer_id bigint not null references customers,
  amount      numeric(10,2) not null check (amount >= 0),
  issued_on   date not null default (now() at time zone 'UTC')::date
);
create index on invoices (issued_on);
