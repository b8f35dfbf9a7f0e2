-- The tables of an invented field-service company.

create table customers (
  id         bigint generated always as identity primary key,
  name       text not null,
  city       text not null,
  phone      text not null,
  created_at timestamptz not null default now()
);

create table jobs (
  id            bigint generated always as identity primary key,
  customer_id   bigint not null references customers,
  title         text not null,
  address       text not null,
  status        text not null default 'new'
                check (status in ('new', 'scheduled', 'en_route', 'on_site', 'done', 'cancelled')),
  technician    text,
  priority      int not null default 2 check (priority between 1 and 3),
  price         numeric(10,2) not null default 0 check (price >= 0),
  scheduled_for timestamptz,
  updated_at    timestamptz not null default now()
);
create index on jobs (customer_id);
create index on jobs (status, updated_at);

create function touch() returns trigger language plpgsql as $$
begin
  new.updated_at := now();
  return new;
end $$;
create trigger touch before update on jobs for each row execute function touch();
