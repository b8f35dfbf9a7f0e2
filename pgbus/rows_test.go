package pgbus

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet"
)

// jsonText draws a JSON value as Postgres could write it, white space included.
func jsonText(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		space := rapid.SampledFrom([]string{"", " ", " \n "})
		kinds := 5
		if depth == 0 {
			kinds = 3
		}
		switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
		case 0:
			return rapid.SampledFrom([]string{"null", "true", "false", "0", "-1.50", "1e+100"}).Draw(t, "literal")
		case 1, 2:
			b, err := json.Marshal(rapid.String().Draw(t, "text"))
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		case 3:
			text := "["
			for i, element := range rapid.SliceOfN(jsonText(depth-1), 0, 3).Draw(t, "elements") {
				if i > 0 {
					text += ","
				}
				text += space.Draw(t, "space") + element + space.Draw(t, "space")
			}
			return text + "]"
		default:
			text := "{"
			for i, element := range rapid.SliceOfN(jsonText(depth-1), 0, 3).Draw(t, "members") {
				if i > 0 {
					text += ","
				}
				name, err := json.Marshal(fmt.Sprint(i, rapid.String().Draw(t, "name")))
				if err != nil {
					t.Fatal(err)
				}
				text += space.Draw(t, "space") + string(name) + space.Draw(t, "space") + ":" + space.Draw(t, "space") + element
			}
			return text + "}"
		}
	})
}

// The splitters must cut where encoding/json would.
func TestSplittersAgreeWithEncodingJSON(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := jsonText(3).Draw(t, "json")
		var array []json.RawMessage
		if text[0] == '[' && json.Unmarshal([]byte(text), &array) == nil {
			elements, err := splitArray([]byte(text))
			if err != nil || len(elements) != len(array) {
				t.Fatalf("%q: %d elements, %v; want %d", text, len(elements), err, len(array))
			}
			for i := range array {
				if string(elements[i]) != string(array[i]) {
					t.Fatalf("%q: element %d is %q, want %q", text, i, elements[i], array[i])
				}
			}
		}
		var object map[string]json.RawMessage
		if text[0] == '{' && json.Unmarshal([]byte(text), &object) == nil {
			members, err := splitObject([]byte(text))
			if err != nil || len(members) != len(object) {
				t.Fatalf("%q: %d members, %v; want %d", text, len(members), err, len(object))
			}
			for _, m := range members {
				var name string
				if err := json.Unmarshal(m.name, &name); err != nil || string(object[name]) != string(m.value) {
					t.Fatalf("%q: member %s is %q, want %q, %v", text, m.name, m.value, object[name], err)
				}
			}
		}
	})
}

// However the two transition tables are ordered, a row whose key stayed is paired with itself.
func TestPairRowsFollowsTheKey(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfNDistinct(rapid.IntRange(0, 50), 1, 20, rapid.ID[int]).Draw(t, "ids")
		shuffled := rapid.Permutation(ids).Draw(t, "order")
		moved := rapid.SampledFrom(ids).Draw(t, "moved")
		row := func(id int, state string) []byte { return fmt.Appendf(nil, `{"id":%d,"state":%q}`, id, state) }
		var before, after [][]byte
		for i := range ids {
			before = append(before, row(ids[i], fmt.Sprint("old", ids[i])))
			id := shuffled[i]
			if id == moved {
				id += 1000 // its key was changed
			}
			after = append(after, row(id, fmt.Sprint("new", shuffled[i])))
		}
		paired, err := pairRows(before, after, [][]byte{[]byte(`"id"`)})
		if err != nil {
			t.Fatal(err)
		}
		for i := range after {
			if want := row(shuffled[i], fmt.Sprint("old", shuffled[i])); string(paired[i]) != string(want) {
				t.Fatalf("row %d is paired with %s, want %s", i, paired[i], want)
			}
		}
	})
}

func TestChangedMembers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		before, after, want string
		whole               bool
	}{
		{`{"a":1,"b":2}`, `{"a":1,"b":2}`, ``, true},
		{`{"a":1,"b":2}`, `{"a":1,"b":3}`, `{"b":2}`, true},
		{`{"a":null,"b":"x"}`, `{"a":0,"b":"y"}`, `{"a":null,"b":"x"}`, true},
		{`{"a":1,"b":2}`, `{"b":2}`, `{"a":1}`, true}, // the column was dropped in between
		{`{"a":1}`, `{"a":1,"b":2}`, ``, false},       // only what identifies the row is known
		{`{"a":1}`, `{"a":2,"b":2}`, `{"a":1}`, false},
	} {
		got, whole, err := changedMembers([]byte(test.before), []byte(test.after))
		if err != nil || string(got) != test.want || whole != test.whole {
			t.Errorf("%s → %s: got %s, %v; want %s", test.before, test.after, got, err, test.want)
		}
	}
}

func TestCollectorGivesWholeTransactions(t *testing.T) {
	t.Parallel()
	var given [][]string
	c := newCollector(func(events []trumpet.Event, head trumpet.EventID) {
		var ids []string
		for _, e := range events {
			ids = append(ids, fmt.Sprint(e.ID.Position, e.More))
		}
		given = append(given, ids)
	})
	for i, more := range []bool{true, true, false, false, true} {
		r := record{position: int64(i + 1), op: "broadcast", topic: "x", data: json.RawMessage("1"), more: more}
		if err := c.add(&r, trumpet.EventID{}); err != nil {
			t.Fatal(err)
		}
	}
	c.flush()
	if want := [][]string{{"1 true", "2 true", "3 false", "4 false"}}; !reflect.DeepEqual(given, want) {
		t.Errorf("given %v, want %v", given, want)
	}
	if !c.partial() {
		t.Error("the open transaction was forgotten")
	}
	c.flushAll()
	if len(given) != 2 || given[1][0] != "5 false" {
		t.Errorf("given %v", given)
	}
}

// A record that cannot be understood must neither stop the bus nor vanish.
func TestCollectorGivesABulkEventForWhatItCannotUnderstand(t *testing.T) {
	t.Parallel()
	var given []trumpet.Event
	c := newCollector(func(events []trumpet.Event, _ trumpet.EventID) { given = events })
	broken := record{position: 1, op: trumpet.OpUpdate, topic: "jobs", rows: 2, lastOrdinal: 1, before: json.RawMessage(`[{"a":1}]`), after: json.RawMessage(`[{"a":1},{"a":2}]`)}
	if err := c.add(&broken, trumpet.EventID{}); err == nil {
		t.Error("no error")
	}
	c.flush()
	if len(given) != 1 || given[0].Op != trumpet.OpBulk || given[0].Statement != trumpet.OpUpdate || given[0].Rows != 2 || given[0].More {
		t.Errorf("given %+v", given)
	}
}
