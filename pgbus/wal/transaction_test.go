package wal

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
)

// describe is a record in a line.
func (r Record) describe() string {
	return fmt.Sprintf("%d %s %s %s %d %s", r.LSN, r.Topic, r.Op, r.Statement, r.Rows, r.After)
}

func TestBuilder(t *testing.T) {
	t.Parallel()
	jobs := &relation{table: &Table{Topic: "jobs", MaxRows: 3, MaxBytes: 1000}}
	parts := &relation{table: &Table{Topic: "parts", MaxRows: 1000, MaxBytes: 20}}
	row := func(n int) []byte { return fmt.Appendf(nil, `{"n":%d}`, n) }
	for name, test := range map[string]struct {
		do   func(b *builder)
		want string
	}{
		"runs of one kind are one record": {func(b *builder) {
			b.change(jobs, "insert", 1, row(1))
			b.change(jobs, "insert", 2, row(2))
			b.change(parts, "insert", 3, row(3))
			b.change(jobs, "insert", 4, row(4))
		}, `1 jobs insert  2 [{"n":1},{"n":2}]; 3 parts insert  1 [{"n":3}]; 4 jobs insert  1 [{"n":4}]`},
		"a mark ends a record": {func(b *builder) {
			b.change(jobs, "insert", 1, row(1))
			b.cut()
			b.change(jobs, "insert", 2, row(2))
		}, `1 jobs insert  1 [{"n":1}]; 2 jobs insert  1 [{"n":2}]`},
		"too many rows": {func(b *builder) {
			b.change(jobs, "insert", 1, row(1))
			b.change(parts, "insert", 2, row(2))
			b.change(jobs, "update", 3, row(3))
			b.change(jobs, "insert", 4, row(4))
			b.change(jobs, "insert", 5, row(5))
			b.change(parts, "insert", 6, row(6))
		}, `2 parts insert  1 [{"n":2}]; 5 jobs bulk insert 3 ; 5 jobs bulk update 1 ; 6 parts insert  1 [{"n":6}]`},
		"too many bytes": {func(b *builder) {
			b.change(parts, "insert", 1, row(1))
			b.change(parts, "insert", 2, row(2))
			b.change(parts, "insert", 3, row(3))
		}, `3 parts bulk insert 3 `},
		"bulk stands after a truncate": {func(b *builder) {
			b.change(jobs, "insert", 1, row(1))
			b.truncate("jobs", 2, false)
			for i := range 3 {
				b.change(jobs, "insert", pglogrepl.LSN(3+i), row(i))
			}
		}, `2 jobs truncate  0 ; 5 jobs bulk insert 4 `},
		"what cannot be told": {func(b *builder) {
			b.truncate("jobs", 1, true)
			b.unknown("parts", 2)
		}, `1 jobs bulk truncate 0 ; 2 parts bulk  0 `},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b builder
			b.reset()
			test.do(&b)
			var got []string
			for _, r := range b.finish() {
				got = append(got, r.describe())
			}
			if strings.Join(got, "; ") != test.want {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "; "), test.want)
			}
		})
	}
}

// change counts and adds a row, as the decoder does.
func (b *builder) change(r *relation, op string, at pglogrepl.LSN, after []byte) {
	if b.count(r, op, at) {
		b.add(r, op, at, nil, after)
	}
}

// However many tables a transaction writes to, what is held of it is bounded: the largest topics become bulk.
func TestTransactionIsBounded(t *testing.T) {
	t.Parallel()
	var b builder
	b.reset()
	row := bytes.Repeat([]byte{'x'}, 1<<20)
	for i := range 200 {
		b.change(&relation{table: &Table{Topic: fmt.Sprint(i % 10), MaxRows: 100000, MaxBytes: 64 << 20}}, "insert", pglogrepl.LSN(i), row)
		held := 0
		for _, r := range b.records {
			held += len(r.After)
		}
		if held > maxTransactionBytes+1<<20 {
			t.Fatalf("after %d rows of 1 MiB %d bytes are held", i, held)
		}
	}
	told := map[string]bool{}
	for _, r := range b.finish() {
		told[r.Topic] = true
	}
	if len(told) != 10 {
		t.Errorf("%d of 10 topics are told of", len(told))
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	tables := Tables{7: {Topic: `o"dd`, Key: []string{"id"}, Columns: []string{"id", "a,b"}, MaxRows: 1, MaxBytes: 2, Partitioned: true}, 8: {Topic: "x", Key: []string{}}}
	again, err := ParseTables([]byte(tables.String()))
	if err != nil || again.String() != tables.String() || again[8].Columns != nil || again[8].Key == nil {
		t.Errorf("got %s, %v; want %s", again, err, tables)
	}
	if _, err := ParseTables([]byte(`{"x":1}`)); err == nil {
		t.Error("nonsense was taken")
	}
}
