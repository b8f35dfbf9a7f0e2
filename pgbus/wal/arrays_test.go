package wal

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// arrayTree is an array as nested slices of it and elements.
type arrayTree struct {
	element *string
	isNull  bool
	nested  []arrayTree
}

// readArray reads a whole array.
func readArray(text []byte, delimiter byte) (arrayTree, error) {
	s, err := scanArray(text, delimiter)
	if err != nil {
		return arrayTree{}, err
	}
	open := []*arrayTree{{}}
	for {
		token, p, err := s.next()
		if err != nil {
			return arrayTree{}, err
		}
		top := open[len(open)-1]
		switch token {
		case arrayOpen:
			open = append(open, &arrayTree{})
		case arrayClose:
			open = open[:len(open)-1]
			parent := open[len(open)-1]
			parent.nested = append(parent.nested, *top)
		case arrayElement:
			text := string(p.text)
			if p.escaped {
				text = string(p.appendText(nil))
			}
			top.nested = append(top.nested, arrayTree{element: &text, isNull: p.null})
		case arrayEnd:
			return open[0].nested[0], nil
		}
	}
}

// text is the array as array_out writes it, without bounds, and with quotes around every element
// that could need them.
func (a arrayTree) text(delimiter byte) []byte {
	if a.element != nil {
		if a.isNull {
			return []byte("NULL")
		}
		escaped := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(*a.element)
		return []byte(`"` + escaped + `"`)
	}
	text := []byte{'{'}
	for i, n := range a.nested {
		if i > 0 {
			text = append(text, delimiter)
		}
		text = append(text, n.text(delimiter)...)
	}
	return append(text, '}')
}

func (a arrayTree) equal(b arrayTree) bool {
	if (a.element == nil) != (b.element == nil) || a.element != nil && (*a.element != *b.element || a.isNull != b.isNull) {
		return false
	}
	return slices.EqualFunc(a.nested, b.nested, arrayTree.equal)
}

var arrayTexts = []struct {
	text string
	good bool
}{
	{`{}`, true}, {`{1}`, true}, {`{1,2,NULL}`, true}, {`{{1,2},{3,4}}`, true}, {`[0:1][-2:-1]={{1,2},{3,4}}`, true},
	{`{"a b","","NULL","\"","\\","{","}",","}`, true}, {`{{{{{{1}}}}}}`, true}, {`{ä,"\ö"}`, true}, {`{a b}`, true},
	{`{"\\\"\\\\"}`, true}, {`{null}`, true}, {`{(1,2);(3,4)}`, true},
	{``, false}, {`1`, false}, {`{`, false}, {`}`, false}, {`{1`, false}, {`{1,}`, false}, {`{,1}`, false}, {`{1}}`, false}, {`{1} `, false},
	{`{{1},2}`, false}, {`{{1},{{2}}}`, false}, {`{{}}`, false}, {`{{},{}}`, false}, {`{{1},}`, false}, {`{{1}`, false},
	{`{{{{{{{1}}}}}}}`, false}, {`{"a`, false}, {`{"a\`, false}, {`{"a\"`, false}, {`{"a"b}`, false}, {`{a"b"}`, false}, {`{a\b}`, false},
	{`[0:1]{1,2}`, false}, {`[0:1][0:0]={1,2}`, false}, {`[0]={1}`, false}, {`[0:]={1}`, false}, {`[a:b]={1}`, false}, {`[0:1`, false},
	{`[0:1]=`, false}, {`[-:1]={1}`, false}, {`{1},{2}`, false}, {`{{1}{2}}`, false}, {`{{1},{}}`, false},
}

func TestScanArray(t *testing.T) {
	t.Parallel()
	for _, c := range arrayTexts {
		if tree, err := readArray([]byte(c.text), ','); (err == nil) != c.good {
			t.Errorf("%s: %s, %v", c.text, tree.text(','), err)
		}
	}
	tree, err := readArray([]byte(`[2:3]={"a \"b\" \\ c",NULL}`), ',')
	if err != nil || *tree.nested[0].element != `a "b" \ c` || !tree.nested[1].isNull {
		t.Errorf("%s, %v", tree.text(','), err)
	}
}

// What is accepted says the same when it is written again.
func FuzzScanArray(f *testing.F) {
	for _, c := range arrayTexts {
		f.Add([]byte(c.text), byte(','))
		f.Add([]byte(c.text), byte(';'))
	}
	f.Fuzz(func(t *testing.T, text []byte, delimiter byte) {
		tree, err := readArray(text, delimiter)
		if err != nil || strings.IndexByte(`{}"\`, delimiter) >= 0 {
			return
		}
		written := tree.text(delimiter)
		again, err := readArray(written, delimiter)
		if err != nil || !again.equal(tree) {
			t.Errorf("%q is %q, and that %q, %v", text, written, again.text(delimiter), err)
		}
	})
}

// readRecord reads a whole composite; nil stands for null.
func readRecord(text []byte, attributes int) ([]*string, error) {
	s, err := scanRecord(text, attributes)
	if err != nil {
		return nil, err
	}
	fields := make([]*string, attributes)
	for i := range fields {
		p, err := s.next()
		if err != nil {
			return nil, err
		}
		if p.null {
			continue
		}
		field := string(p.text)
		if p.escaped {
			field = string(p.appendText(nil))
		}
		fields[i] = &field
	}
	return fields, nil
}

// recordText is what record_out writes, with quotes around every field.
func recordText(fields []*string) []byte {
	text := []byte{'('}
	for i, field := range fields {
		if i > 0 {
			text = append(text, ',')
		}
		if field != nil {
			text = append(text, '"')
			text = append(text, strings.NewReplacer(`\`, `\\`, `"`, `""`).Replace(*field)...)
			text = append(text, '"')
		}
	}
	return append(text, ')')
}

var recordTexts = []struct {
	text       string
	attributes int
	good       bool
}{
	{`()`, 0, true}, {`()`, 1, true}, {`("")`, 1, true}, {`(1,2)`, 2, true}, {`(,)`, 2, true}, {`(,"a ""b"" \\ c",)`, 3, true},
	{`("(1,""(2,3)"")",x)`, 2, true}, {`(a b)`, 1, true}, {`("\,")`, 1, true}, {`("""")`, 1, true},
	{``, 0, false}, {``, 1, false}, {`(`, 0, false}, {`(`, 1, false}, {`)`, 1, false}, {`(1)`, 0, false}, {`(1`, 1, false}, {`( `, 0, false},
	{`(1)`, 2, false}, {`(1,2)`, 1, false}, {`(1,2,3)`, 2, false}, {`(1) `, 1, false}, {`(1))`, 1, false}, {`(1),`, 1, false},
	{`("a)`, 1, false}, {`("a`, 1, false}, {`("a"`, 1, false}, {`("a"b)`, 1, false}, {`("a\`, 1, false}, {`(a"b")`, 1, false},
	{`((1))`, 1, false}, {`(a\b)`, 1, false}, {`(1,)`, 1, false}, {`(,)`, 1, false}, {`[1]`, 1, false},
}

func TestScanRecord(t *testing.T) {
	t.Parallel()
	for _, c := range recordTexts {
		if fields, err := readRecord([]byte(c.text), c.attributes); (err == nil) != c.good {
			t.Errorf("%s of %d: %s, %v", c.text, c.attributes, recordText(fields), err)
		}
	}
	fields, err := readRecord([]byte(`("a ""b"" \\ c",,"")`), 3)
	if err != nil || *fields[0] != `a "b" \ c` || fields[1] != nil || *fields[2] != "" {
		t.Errorf("%s, %v", recordText(fields), err)
	}
}

// What is accepted says the same when it is written again.
func FuzzScanRecord(f *testing.F) {
	for _, c := range recordTexts {
		f.Add([]byte(c.text), c.attributes)
	}
	f.Fuzz(func(t *testing.T, text []byte, attributes int) {
		if attributes < 0 || attributes > 1600 {
			return
		}
		fields, err := readRecord(text, attributes)
		if err != nil {
			return
		}
		written := recordText(fields)
		again, err := readRecord(written, attributes)
		if err != nil || !slices.EqualFunc(fields, again, func(a, b *string) bool {
			return (a == nil) == (b == nil) && (a == nil || *a == *b)
		}) {
			t.Errorf("%q is %q, and that %q, %v", text, written, recordText(again), err)
		}
	})
}

// fuzzTypes knows, without Postgres, an array of composites of all kinds but json, whose text is
// taken as it is, as type 100000.
func fuzzTypes() *Types {
	inner := &typeInfo{kind: kindComposite, attributes: []typeAttribute{{`"s":`, stringType}, {`"v":`, oidVectorType}}}
	outer := &typeInfo{kind: kindComposite}
	for _, value := range []*typeInfo{
		boolType, numberType, stringType, timestampType, timestampTZType, int2VectorType, inner,
		{kind: kindArray, delimiter: ';', element: inner},
	} {
		outer.attributes = append(outer.attributes, typeAttribute{`"x":`, value})
	}
	t := NewTypes()
	t.loaded[100000] = &typeInfo{kind: kindArray, delimiter: ',', element: outer}
	return t
}

// Whatever a text is, either it does not fit or valid JSON comes of it.
func FuzzAppendJSON(f *testing.F) {
	f.Add([]byte(`{"(t,-1.5e+10,\"a \"\"b\"\"\n\",\"2026-11-27 12:00:00.5\",\"2026-11-27 12:00:00+00 BC\",\"1 -2\",\"(x,\"\"1 2\"\")\",\"{(,)}\")",NULL}`))
	f.Add([]byte(`{"(,,,,,,,)"}`))
	f.Add([]byte(`{"(,NaN,\"\",infinity,-infinity,\"\",,\"{\"\"(\\\\\"\"a b\\\\\"\",)\"\";(,)}\")"}`))
	f.Add([]byte(`{"(x,,,,,,,)"}`))
	f.Add([]byte(`{}`))
	types := fuzzTypes()
	f.Fuzz(func(t *testing.T, text []byte) {
		before := []byte("before")
		value, err := types.AppendJSON(before, 100000, text)
		if len(types.scratch) != 0 {
			t.Errorf("%q leaves %q", text, types.scratch)
		}
		if !bytes.HasPrefix(value, before) {
			t.Fatalf("%q is not appended: %q", text, value)
		}
		if value = value[len(before):]; err != nil && len(value) > 0 || err == nil && !json.Valid(value) {
			t.Errorf("%q is %q, %v", text, value, err)
		}
	})
}
