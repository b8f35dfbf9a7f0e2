package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// allowsOrigin reports whether an origin is one of Config.AllowedOrigins.
func (s *Server) allowsOrigin(origin string) bool {
	return slices.ContainsFunc(s.config.AllowedOrigins, func(allowed string) bool { return strings.EqualFold(allowed, origin) })
}

// allowOrigin lets a page of an allowed origin read the answer.
func (s *Server) allowOrigin(h http.Header, origin string) {
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Allow-Credentials", "true")
	h.Add("Vary", "Origin")
}

// checkReader lets through who may open a WebSocket or a stream: programs, the server's
// own pages, and pages of allowed origins. A browser sends a user's cookies along with
// what any page in it opens, and for WebSockets asks nobody's leave.
func (s *Server) checkReader(w http.ResponseWriter, r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	if s.allowsOrigin(origin) {
		s.allowOrigin(w.Header(), origin)
		return true
	}
	// Set by the browser alone; it holds also where a proxy changed the Host.
	if r.Header.Get("Sec-Fetch-Site") == "same-origin" {
		return true
	}
	if u, err := url.Parse(origin); err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) {
		return true
	}
	writeProblem(w, http.StatusForbidden, "pages of this origin may not connect: allow the origin, or let the proxy in front pass the Host header on")
	return false
}

// checkWriter lets through who may publish.
func (s *Server) checkWriter(w http.ResponseWriter, r *http.Request) bool {
	if origin := r.Header.Get("Origin"); s.allowsOrigin(origin) {
		s.allowOrigin(w.Header(), origin)
	}
	if err := s.posts.Check(r); err != nil {
		writeProblem(w, http.StatusForbidden, "pages of this origin may not publish: allow the origin, or let the proxy in front pass the Host header on")
		return false
	}
	return true
}
