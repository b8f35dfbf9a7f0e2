package pgbus

import (
	"testing"

	"github.com/trumpet-realtime/trumpet"
)

// A session's notifications may come before the worker knows what the log behind that session is. They
// must not be taken for what follows the last record: after a fail-over they follow another one.
func TestNothingIsTakenBeforeTheSessionsHead(t *testing.T) {
	t.Parallel()
	sink := &appended{}
	b, err := New(Config{}, sink)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("secret")
	b.secret.Store(&secret)
	payload := sign(secret, "106\t00000001\t7\t0\t0\t1795439968546918\tbroadcast\t\t1\t\"dispatch\"\t\t\t\t1\n")
	d := newDeliverer(b)
	for _, when := range []string{"before the first session", "after a session was lost"} {
		for _, a := range []arrival{{channel: channelEvents, payload: payload}, {disconnected: true}} {
			if err := d.take(t.Context(), &a); err != nil {
				t.Fatal(err)
			}
			d.collected.flush()
		}
		if len(sink.events) > 0 {
			t.Fatalf("%s: %v was given", when, sink.events[0].ID)
		}
		d.reset(trumpet.EventID{Position: 105, Tag: 9})
	}
	// Heard by a session whose head is known, it is what follows.
	d.listening = true
	if err := d.take(t.Context(), &arrival{channel: channelEvents, payload: payload}); err != nil {
		t.Fatal(err)
	}
	d.collected.flush()
	if len(sink.events) != 1 || sink.events[0].ID != (trumpet.EventID{Position: 106, Tag: 1}) {
		t.Errorf("got %v", sink.events)
	}
}

// appended is a sink that keeps events.
type appended struct{ events []trumpet.Event }

func (a *appended) Reset(trumpet.EventID)  {}
func (a *appended) Rewind(trumpet.EventID) {}
func (a *appended) Append(events []trumpet.Event, _ trumpet.EventID) {
	a.events = append(a.events, events...)
}
func (a *appended) Live()                  {}
func (a *appended) Retain([]trumpet.Event) {}
func (a *appended) Stale()                 {}
