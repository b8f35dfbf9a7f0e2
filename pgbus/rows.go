package pgbus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/trumpet-realtime/trumpet"
)

var errRows = errors.New("rows do not fit their record")

// events makes a record's events: one for each row, or one for all. An updated row in
// which nothing changed makes none; the others keep their ordinals. More is set on
// none of them yet.
func (r *record) events() ([]trumpet.Event, error) {
	base := trumpet.Event{
		ID:    trumpet.EventID{Position: r.position, Tag: r.tag},
		Topic: r.topic,
		Op:    r.op,
		At:    r.at,
	}
	switch r.op {
	case trumpet.OpBroadcast:
		base.Data = r.data
		return []trumpet.Event{base}, nil
	case trumpet.OpTruncate:
		return []trumpet.Event{base}, nil
	case trumpet.OpBulk:
		base.Statement, base.Rows = r.statement, r.rows
		return []trumpet.Event{base}, nil
	case trumpet.OpResult:
		about, err := r.result()
		if err != nil {
			return nil, err
		}
		base.Data, base.AsOf, base.Stale, base.Error = r.after, about.AsOf, about.Stale, about.Error
		return []trumpet.Event{base}, nil
	}
	before, err := splitArray(r.before)
	if err != nil {
		return nil, fmt.Errorf("%w: before: %w", errRows, err)
	}
	after, err := splitArray(r.after)
	if err != nil {
		return nil, fmt.Errorf("%w: after: %w", errRows, err)
	}
	if r.op == trumpet.OpUpdate {
		if before, err = pairRows(before, after, r.key); err != nil {
			return nil, err
		}
	}
	count := max(len(before), len(after))
	if int64(count) != int64(r.lastOrdinal)+1 || count == 0 {
		return nil, fmt.Errorf("%w: %d rows, last ordinal %d", errRows, count, r.lastOrdinal)
	}
	events := make([]trumpet.Event, 0, count)
	for i := range count {
		event := base
		event.ID.Ordinal = int32(i)
		identified := before
		if r.op != trumpet.OpDelete {
			event.New = after[i]
			identified = after
		}
		if len(r.key) > 0 {
			if event.Key, err = pickMembers(identified[i], r.key); err != nil {
				return nil, err
			}
		}
		switch r.op {
		case trumpet.OpDelete:
			event.Old = before[i]
		case trumpet.OpUpdate:
			var whole bool
			if event.Old, whole, err = changedMembers(before[i], after[i]); err != nil {
				return nil, err
			}
			switch {
			case !whole:
				event.Known = before[i]
			case event.Old == nil:
				continue
			}
		}
		events = append(events, event)
	}
	return events, nil
}

// aboutResult is what a result's record says beside its rows.
type aboutResult struct {
	AsOf    int64  `json:"as_of"`
	Version int64  `json:"version"` // of the live query's definition; 0: dropped
	Stale   bool   `json:"stale"`
	Error   string `json:"error"`
}

func (r *record) result() (about aboutResult, err error) {
	if err := json.Unmarshal(r.data, &about); err != nil || about.AsOf < 0 {
		return aboutResult{}, fmt.Errorf("%w: what is said of a result: %q", errRows, r.data)
	}
	about.Error = strings.Join(strings.Fields(about.Error), " ")
	return about, nil
}

// pairRows returns before in the order of after. Postgres keeps both transition tables in
// one order, but does not promise it; so rows are paired by their keys, and only those whose
// key itself was changed by their order.
func pairRows(before, after [][]byte, key [][]byte) ([][]byte, error) {
	if len(before) != len(after) {
		return nil, fmt.Errorf("%w: %d rows before, %d after", errRows, len(before), len(after))
	}
	if len(before) == 1 || len(key) == 0 {
		return before, nil
	}
	keys := func(rows [][]byte) ([]string, error) {
		all := make([]string, len(rows))
		for i, row := range rows {
			k, err := pickMembers(row, key)
			if err != nil {
				return nil, err
			}
			all[i] = string(k)
		}
		return all, nil
	}
	oldKeys, err := keys(before)
	if err != nil {
		return nil, err
	}
	newKeys, err := keys(after)
	if err != nil {
		return nil, err
	}
	paired := make([][]byte, len(after))
	taken := make([]bool, len(before))
	byKey := make(map[string]int)
	for i := range before {
		if oldKeys[i] == newKeys[i] {
			paired[i], taken[i] = before[i], true
		} else {
			byKey[oldKeys[i]] = i
		}
	}
	for i := range after {
		if j, ok := byKey[newKeys[i]]; ok && paired[i] == nil && !taken[j] {
			paired[i], taken[j] = before[j], true
		}
	}
	next := 0
	for i := range after {
		if paired[i] != nil {
			continue
		}
		for taken[next] {
			next++
		}
		paired[i], taken[next] = before[next], true
	}
	return paired, nil
}

// member is one name and value of a JSON object, both as they stand there.
type member struct{ name, value []byte }

// pickMembers returns the object's members with the given names as an object.
func pickMembers(object []byte, names [][]byte) (json.RawMessage, error) {
	members, err := splitObject(object)
	if err != nil {
		return nil, err
	}
	picked := []byte{'{'}
	for _, name := range names {
		for _, m := range members {
			if bytes.Equal(m.name, name) {
				picked = appendMember(picked, m)
				break
			}
		}
	}
	return append(picked, '}'), nil
}

// changedMembers returns those members of before that have another value in after, or nil
// if all are the same; and whether before has as many members as after: the WAL may know less of it.
func changedMembers(before, after []byte) (_ json.RawMessage, whole bool, _ error) {
	old, err := splitObject(before)
	if err != nil {
		return nil, false, err
	}
	now, err := splitObject(after)
	if err != nil {
		return nil, false, err
	}
	whole = len(old) >= len(now)
	var changed []byte
	for i, m := range old {
		same := false
		if i < len(now) && bytes.Equal(now[i].name, m.name) { // the columns' order is the same
			same = bytes.Equal(now[i].value, m.value)
		} else {
			for _, n := range now {
				if bytes.Equal(n.name, m.name) {
					same = bytes.Equal(n.value, m.value)
					break
				}
			}
		}
		if same {
			continue
		}
		if changed == nil {
			changed = []byte{'{'}
		}
		changed = appendMember(changed, m)
	}
	if changed == nil {
		return nil, whole, nil
	}
	return append(changed, '}'), whole, nil
}

func appendMember(object []byte, m member) []byte {
	if len(object) > 1 {
		object = append(object, ',')
	}
	object = append(object, m.name...)
	object = append(object, ':')
	return append(object, m.value...)
}

// splitArray returns the elements of a JSON array; none for an empty input. The input must be
// valid JSON, or whatever is wrong with it is an error or stays in the elements.
func splitArray(array []byte) ([][]byte, error) {
	array = bytes.TrimSpace(array)
	if len(array) == 0 {
		return nil, nil
	}
	if array[0] != '[' || array[len(array)-1] != ']' || len(array) < 2 {
		return nil, errors.New("not a JSON array")
	}
	var elements [][]byte
	rest := bytes.TrimSpace(array[1 : len(array)-1])
	for len(rest) > 0 {
		end := trumpet.JSONValueEnd(rest)
		element := bytes.TrimSpace(rest[:end])
		if len(element) == 0 {
			return nil, errors.New("empty element in a JSON array")
		}
		elements = append(elements, element)
		if end == len(rest) {
			break
		}
		rest = bytes.TrimSpace(rest[end+1:])
		if len(rest) == 0 {
			return nil, errors.New("trailing comma in a JSON array")
		}
	}
	return elements, nil
}

// splitObject returns the members of a JSON object.
func splitObject(object []byte) ([]member, error) {
	object = bytes.TrimSpace(object)
	if len(object) < 2 || object[0] != '{' || object[len(object)-1] != '}' {
		return nil, errors.New("not a JSON object")
	}
	var members []member
	rest := bytes.TrimSpace(object[1 : len(object)-1])
	for len(rest) > 0 {
		nameEnd, _ := trumpet.JSONStringEnd(rest)
		if nameEnd < 0 {
			return nil, errors.New("a JSON object's member without a name")
		}
		name := rest[:nameEnd]
		rest = bytes.TrimSpace(rest[nameEnd:])
		if len(rest) == 0 || rest[0] != ':' {
			return nil, errors.New("a JSON object's member without a colon")
		}
		rest = bytes.TrimSpace(rest[1:])
		end := trumpet.JSONValueEnd(rest)
		value := bytes.TrimSpace(rest[:end])
		if len(value) == 0 {
			return nil, errors.New("a JSON object's member without a value")
		}
		members = append(members, member{name, value})
		if end == len(rest) {
			break
		}
		rest = bytes.TrimSpace(rest[end+1:])
	}
	return members, nil
}
