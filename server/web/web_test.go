package web

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, method, target string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		t.Fatalf("read body: %v", err)
	}
	return b.String()
}

func TestHandlerServesEveryFile(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"/":                    "text/html; charset=utf-8",
		"/dashboard":           "text/html; charset=utf-8",
		"/inspect":             "text/html; charset=utf-8",
		"/client.js":           "text/javascript; charset=utf-8",
		"/assets/page.js":      "text/javascript; charset=utf-8",
		"/assets/lanes.js":     "text/javascript; charset=utf-8",
		"/assets/board.js":     "text/javascript; charset=utf-8",
		"/assets/chart.js":     "text/javascript; charset=utf-8",
		"/assets/filter.js":    "text/javascript; charset=utf-8",
		"/assets/dashboard.js": "text/javascript; charset=utf-8",
		"/assets/inspect.js":   "text/javascript; charset=utf-8",
		"/assets/theme.js":     "text/javascript; charset=utf-8",
		"/assets/style.css":    "text/css; charset=utf-8",
		"/assets/mark.svg":     "image/svg+xml",
	} {
		res := get(t, http.MethodGet, target)
		if res.StatusCode != http.StatusOK {
			t.Errorf("GET %s: status %d, want 200", target, res.StatusCode)
			continue
		}
		if len(body(t, res)) == 0 {
			t.Errorf("GET %s: no body", target)
		}
		for name, want := range map[string]string{
			"Content-Type":            want,
			"Cache-Control":           "no-cache",
			"Content-Security-Policy": contentSecurityPolicy,
			"X-Content-Type-Options":  "nosniff",
			"Referrer-Policy":         "no-referrer",
			"Last-Modified":           "",
		} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("GET %s: %s is %q, want %q", target, name, got, want)
			}
		}
	}
}

func TestHandlerKnowsUnchangedFiles(t *testing.T) {
	t.Parallel()
	first := get(t, http.MethodGet, "/client.js")
	tag := first.Header.Get("ETag")
	if !regexp.MustCompile(`^"[0-9a-f]{24}"$`).MatchString(tag) {
		t.Fatalf("ETag %q is not a strong hash", tag)
	}
	if other := get(t, http.MethodGet, "/").Header.Get("ETag"); other == tag {
		t.Errorf("two files share the ETag %s", tag)
	}
	again := get(t, http.MethodGet, "/client.js", "If-None-Match", tag)
	if again.StatusCode != http.StatusNotModified || body(t, again) != "" {
		t.Errorf("with its own ETag: status %d, want 304 and no body", again.StatusCode)
	}
	if stale := get(t, http.MethodGet, "/client.js", "If-None-Match", `"old"`); stale.StatusCode != http.StatusOK {
		t.Errorf("with another ETag: status %d, want 200", stale.StatusCode)
	}
	head := get(t, http.MethodHead, "/client.js")
	if head.StatusCode != http.StatusOK || head.Header.Get("ETag") != tag || body(t, head) != "" {
		t.Errorf("HEAD: status %d, ETag %s", head.StatusCode, head.Header.Get("ETag"))
	}
}

func TestHandlerRefusesTheRest(t *testing.T) {
	t.Parallel()
	for _, target := range []string{
		"/index.html", "/dashboard/", "/assets", "/assets/", "/assets/../web.go", "/web.go", "/assets/nothing.js", "//", "/client.js/",
	} {
		res := get(t, http.MethodGet, target)
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: status %d, want 404", target, res.StatusCode)
		}
		if got := res.Header.Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("GET %s: Content-Type is %q", target, got)
		}
	}
	res := get(t, http.MethodPost, "/")
	if res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST /: status %d, Allow %q", res.StatusCode, res.Header.Get("Allow"))
	}
}

// The client is small enough to put into any page without a thought.
func TestClientIsSmall(t *testing.T) {
	t.Parallel()
	source, err := files.ReadFile("client.js")
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(source); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	const limit = 5500
	if packed.Len() > limit {
		t.Errorf("client.js takes %d bytes gzipped, the limit is %d", packed.Len(), limit)
	}
	if bytes.Contains(source, []byte("import ")) {
		t.Error("client.js imports something")
	}
}

// What the pages name is there, and nothing in them breaks the content security policy
// or takes markup out of a payload.
func TestPagesStayWithinTheirPolicy(t *testing.T) {
	t.Parallel()
	served, err := load(files)
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`(?:src|href|from) ?=? ?["']([^"'#]+)["']`)
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|https?://[a-z]|setAttribute\('style'`)
	inline := regexp.MustCompile(`(?i)<style|\sstyle=|\son[a-z]+=|<script>|javascript:`)
	for at, f := range served {
		for _, m := range link.FindAllStringSubmatch(f.body, -1) {
			target := m[1]
			if strings.HasPrefix(target, ".") {
				target = path.Join(path.Dir(at), target)
			}
			if _, ok := served[target]; !ok {
				t.Errorf("%s names %s, which is not served", at, m[1])
			}
		}
		if path.Ext(at) != ".svg" {
			if m := forbidden.FindString(strings.ReplaceAll(f.body, "http://www.w3.org/", "")); m != "" {
				t.Errorf("%s contains %q", at, m)
			}
		}
		if strings.HasPrefix(f.contentType, "text/html") {
			if m := inline.FindString(f.body); m != "" {
				t.Errorf("%s contains inline %q", at, m)
			}
		}
	}
}
