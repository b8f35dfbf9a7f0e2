package oracle

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// statement does one thing of a random kind, and notes it.
func (w *writer) statement(ctx context.Context, tx pgx.Tx, token string, did *account) (err error) {
	some := w.rng.IntN(20)
	switch n := w.rng.IntN(400); {
	case n == 0:
		table := []string{"jobs", "customers"}[w.rng.IntN(2)]
		did.truncated(table)
		_, err = tx.Exec(ctx, "truncate "+table)
		return err
	case n < 4: // more than max_rows: one bulk event
		return w.exec(ctx, tx, did, "jobs", "insert into jobs (title) select $1 from generate_series(1, 70)", token)
	case n < 8:
		return w.exec(ctx, tx, did, "jobs", "delete from jobs where id in (select id from jobs where $1 <> '' order by id limit 70)", token)
	case n < 10: // many events of one statement
		return w.exec(ctx, tx, did, "customers", "insert into customers (name) select $1 || ' ' || g from generate_series(1, $2) g", token, 100+w.rng.IntN(900))
	case n < 14:
		return w.big(ctx, tx, token, did)
	case n < 20:
		return w.exec(ctx, tx, did, "customers", "delete from customers where id in (select id from customers where $1 <> '' order by id offset 200)", token)
	case n < 110:
		return w.exec(ctx, tx, did, "jobs", `
			insert into jobs (title, note, status, priority, price, amount, customer_id)
			select $1, case when g % 3 > 0 then $3 end, `+fmt.Sprintf(spread, "g")+` from generate_series(1, $2) g`,
			token, 1+w.rng.IntN(3), w.text(200), w.rng.IntN(1000), w.amount())
	case n < 170:
		return w.exec(ctx, tx, did, "jobs", `
			update jobs set title = $1, priority = $3, updated_at = now() where abs(id) % 20 = $2 and length(coalesce(note, '')) < 10000`, token, some, w.rng.IntN(3))
	case n < 225: // rows go from filter to filter
		return w.exec(ctx, tx, did, "jobs", `
			update jobs set title = $1, note = case when id % 3 = 0 then $3 else note end, (status, priority, price, amount, customer_id)
				= row(`+fmt.Sprintf(spread, "abs(id)::int")+`) where abs(id) % 5 = $2 % 5 and length(coalesce(note, '')) < 10000`,
			token, some, w.text(50), w.rng.IntN(1000), w.amount())
	case n < 245:
		return w.partly(ctx, tx, token, some, did)
	case n < 252: // it touches rows and changes none
		tag, err := tx.Exec(ctx, "update jobs set title = title where abs(id) % 20 = $1", some)
		did.ran(tag, "jobs", int(tag.RowsAffected()), 0)
		return err
	case n < 260: // a row's key changes, and some day changes back
		return w.exec(ctx, tx, did, "jobs", "update jobs set id = -id, title = $1 where id = (select id from jobs where abs(id) % 20 = $2 order by random() limit 1)", token, some)
	case n < 310:
		return w.exec(ctx, tx, did, "jobs", `delete from jobs where id in
			(select id from jobs where $1 <> '' and (id % 20 = $2 or length(note) > 100000) order by random() limit 1 + (select count(*) from jobs) / 200)`, token, some)
	case n < 350:
		return w.exec(ctx, tx, did, "customers", "insert into customers (name, note) values ($1, $2)", token, w.text(2000))
	default:
		return w.broadcast(ctx, tx, token, did)
	}
}

// spread is values for status, priority, price, amount and customer_id of a row, from a number of its own
// and two parameters of the statement.
const spread = `(array['new', 'open', 'on_site', 'done'])[1 + (%[1]s + $4::int) %% 4], (%[1]s + $4) %% 4, ((%[1]s * 7 + $4) %% 10000) / 100.0,
	$5::numeric + (%[1]s + $4) %% 3, nullif((%[1]s + $4) %% 7, 0)`

// amount is a number that is easily taken for another one, or null.
func (w *writer) amount() *string {
	all := []string{"", "", "0", "0.1", "0.10", "-0.000000000000000000001", "99.99", "12345678901234567890.123", "1e25", "98.5", "1e-7"}
	if w.rng.IntN(30) == 0 {
		all = []string{"NaN", "NaN", "Infinity", "-Infinity"}
	}
	if text := all[w.rng.IntN(len(all))]; text != "" {
		return &text
	}
	return nil
}

// exec runs a statement that changes every row that it touches.
func (w *writer) exec(ctx context.Context, tx pgx.Tx, did *account, table, statement string, args ...any) error {
	tag, err := tx.Exec(ctx, statement, args...)
	did.ran(tag, table, int(tag.RowsAffected()), int(tag.RowsAffected()))
	return err
}

// partly touches many rows and changes some of them, or none.
func (w *writer) partly(ctx context.Context, tx pgx.Tx, token string, some int, did *account) error {
	var touched, changed int
	err := tx.QueryRow(ctx, `
		with written as (update jobs set title = case when id % 3 = 0 then $1 else title end where id % 20 = $2 returning id)
		select count(*) filter (where id % 3 = 0), count(*) from written`, token, some).Scan(&changed, &touched)
	did.ran(pgconn.NewCommandTag("UPDATE"), "jobs", touched, changed)
	return err
}

// big is a row of up to 1 MB. A row that large leaves before another one comes, or tables would grow.
func (w *writer) big(ctx context.Context, tx pgx.Tx, token string, did *account) error {
	if err := w.exec(ctx, tx, did, "jobs", "delete from jobs where length(note) > 100000 and $1 <> ''", token); err != nil {
		return err
	}
	return w.exec(ctx, tx, did, "jobs", "insert into jobs (title, note) values ($1, $2)", token, w.text(1_000_000))
}

// broadcast sends the same value some times: it must come as often.
func (w *writer) broadcast(ctx context.Context, tx pgx.Tx, token string, did *account) error {
	length := 100
	if w.rng.IntN(50) == 0 {
		length = 500_000
	}
	value, err := json.Marshal(map[string]any{"token": token, "text": w.text(length)})
	if err != nil {
		return err
	}
	times := 1
	if w.rng.IntN(3) == 0 && length == 100 {
		times += w.rng.IntN(4)
	}
	_, err = tx.Exec(ctx, "select trumpet.broadcast('dispatch', $1::text::jsonb) from generate_series(1, $2)", string(value), times)
	did.events += times
	return err
}

// alphabet has what is hard to pass on: quotes, backslashes, line ends, what JSON escapes, and all
// lengths of UTF-8.
var alphabet = []string{"a", "b", " ", "0", `"`, `\`, "\n", "\r", "\t", "\u0001", "\u2028", "é", "€", "😀", "<", "&", ",", ":", "{", "}", "[", "]"}

// text is of up to so many bytes; short ones are as frequent as long ones.
func (w *writer) text(most int) string {
	length := int(math.Pow(float64(most), w.rng.Float64()))
	var b strings.Builder
	for b.Len() < min(length, 300) {
		b.WriteString(alphabet[w.rng.IntN(len(alphabet))])
	}
	if short := b.String(); len(short) < length {
		return strings.Repeat(short, length/len(short))
	}
	return b.String()
}
