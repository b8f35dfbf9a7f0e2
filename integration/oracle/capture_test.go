package oracle

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// How many events a transaction makes depends on who captures it: triggers bound what a statement does to a
// table, the WAL's reader what a transaction does.
func TestAccount(t *testing.T) {
	t.Parallel()
	insert, update, remove := pgconn.NewCommandTag("INSERT 0 1"), pgconn.NewCommandTag("UPDATE 1"), pgconn.NewCommandTag("DELETE 1")
	for name, test := range map[string]struct {
		did           func(*account)
		triggers, wal [2]int // events, and rows of bulk events
	}{
		"nothing": {func(*account) {}, [2]int{}, [2]int{}},
		"two statements within the bound": {func(a *account) {
			a.ran(insert, "jobs", 40, 40)
			a.ran(update, "jobs", 20, 15)
		}, [2]int{55, 0}, [2]int{55, 0}},
		"beyond it only together": {func(a *account) {
			a.ran(insert, "jobs", 40, 40)
			a.ran(update, "jobs", 40, 40)
			a.ran(update, "jobs", 3, 0)
		}, [2]int{80, 0}, [2]int{2, 83}},
		"beyond it at once, with more before and after": {func(a *account) {
			a.truncated("jobs")
			a.ran(remove, "jobs", 1, 1)
			a.ran(insert, "jobs", 70, 70)
			a.ran(update, "jobs", 2, 0)
			a.events++ // a broadcast
			a.ran(insert, "customers", 3, 3)
		}, [2]int{7, 70}, [2]int{8, 73}},
		"just within it, with rows that do not change": {func(a *account) {
			a.ran(insert, "jobs", 50, 50)
			a.ran(update, "jobs", 20, 10)
		}, [2]int{60, 0}, [2]int{60, 0}},
		"beyond it by some of its rows": {func(a *account) {
			a.ran(update, "jobs", 100, 61)
		}, [2]int{1, 100}, [2]int{1, -1}},
		"a savepoint rolled back": {func(a *account) {
			a.ran(insert, "jobs", 1, 1)
			before := a.clone()
			a.ran(insert, "jobs", 70, 70)
			*a = before
		}, [2]int{1, 0}, [2]int{1, 0}},
	} {
		for capture, want := range map[string][2]int{"triggers": test.triggers, "wal": test.wal} {
			a := newAccount(capture)
			test.did(&a)
			m := a.total()
			if got := [2]int{m.events, m.rows}; got != want {
				t.Errorf("%s, by %s: events and rows of bulk events are %d, want %d", name, capture, got, want)
			}
		}
	}
}
