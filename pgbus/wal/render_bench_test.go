package wal

import (
	"strings"
	"testing"
)

var benchScalars = []struct {
	name string
	oid  uint32
	text string
}{
	{"bool", 16, "t"},
	{"int4", 23, "1234567"},
	{"float8", 701, "1234.5678901234"},
	{"numeric", 1700, "123456789.12"},
	{"text12", 25, "Hello, world"},
	{"text100", 25, strings.Repeat("0123456789", 10)},
	{"text100escaped", 25, strings.Repeat("01234\n6\"89", 10)},
	{"text2000", 25, strings.Repeat("0123456789", 200)},
	{"uuid", 2950, "5f3a09c1-8b1e-4c57-9d53-0f6c4f0e7a11"},
	{"date", 1082, "2026-11-27"},
	{"timestamptz", 1184, "2026-11-27 12:34:56.789+00"},
	{"jsonb", 3802, `{"a": [1, 2, 3], "b": "text"}`},
}

func BenchmarkAppendJSON(b *testing.B) {
	types := NewTypes()
	array := func(element *typeInfo) *typeInfo {
		return &typeInfo{kind: kindArray, delimiter: ',', element: element}
	}
	types.loaded[100001] = stringType // an enum
	types.loaded[100002] = array(numberType)
	types.loaded[100003] = array(stringType)
	address := &typeInfo{kind: kindComposite, attributes: []typeAttribute{{`"street":`, stringType}, {`"number":`, numberType}, {`"since":`, timestampTZType}}}
	types.loaded[100004] = address
	types.loaded[100005] = array(address)
	dst := make([]byte, 0, 4096)
	for _, v := range append(benchScalars[:len(benchScalars):len(benchScalars)], []struct {
		name string
		oid  uint32
		text string
	}{
		{"enum", 100001, "shipped"},
		{"int4array10", 100002, "{1,22,333,4444,55555,666666,7777777,88888888,999999999,0}"},
		{"textarray3", 100003, `{one,"two three","\"four\""}`},
		{"composite", 100004, `("Long Street",17,"2026-11-27 12:34:56+00")`},
		{"compositearray2", 100005, `{"(\"Long Street\",17,\"2026-11-27 12:34:56+00\")","(Short,1,)"}`},
	}...) {
		b.Run(v.name, func(b *testing.B) {
			text := []byte(v.text)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := types.AppendJSON(dst, v.oid, text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
