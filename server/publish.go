package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/julienschmidt/httprouter"

	"github.com/trumpet-realtime/trumpet"
)

const (
	maxBody        = 1 << 20
	publishTimeout = 10 * time.Second
)

func (s *Server) broadcast(w http.ResponseWriter, r *http.Request, _ httprouter.Params) {
	s.publishTo(w, r, "dispatch")
}

func (s *Server) publish(w http.ResponseWriter, r *http.Request, params httprouter.Params) {
	s.publishTo(w, r, params.ByName("topic"))
}

// publishTo commits one broadcast. 200 means that it is in Postgres.
func (s *Server) publishTo(w http.ResponseWriter, r *http.Request, topic string) {
	if !s.checkWriter(w, r) {
		return
	}
	if err := trumpet.ValidTopic(topic); err != nil {
		writeProblem(w, http.StatusBadRequest, err.Error())
		return
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		writeProblem(w, http.StatusUnsupportedMediaType, "send any JSON value, with the header Content-Type: application/json")
		return
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			writeProblem(w, http.StatusRequestEntityTooLarge, "a broadcast has at most 1 MiB; send a reference to what is larger")
			return
		}
		writeProblem(w, http.StatusBadRequest, "the body could not be read")
		return
	}
	data = bytes.TrimSpace(data)
	if !json.Valid(data) || !utf8.Valid(data) {
		writeProblem(w, http.StatusBadRequest, "the body is not one JSON value in UTF-8")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), publishTimeout)
	defer cancel()
	id, err := s.config.Publisher.Publish(ctx, topic, data)
	if err != nil {
		s.refusePublish(w, topic, err)
		return
	}
	var answer struct {
		ID *string `json:"id"`
	}
	if !id.IsZero() {
		text := id.String()
		answer.ID = &text
	}
	writeJSON(w, answer)
}

func (s *Server) refusePublish(w http.ResponseWriter, topic string, err error) {
	// Class 22 of SQLSTATE: the database cannot hold this value, such as a string with \u0000.
	var state interface{ SQLState() string }
	if errors.As(err, &state) && strings.HasPrefix(state.SQLState(), "22") {
		writeProblem(w, http.StatusBadRequest, "Postgres cannot hold this JSON value; it takes no \\u0000 and no half of a surrogate pair")
		return
	}
	s.config.Logger.Warn("cannot publish", "topic", topic, "error", err)
	w.Header().Set("Retry-After", "2")
	writeProblem(w, http.StatusServiceUnavailable, "Postgres did not confirm the broadcast; it may or may not be committed, so repeat it only if doing it twice does no harm")
}
