package server

import (
	"net/http"

	"github.com/julienschmidt/httprouter"

	"github.com/trumpet-realtime/trumpet/server/web"
)

// Topics that a client gets which names none.
var (
	dispatchTopics = []string{"jobs", "customers", "dispatch"}
	streamTopics   = []string{"jobs", "customers", "stats"}
)

func (s *Server) routes() http.Handler {
	router := httprouter.New()
	router.GET("/ws", s.websocket(nil))
	router.GET("/ws/dispatch", s.websocket(dispatchTopics))
	router.GET("/api/stream", s.stream)
	router.POST("/api/dispatch/broadcast", s.broadcast)
	router.POST("/api/topics/:topic", s.publish)
	router.GET("/api/dispatch/status", s.status)
	router.GET("/healthz", s.healthz)
	router.GET("/readyz", s.readyz)
	router.Handler(http.MethodGet, "/metrics", s.metrics())

	pages := web.Handler()
	for _, path := range []string{"/", "/dashboard", "/inspect", "/client.js", "/assets/*file"} {
		router.Handler(http.MethodGet, path, pages)
		router.Handler(http.MethodHead, path, pages)
	}
	if s.config.Mount != nil {
		s.config.Mount(router)
	}

	router.NotFound = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, http.StatusNotFound, "there is nothing at this path; docs/protocol.md lists all there is")
	})
	router.MethodNotAllowed = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, http.StatusMethodNotAllowed, "this path takes "+w.Header().Get("Allow"))
	})
	router.GlobalOPTIONS = http.HandlerFunc(s.preflight)
	router.PanicHandler = func(w http.ResponseWriter, r *http.Request, reason any) {
		if reason == http.ErrAbortHandler {
			panic(reason)
		}
		s.config.Logger.Error("panic in a handler", "path", r.URL.Path, "reason", reason)
		writeProblem(w, http.StatusInternalServerError, "this worker failed at this request")
	}
	return closeUnclear(router)
}

// closeUnclear closes the connection after a request whose end a proxy may see elsewhere, or what follows it
// there would be taken for a request of its own. net/http does not tell whether a chunked request
// had a Content-Length too (RFC 9112, section 6.3), nor whether one of HTTP/1.0 said that it is chunked.
func closeUnclear(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1) {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request, _ httprouter.Params) {
	writeJSON(w, map[string]string{"status": "ok"})
}

// readyz says whether new clients should come here.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request, _ httprouter.Params) {
	switch {
	case s.draining.Load():
		writeProblem(w, http.StatusServiceUnavailable, "this worker is shutting down")
	case !s.config.Cluster.Status().Connected:
		writeProblem(w, http.StatusServiceUnavailable, "this worker does not hear Postgres at the moment; its log says why")
	default:
		writeJSON(w, map[string]string{"status": "ready"})
	}
}

// preflight answers a browser that asks whether a page of another origin may post.
func (s *Server) preflight(w http.ResponseWriter, r *http.Request) {
	if origin := r.Header.Get("Origin"); s.allowsOrigin(origin) {
		s.allowOrigin(w.Header(), origin)
		h := w.Header()
		h.Set("Access-Control-Allow-Methods", h.Get("Allow"))
		h.Set("Access-Control-Allow-Headers", "Content-Type, Last-Event-ID")
		h.Set("Access-Control-Max-Age", "600")
	}
	w.WriteHeader(http.StatusNoContent)
}
