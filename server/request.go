package server

import (
	"net/http"

	"github.com/trumpet-realtime/trumpet"
	"github.com/trumpet-realtime/trumpet/server/hub"
	"github.com/trumpet-realtime/trumpet/server/wire"
)

// client reads from a request what the client wants to follow, and from where on. If that
// is not possible it has answered the request.
func client(w http.ResponseWriter, r *http.Request, format wire.Format, topics []string) (hub.Client, bool) {
	c := hub.Client{Format: format, Topics: topics}
	query := r.URL.Query()
	if query.Has("topics") {
		var err error
		c.Topics, err = trumpet.ParseTopics(query.Get("topics"))
		if err != nil {
			writeProblem(w, http.StatusBadRequest, err.Error()+"; give names separated by commas, as in ?topics=jobs,customers")
			return c, false
		}
		if len(c.Topics) > wire.MaxTopics {
			writeProblem(w, http.StatusBadRequest, "too many topics; open several connections")
			return c, false
		}
	}
	since := query.Get("since")
	if last := r.Header.Get("Last-Event-ID"); format == wire.SSE && last != "" {
		// An EventSource comes back to the URL it was made with, which may hold an older id.
		since = last
	}
	if since == "" {
		return c, true
	}
	id, err := trumpet.ParseEventID(since)
	if err != nil {
		// Not an error: the client must be told to fetch its state anew, in a way that page
		// code can see.
		c.Refused = wire.ReasonInvalid
		return c, true
	}
	c.Resume, c.Since = true, id
	return c, true
}
