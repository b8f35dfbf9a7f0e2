package live

import (
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// decimals are numbers as Postgres writes them.
func decimals() *rapid.Generator[string] {
	return rapid.StringMatching(`-?[0-9]{1,25}(\.[0-9]{1,12})?`)
}

func rational(t *rapid.T, text string) *big.Rat {
	r, ok := new(big.Rat).SetString(text)
	if !ok {
		t.Fatalf("%q is no number", text)
	}
	return r
}

func TestSumsAreExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		numbers := rapid.SliceOfN(decimals(), 1, 20).Draw(t, "numbers")
		var s sum
		want := new(big.Rat)
		scale := 0
		for i, n := range numbers {
			times := int64(1)
			if i%3 == 2 {
				times = -1
			}
			if !s.add(n, times) {
				t.Fatalf("%q was not added", n)
			}
			want.Add(want, new(big.Rat).Mul(rational(t, n), big.NewRat(times, 1)))
			if _, fraction, ok := strings.Cut(n, "."); ok {
				scale = max(scale, len(fraction))
			}
		}
		trimmed, full := string(s.appendText(nil, -1)), string(s.appendText(nil, scale))
		if rational(t, trimmed).Cmp(want) != 0 || rational(t, full).Cmp(want) != 0 {
			t.Fatalf("sum is %s or %s, want %s", trimmed, full, want.FloatString(20))
		}
		if strings.Contains(trimmed, ".") && strings.HasSuffix(trimmed, "0") || scale > 0 && len(full)-strings.IndexByte(full, '.')-1 != scale {
			t.Fatalf("sum is written %s and, with %d digits, %s", trimmed, scale, full)
		}
		// Everything taken back leaves nothing.
		for i, n := range numbers {
			s.add(n, map[bool]int64{true: 1, false: -1}[i%3 == 2])
		}
		if !s.equal(&sum{}) {
			t.Fatalf("%s is left", s.appendText(nil, -1))
		}
	})
}

func TestSumsRefuse(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "x", "1.", ".5.5", "1.-5", "1e5", `"NaN"`, "null", "--1", "1 "} {
		if (&sum{}).add(text, 1) {
			t.Errorf("%q was added", text)
		}
	}
}

// Averages as PostgreSQL 15 writes them.
func TestAveragesAreWrittenAsPostgresWritesThem(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		sum   string
		count int64
		scale int
		want  string
	}{
		{"3", 2, 0, "1.5000000000000000"},
		{"0", 7, 0, "0.00000000000000000000"},
		{"1", 3, 0, "0.33333333333333333333"},
		{"-1", 3, 0, "-0.33333333333333333333"},
		{"2", 3, 0, "0.66666666666666666667"},
		{"10000", 1, 0, "10000.0000000000000000"},
		{"123456789.50", 2, 2, "61728394.750000000000"},
		{"0.07", 3, 2, "0.02333333333333333333"},
		{"3", 2, -1, "1.5"},
		{"1", 3, -1, "0.33333333333333333333"},
	} {
		var s sum
		s.add(test.sum, 1)
		if got := string(s.appendAverage(nil, test.count, test.scale)); got != test.want {
			t.Errorf("%s / %d is %s, want %s", test.sum, test.count, got, test.want)
		}
	}
}

func TestScalarsAreOrdered(t *testing.T) {
	t.Parallel()
	ordered := []string{"-10.5", "-2", "0.07", "2", "10", "null"}
	texts := []string{`"2026-11-01"`, `"2026-11-02"`, `"a"`, `"é"`, "null"}
	for _, all := range [][]string{ordered, texts} {
		for i := range all {
			for j := range all {
				want := map[bool]int{i < j: -1, i > j: 1, i == j: 0}[true]
				if got := compareJSON(all[i], all[j]); got != want {
					t.Errorf("%s and %s: %d, want %d", all[i], all[j], got, want)
				}
			}
		}
	}
}
