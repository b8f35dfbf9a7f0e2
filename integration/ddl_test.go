package integration

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
)

// A watched table is changed in every way, and its triggers are turned off: no write fails, events are right, and where there
// are none the doctor says so, and what mends it does.
func TestTablesChangeUnderAWatch(t *testing.T) {
	t.Parallel()
	url, conn := newDatabaseBy(t, "triggers")
	pgtest.Exec(t, conn, `create table parts (id int primary key, name text, amount int); create schema store;
		select trumpet.watch('parts', columns => '{id,name,amount}', topic => 'parts')`)
	a := newAudience(t, url, conn, "parts,dispatch")
	expect := func(statement string, want ...string) {
		t.Helper()
		events := a.hears(t, func() { pgtest.Exec(t, conn, statement) })
		var got []string
		for _, e := range events {
			var row bytes.Buffer
			if e.New != nil {
				if err := json.Compact(&row, e.New); err != nil {
					t.Fatal(err)
				}
			}
			got = append(got, strings.TrimSpace(e.Op+" "+e.Topic+" "+row.String()))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, want %q", statement, got, want)
		}
	}
	// finds runs the doctor, and what it says mends a finding, if there is to be one.
	finds := func(word string) {
		t.Helper()
		_, out := runCommand(t, url, "doctor")
		var mend string
		found := false
		for line := range strings.Lines(out) {
			isFinding := strings.HasPrefix(line, "ERROR  watches: ") || strings.HasPrefix(line, "WARNING  watches: ")
			switch text, ok := strings.CutPrefix(line, "  > "); {
			case isFinding && (word == "" || !strings.Contains(line, word)):
				t.Errorf("doctor says, and should speak of %q: %s", word, line)
			case isFinding:
				found = true
			case ok && found && mend == "":
				mend = strings.TrimSpace(text)
			}
		}
		if found != (word != "") {
			t.Fatalf("doctor does not speak of %q:\n%s", word, out)
		}
		if mend != "" && !strings.HasPrefix(mend, "--") {
			pgtest.Exec(t, conn, mend)
		}
	}

	expect("insert into parts values (1, 'bolt', 5)", `insert parts {"id":1,"name":"bolt","amount":5}`)
	expect("alter table parts add column note text default 'new'")
	expect("update parts set note = 'unwatched', amount = 6", `update parts {"id":1,"name":"bolt","amount":6}`)
	expect("alter table parts alter amount type numeric(10,2)")
	expect("update parts set amount = 6.5", `update parts {"id":1,"name":"bolt","amount":6.50}`)
	finds("")
	expect("alter table parts rename name to title")
	expect("update parts set title = 'nut', amount = 7", `update parts {"id":1,"amount":7.00}`)
	finds("name, which it has no more")
	expect("select trumpet.watch('parts', columns => '{id,title,amount}', topic => 'parts')")
	finds("")
	expect("alter table parts drop column amount")
	expect("update parts set title = 'screw'", `update parts {"id":1,"title":"screw"}`)
	finds("amount, which it has no more")
	expect("select trumpet.watch('parts', topic => 'parts')")
	expect("alter table parts rename to pieces; alter table pieces set schema store")
	expect("update store.pieces set title = 'washer'", `update parts {"id":1,"title":"washer","note":"unwatched"}`)
	expect("alter table store.pieces rename id to nr")
	expect("update store.pieces set title = 'pin'", `update parts {"nr":1,"title":"pin","note":"unwatched"}`)
	finds("has no column id any more")
	expect("update store.pieces set title = 'peg'", `update parts {"nr":1,"title":"peg","note":"unwatched"}`)
	finds("")
	expect("truncate store.pieces", "truncate parts")

	for _, off := range []string{"disable trigger trumpet_insert", "disable trigger all", "enable replica trigger trumpet_insert"} {
		expect("alter table store.pieces " + off)
		expect("insert into store.pieces values (2, 'silent', null)")
		finds("disabled")
		expect("delete from store.pieces; insert into store.pieces values (3, 'heard', null); delete from store.pieces",
			"delete parts", `insert parts {"nr":3,"title":"heard","note":null}`, "delete parts")
	}
	expect("drop trigger trumpet_update on store.pieces; insert into store.pieces values (4, 'x', null); update store.pieces set title = 'y'", `insert parts {"nr":4,"title":"x","note":null}`)
	finds("UPDATE is missing")
	expect("update store.pieces set title = 'z'", `update parts {"nr":4,"title":"z","note":null}`)

	// What a session writes that fires no triggers is not told, unless they always fire.
	expect("set session_replication_role = replica; update store.pieces set title = 'copied'; reset session_replication_role")
	expect("alter table store.pieces enable always trigger trumpet_update")
	expect("set session_replication_role = replica; update store.pieces set title = 'copied again'; reset session_replication_role",
		`update parts {"nr":4,"title":"copied again","note":null}`)
	finds("")
	expect("drop table store.pieces")
	finds("")
	a.check(t)
}
