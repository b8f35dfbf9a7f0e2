package pgbus_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// A result that comes in its place of the log yet is not given before that: older ones would follow it.
// One whose place was pruned is given, because it comes no more.
func TestNewestResultsAreThoseThatAreInTheLog(t *testing.T) {
	t.Parallel()
	_, conn := database(t)
	results := func() (all []*int64) {
		rows, err := conn.Query(t.Context(), "select position from trumpet.live_results()")
		if err == nil {
			all, err = pgx.CollectRows(rows, pgx.RowTo[*int64])
		}
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	defineLive(t, conn, "notes", jobsByNote)
	if all := results(); len(all) != 0 {
		t.Errorf("%d results before they were in the log", len(all))
	}
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	if all := results(); len(all) != 1 || all[0] == nil {
		t.Errorf("got %v once it is in the log", all)
	}
	pgtest.Exec(t, conn, "select trumpet.broadcast('a', '1')")
	pgtest.Exec(t, conn, "select trumpet.sequence()")
	pgtest.Exec(t, conn, "select trumpet.prune('0', 0, 1000000)")
	if all := results(); len(all) != 1 || all[0] != nil {
		t.Errorf("got %v after its place was pruned", all)
	}
}
