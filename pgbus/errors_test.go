package pgbus_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/pgbus"
	"github.com/trumpet-realtime/trumpet/sql"
)

func isUnknown(err error) bool { return errors.Is(err, trumpet.ErrUnknownID) }
func isPruned(err error) bool  { return errors.Is(err, trumpet.ErrPruned) }

func TestRunRefusesWhatTryingAgainCannotMend(t *testing.T) {
	t.Parallel()
	empty := pgtest.New(t)
	noDatabase, err := url.Parse(empty)
	if err != nil {
		t.Fatal(err)
	}
	noDatabase.Path = "/nothing_here"
	wrongPassword := *noDatabase
	wrongPassword.User = url.UserPassword("postgres", "guessed")
	for name, test := range map[string]struct{ url, want string }{
		"no schema":      {empty, "trumpet migrate up"},
		"no database":    {noDatabase.String(), "does not exist"},
		"wrong password": {wrongPassword.String(), "password authentication failed"},
	} {
		bus, err := pgbus.New(pgbus.Config{ConnString: test.url, Logger: testLog(t)}, newRecorder())
		if err != nil {
			t.Fatal(err)
		}
		err = bus.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "no schema" && !errors.Is(err, sql.ErrSchema) {
			t.Errorf("%s: %v is not ErrSchema", name, err)
		}
	}
}

func TestNewRefusesBadConfiguration(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]pgbus.Config{
		"a URL that is none":         {ConnString: "postgres://%zz"},
		"an own channel":             {Channels: []string{"trumpet_wake"}},
		"a channel that no topic is": {Channels: []string{"a,b"}},
		"a channel of 64 bytes":      {Channels: []string{strings.Repeat("x", 64)}},
		"a hasty heartbeat":          {Heartbeat: time.Millisecond},
		"a short retention":          {Retention: time.Second},
		"a small retention":          {RetentionBytes: 1},
	} {
		if _, err := pgbus.New(config, newRecorder()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
