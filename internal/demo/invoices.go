package demo

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// historyDays is for how many days before today there are invoices in the beginning.
const historyDays = 13

// fillInvoices bills what was done on the days before, and the jobs that are done.
func fillInvoices(ctx context.Context, tx pgx.Tx, rng *rand.Rand, now time.Time) error {
	now = now.UTC()
	for back := historyDays; back > 0; back-- {
		day := now.AddDate(0, 0, -back)
		count := 6 + rng.IntN(9)
		if day.Weekday() == time.Sunday {
			count = rng.IntN(3) // emergencies
		}
		for range count {
			// A customer of the list may have gone from a database that was kept.
			_, err := tx.Exec(ctx, `insert into invoices (customer_id, amount, issued_on)
				select id, $1::int, $2 from customers order by id offset $3 % (select count(*) from customers) limit 1`,
				kinds[rng.IntN(len(kinds))].price(rng), day, rng.IntN(len(customers)))
			if err != nil {
				return err
			}
		}
	}
	_, err := tx.Exec(ctx, "insert into invoices (job_id, customer_id, amount) select id, customer_id, price from jobs where status = 'done' and price > 0")
	return err
}

// correct: a customer was promised ten per cent off.
func correct(ctx context.Context, tx pgx.Tx, _ *rand.Rand) (bool, error) {
	return exec(ctx, tx, `update invoices set amount = round(amount * 0.9, 2)
		where id = (select id from invoices where amount > 50 order by id desc offset 3 limit 1 for update skip locked)`)
}

// void: an invoice was a mistake.
func void(ctx context.Context, tx pgx.Tx, _ *rand.Rand) (bool, error) {
	return exec(ctx, tx, "delete from invoices where id = (select id from invoices order by id desc offset 5 limit 1 for update skip locked)")
}
