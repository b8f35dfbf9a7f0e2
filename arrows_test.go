package trumpet_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The rooms and the arrows between them: what a package may import of this module, directly or not.
// Beside that, only the bus and the schema speak to Postgres, and only the server speaks HTTP.
func TestArrows(t *testing.T) {
	t.Parallel()
	const module = "github.com/trumpet-realtime/trumpet"
	for room, allowed := range map[string]struct {
		rooms     []string
		forbidden []string
	}{
		"":               {nil, []string{"net/http", "github.com/", "golang.org/"}},
		"/sql":           {nil, []string{"net/http"}},
		"/pgbus":         {[]string{"", "/sql", "/pgbus/live", "/pgbus/wal"}, []string{"net/http", "github.com/coder/", "github.com/julienschmidt/"}},
		"/pgbus/live":    {[]string{""}, []string{"net/http"}},
		"/pgbus/wal":     {nil, []string{"net/http"}},
		"/server/wire":   {[]string{""}, []string{"net", "github.com/jackc/"}},
		"/server/hub":    {[]string{"", "/server/wire"}, []string{"net/http", "github.com/jackc/"}},
		"/server/socket": {nil, []string{"github.com/jackc/"}},
		"/server/web":    {nil, []string{"github.com/"}},
		"/server":        {[]string{"", "/server/hub", "/server/wire", "/server/socket", "/server/web"}, []string{"github.com/jackc/"}},
	} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+room).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", room, err)
		}
		for _, dependency := range strings.Fields(string(out)) {
			if other, ours := strings.CutPrefix(dependency, module); ours {
				if other != room && !slices.Contains(allowed.rooms, other) {
					t.Errorf("%s imports %s", module+room, dependency)
				}
				continue
			}
			for _, forbidden := range allowed.forbidden {
				if dependency == forbidden || strings.HasSuffix(forbidden, "/") && strings.HasPrefix(dependency, forbidden) {
					t.Errorf("%s imports %s", module+room, dependency)
				}
			}
		}
	}
}
