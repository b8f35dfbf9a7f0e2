package demo

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// call: a customer calls in with a job.
func call(ctx context.Context, tx pgx.Tx, rng *rand.Rand) (bool, error) {
	var (
		id         int64
		name, city string
		last       *string
	)
	// At random, but whoever has an open job already hardly calls again.
	err := tx.QueryRow(ctx, `select c.id, c.name, c.city, (select j.address from jobs j where j.customer_id = c.id order by j.id desc limit 1)
		from customers c where not exists (select from jobs j where j.customer_id = c.id and j.status not in ('done', 'cancelled'))
		order by random() limit 1`).Scan(&id, &name, &city, &last)
	if err != nil {
		return none(err)
	}
	return true, newCall(id, addressOf(name, city, last), rng).insert(ctx, tx)
}

func newCall(customer int64, address string, rng *rand.Rand) *job {
	j := &job{customer: customer, address: address, status: "new", updated: time.Now()}
	j.of(kinds[rng.IntN(len(kinds))], rng)
	return j
}

// addressOf is where a customer's jobs are: as in the lists, else as last time, else the city.
func addressOf(name, city string, last *string) string {
	for _, list := range [][]customer{customers, newcomers} {
		for _, c := range list {
			if c.name == name && c.city == city {
				return address(c)
			}
		}
	}
	if last != nil {
		return *last
	}
	return city
}

// assign: the dispatcher finds a technician and a time for the most urgent call.
func assign(ctx context.Context, tx pgx.Tx, rng *rand.Rand) (bool, error) {
	var (
		id    int64
		title string
	)
	ok, err := one(ctx, tx, "select id, title from jobs where status = 'new' order by priority, id", &id, &title)
	if !ok {
		return false, err
	}
	return exec(ctx, tx, "update jobs set status = 'scheduled', technician = $2, scheduled_for = $3 where id = $1",
		id, anyTechnician(tradeOf(title, rng), rng), slot(time.Now(), rng).Truncate(15*time.Minute))
}

// depart: a technician who is free sets out for the next visit.
func depart(ctx context.Context, tx pgx.Tx, _ *rand.Rand) (bool, error) {
	var (
		id  int64
		due time.Time
	)
	ok, err := one(ctx, tx, `select id, coalesce(scheduled_for, now()) from jobs j where status = 'scheduled' and technician is not null
		and not exists (select from jobs busy where busy.technician = j.technician and busy.status in ('en_route', 'on_site'))
		order by scheduled_for nulls last, priority, id`, &id, &due)
	if !ok {
		return false, err
	}
	// The day goes faster here than outside: a visit that was for later is now.
	if soon := time.Now().Add(30 * time.Minute); due.After(soon) {
		due = soon.Truncate(15 * time.Minute)
	}
	return exec(ctx, tx, "update jobs set status = 'en_route', scheduled_for = $2 where id = $1", id, due)
}

// arrive: whoever is on the way for longest gets there.
func arrive(ctx context.Context, tx pgx.Tx, _ *rand.Rand) (bool, error) {
	var id int64
	ok, err := one(ctx, tx, "select id from jobs where status = 'en_route' order by updated_at, id", &id)
	if !ok {
		return false, err
	}
	return exec(ctx, tx, "update jobs set status = 'on_site' where id = $1", id)
}

// finish: the work is done and billed, in one transaction; now and then it took more parts than it
// looked like.
func finish(ctx context.Context, tx pgx.Tx, rng *rand.Rand) (bool, error) {
	var id int64
	ok, err := one(ctx, tx, "select id from jobs where status = 'on_site' order by updated_at, id", &id)
	if !ok {
		return false, err
	}
	parts := 0.0
	if rng.IntN(3) == 0 {
		parts = float64(5+rng.IntN(60)) + 0.5*float64(rng.IntN(2))
	}
	if _, err := exec(ctx, tx, "update jobs set status = 'done', price = price + $2::float8::numeric where id = $1", id, parts); err != nil {
		return false, err
	}
	// A quote is free, and nothing to bill.
	_, err = exec(ctx, tx, "insert into invoices (job_id, customer_id, amount) select id, customer_id, price from jobs where id = $1 and price > 0", id)
	return err == nil, err
}

// reschedule: the customer is not in at that time.
func reschedule(ctx context.Context, tx pgx.Tx, rng *rand.Rand) (bool, error) {
	var id int64
	ok, err := one(ctx, tx, "select id from jobs where status = 'scheduled' order by random()", &id)
	if !ok {
		return false, err
	}
	return exec(ctx, tx, "update jobs set scheduled_for = $2 where id = $1", id, slot(time.Now(), rng).Truncate(15*time.Minute))
}

// escalate: the customer calls again, less patiently.
func escalate(ctx context.Context, tx pgx.Tx, _ *rand.Rand) (bool, error) {
	var id int64
	ok, err := one(ctx, tx, "select id from jobs where status in ('new', 'scheduled') and priority > 1 order by random()", &id)
	if !ok {
		return false, err
	}
	return exec(ctx, tx, "update jobs set priority = priority - 1 where id = $1", id)
}

// cancel: it works again by itself.
func cancel(ctx context.Context, tx pgx.Tx, _ *rand.Rand) (bool, error) {
	var id int64
	ok, err := one(ctx, tx, "select id from jobs where status in ('new', 'scheduled') order by priority desc, random()", &id)
	if !ok {
		return false, err
	}
	return exec(ctx, tx, "update jobs set status = 'cancelled' where id = $1", id)
}

// welcome: somebody new calls: a customer and a job, in one transaction.
func welcome(ctx context.Context, tx pgx.Tx, rng *rand.Rand) (bool, error) {
	c := newcomers[rng.IntN(len(newcomers))]
	var id int64
	err := tx.QueryRow(ctx, `insert into customers (name, city, phone) select $1, $2, $3
		where not exists (select from customers where name = $1 and city = $2) returning id`, c.name, c.city, c.phone).Scan(&id)
	if err != nil {
		return none(err)
	}
	return true, newCall(id, address(c), rng).insert(ctx, tx)
}

// sick: a technician goes home, others take over, and everybody is told: one transaction.
func sick(ctx context.Context, tx pgx.Tx, rng *rand.Rand) (bool, error) {
	patient := technicians[rng.IntN(len(technicians))]
	rows, err := tx.Query(ctx, "select id from jobs where status = 'scheduled' and technician = $1 for update skip locked", patient.name)
	if err != nil {
		return false, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(ids) == 0 {
		return false, err
	}
	for _, id := range ids {
		other := anyTechnician(patient.trade, rng)
		for *other == patient.name {
			other = anyTechnician(patient.trade, rng)
		}
		if _, err := exec(ctx, tx, "update jobs set technician = $2 where id = $1", id, other); err != nil {
			return false, err
		}
	}
	return broadcast(ctx, tx, patient.name+" has gone home ill. Others have the visits.")
}

// announce: the office has something to say to everybody.
func announce(ctx context.Context, tx pgx.Tx, rng *rand.Rand) (bool, error) {
	return broadcast(ctx, tx, announcements[rng.IntN(len(announcements))])
}

// broadcast is how an application sends one: in SQL, in its own transaction.
func broadcast(ctx context.Context, tx pgx.Tx, message string) (bool, error) {
	_, err := tx.Exec(ctx, "select trumpet.broadcast('dispatch', jsonb_build_object('message', $1::text, 'from', 'office'))", message)
	return err == nil, err
}

// archive: the oldest of what is over leaves the board.
func archive(status string) func(context.Context, pgx.Tx, *rand.Rand) (bool, error) {
	return func(ctx context.Context, tx pgx.Tx, _ *rand.Rand) (bool, error) {
		return exec(ctx, tx, "delete from jobs where id = (select id from jobs where status = $1 order by updated_at, id limit 1 for update skip locked)", status)
	}
}

// none turns "no such row" into "did nothing".
func none(err error) (bool, error) {
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return false, err
}
