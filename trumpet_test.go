package trumpet_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/trumpet-realtime/trumpet"
)

func eventIDs() *rapid.Generator[trumpet.EventID] {
	return rapid.Custom(func(t *rapid.T) trumpet.EventID {
		return trumpet.EventID{
			Position: rapid.Int64Min(0).Draw(t, "position"),
			Ordinal:  rapid.Int32Min(0).Draw(t, "ordinal"),
			Tag:      rapid.Uint32().Draw(t, "tag"),
		}
	})
}

func TestEventIDsComeBackAsTheyWent(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := eventIDs().Draw(t, "id")
		again, err := trumpet.ParseEventID(id.String())
		if err != nil || again != id {
			t.Fatalf("%v came back as %v, %v", id, again, err)
		}
	})
	if got := (trumpet.EventID{Position: 8431, Tag: 0x5f3a}).String(); got != "8431.0-00005f3a" {
		t.Errorf("got %s", got)
	}
}

func TestEventIDsAreOrderedByPlace(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOf(eventIDs()).Draw(t, "ids")
		slices.SortFunc(ids, trumpet.EventID.Compare)
		for i := 1; i < len(ids); i++ {
			a, b := ids[i-1], ids[i]
			if a.Position > b.Position || a.Position == b.Position && a.Ordinal > b.Ordinal {
				t.Fatalf("%v stands before %v", a, b)
			}
		}
	})
}

func TestParseEventIDRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "1", "1.0", "1.0-", "1.0-5f3a", "1-0.00000000", "-1.0-00000000", "+1.0-00000000", "01.0-00000000", "1.00-00000000",
		"1.0-0000000G", "1.0-0000000A", "1.0-000000000", " 1.0-00000000", "1.0-00000000\n", "9223372036854775808.0-00000000",
		"1.2147483648-00000000", strings.Repeat("1", 10000) + ".0-00000000",
	} {
		if id, err := trumpet.ParseEventID(s); err == nil {
			t.Errorf("%q was read as %v", s, id)
		} else if len(err.Error()) > 200 {
			t.Errorf("%.20q…: an error of %d bytes", s, len(err.Error()))
		}
	}
}

func FuzzParseEventID(f *testing.F) {
	f.Add("8431.0-5f3a09c1")
	f.Add("0.0-00000000")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := trumpet.ParseEventID(s); err == nil && id.String() != s {
			t.Errorf("%q was read as %v", s, id)
		}
	})
}

func TestParseTopics(t *testing.T) {
	t.Parallel()
	got, err := trumpet.ParseTopics("jobs,customers,jobs,billing.invoices,zwei-wörter")
	if want := []string{"jobs", "customers", "billing.invoices", "zwei-wörter"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	for _, list := range []string{
		"", ",", "jobs,", "a b", "a\nb", "a\x00", "jobs?status=eq.open", "a&b", "a#b", "a+b", "\xff", "a\u00a0b", "a\u202eb", strings.Repeat("x", 128),
	} {
		if got, err := trumpet.ParseTopics(list); err == nil {
			t.Errorf("%q was read as %q", list, got)
		}
	}
}

func TestEndingsHaveTheirOwnCodesInTheRangesOfTheProtocol(t *testing.T) {
	t.Parallel()
	seen := make(map[int]bool)
	for _, e := range trumpet.Endings {
		if e.Code < 4000 || e.Code > 4999 || seen[e.Code] || e.Name == "" || e.Message == "" {
			t.Errorf("%+v", e)
		}
		if e.Retry() != (e.Code < 4500) {
			t.Errorf("%s: retry is %v", e.Name, e.Retry())
		}
		seen[e.Code] = true
	}
	if errors.Is(trumpet.ErrPruned, trumpet.ErrUnknownID) {
		t.Error("the two reasons for a reset are one")
	}
}
