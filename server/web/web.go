// Package web holds the pages and the browser client, and serves them from the binary:
// no build step, nothing from outside.
//
// It starts no goroutine and reads nothing at run time. The pages are plain HTML with ES
// modules; they speak to a worker only through its public routes, as anybody's page may.
package web

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

//go:embed index.html dashboard.html inspect.html client.js assets
var files embed.FS

// contentSecurityPolicy allows what the pages need and no more: no inline script or
// style, no frame around them, nothing from another origin.
const contentSecurityPolicy = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// pages are the files whose path is not their name.
var pages = map[string]string{
	"/":          "index.html",
	"/dashboard": "dashboard.html",
	"/inspect":   "inspect.html",
}

// types are spelled out because mime.TypeByExtension depends on the machine.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".svg":  "image/svg+xml",
}

// file is one thing to serve.
type file struct {
	contentType string
	etag        string
	body        string
}

// Handler serves the pages at /, /dashboard and /inspect, the client at /client.js and
// what they need under /assets/. Anything else is 404.
func Handler() http.Handler {
	served, err := load(files)
	if err != nil {
		// The files are part of the binary: only a broken build comes here.
		panic(fmt.Errorf("load embedded pages: %w", err))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			problem(w, http.StatusMethodNotAllowed)
			return
		}
		f, ok := served[r.URL.Path]
		if !ok {
			problem(w, http.StatusNotFound)
			return
		}
		h := w.Header()
		h.Set("Content-Type", f.contentType)
		h.Set("ETag", f.etag)
		// Always asked for again, nearly always answered by 304: a new binary shows at once.
		h.Set("Cache-Control", "no-cache")
		h.Set("Content-Security-Policy", contentSecurityPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		// The zero time leaves out Last-Modified: embedded files have no date.
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(f.body))
	})
}

// load reads every file once, by the path it is served at.
func load(from fs.FS) (map[string]file, error) {
	byName := make(map[string]file)
	err := fs.WalkDir(from, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		contentType, ok := types[path.Ext(name)]
		if !ok {
			return fmt.Errorf("serve %s: no content type for %q", name, path.Ext(name))
		}
		body, err := fs.ReadFile(from, name)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		sum := sha256.Sum256(body)
		byName[name] = file{contentType, strconv.Quote(hex.EncodeToString(sum[:12])), string(body)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	served := make(map[string]file, len(byName))
	for name, f := range byName {
		if path.Ext(name) != ".html" {
			served["/"+name] = f
		}
	}
	for at, name := range pages {
		f, ok := byName[name]
		if !ok {
			return nil, fmt.Errorf("serve %s: %s: %w", at, name, fs.ErrNotExist)
		}
		served[at] = f
	}
	return served, nil
}

// problem answers with an RFC 9457 document.
func problem(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"title":%q,"status":%d}`+"\n", http.StatusText(status), status)
}
