package pgbus_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
)

// ids reads jobs' ids in a cut.
func ids(t *testing.T, bus *pgbus.Bus, in func()) (all []int, at trumpet.EventID) {
	t.Helper()
	err := bus.Cut(t.Context(), func(ctx context.Context, tx pgx.Tx, where trumpet.EventID) error {
		at = where
		if in != nil {
			in()
		}
		rows, err := tx.Query(ctx, "select id from jobs order by id")
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, pgx.RowTo[int])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, at
}

func TestCut(t *testing.T) {
	t.Parallel()
	url, conn := database(t)
	bus, r, _ := start(t, url, "w1", nil)
	if all, at := ids(t, bus, nil); len(all) != 0 || at.Position != 0 {
		t.Errorf("empty: %v at %v", all, at)
	}
	pgtest.Exec(t, conn, "insert into jobs (id) values (1), (2), (3)")
	all, at := ids(t, bus, func() { pgtest.Exec(t, conn, "insert into jobs (id) values (4)") })
	if len(all) != 3 || at.Position != 1 || at.Ordinal != 2 {
		t.Errorf("got %v at %v, want 3 rows at 1.2", all, at)
	}
	pgtest.Exec(t, conn, "select trumpet.broadcast('dispatch', '\"end\"')")
	events := r.waitData(t, `"end"`)
	if id := events[2].ID; id != at {
		t.Errorf("the cut is at %v, the event there is %v", at, id)
	}
	rest, _, err := bus.ReadLog(t.Context(), at, events[len(events)-1].ID)
	if got := describe(rest); err != nil || len(got) != 2 || got[0] != `insert {"id":4}` {
		t.Errorf("after the cut: %q, %v", got, err)
	}
}
