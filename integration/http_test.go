package integration

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

type workerStatus struct {
	Name       string `json:"name"`
	Boards     int    `json:"boards"`
	Streams    int    `json:"streams"`
	Connected  bool   `json:"connected"`
	Head       string `json:"head"`
	Sequencing bool   `json:"sequencing"`
}

type clusterStatus struct {
	Worker   workerStatus   `json:"worker"`
	Workers  []workerStatus `json:"workers"`
	Alive    int            `json:"alive"`
	Answered int            `json:"answered"`
	Boards   int            `json:"boards"`
	Streams  int            `json:"streams"`
}

func statusOf(t *testing.T, w *worker) clusterStatus {
	t.Helper()
	code, body, _ := ask(t, http.MethodGet, w.url("/api/dispatch/status"), "", "")
	var status clusterStatus
	if err := json.Unmarshal(body, &status); err != nil || code != http.StatusOK {
		t.Fatalf("status: %d %s (%v)", code, body, err)
	}
	return status
}

// ask makes one request.
func ask(t *testing.T, method, url, contentType, body string) (code int, answer []byte, header http.Header) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, answer, response.Header
}

func TestStatusCountsAllWorkers(t *testing.T) {
	t.Parallel()
	url, _ := newDatabase(t)
	workers := []*worker{startWorker(t, url, "w1"), startWorker(t, url, "w2"), startWorker(t, url, "w3")}
	var clients []*client
	for i, w := range workers {
		for range i + 1 {
			clients = append(clients, dial(t, w, dialling{transport: webSocket, path: "/ws/dispatch"}))
		}
		clients = append(clients, dial(t, w, dialling{transport: sse}))
	}
	for _, c := range clients {
		c.ready(t)
	}
	expect := func(alive, boards, streams int) clusterStatus {
		t.Helper()
		var last clusterStatus
		poll(t.Context(), t, "the right numbers", func() bool {
			last = statusOf(t, workers[0])
			return last.Alive == alive && last.Answered == alive && last.Boards == boards && last.Streams == streams
		})
		return last
	}
	status := expect(3, 6, 3)
	sequencing := 0
	for i, w := range status.Workers {
		if w.Name != workers[i].name || w.Boards != i+1 || w.Streams != 1 || !w.Connected {
			t.Errorf("worker %d: %+v", i, w)
		}
		if w.Sequencing {
			sequencing++
		}
	}
	if status.Worker.Name != "w1" || sequencing != 1 {
		t.Errorf("%+v", status)
	}
	clients[len(clients)-1].drop() // the stream of w3
	expect(3, 6, 2)
	workers[2].stop(t)
	expect(2, 3, 2)
}

// Whatever is wrong with a request is told as a problem document, with the right status.
func TestProblems(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	w := startWorker(t, url, "w1")
	const jsonType = "application/json"
	tests := []struct {
		name, method, path, contentType, body string
		code                                  int
	}{
		{"topic with a blank", "POST", "/api/topics/a%20b", jsonType, `{}`, 400},
		{"topic too long", "POST", "/api/topics/" + strings.Repeat("x", 128), jsonType, `{}`, 400},
		{"topic of a stream", "GET", "/api/stream?topics=a%20b", "", "", 400},
		{"topic of a WebSocket", "GET", "/ws?topics=,", "", "", 400},
		{"bad JSON", "POST", "/api/dispatch/broadcast", jsonType, `{"open":`, 400},
		{"two JSON values", "POST", "/api/dispatch/broadcast", jsonType, `1 2`, 400},
		{"nothing", "POST", "/api/dispatch/broadcast", jsonType, ``, 400},
		{"no UTF-8", "POST", "/api/dispatch/broadcast", jsonType, "\"\xff\"", 400},
		{"a zero byte, which Postgres does not take", "POST", "/api/dispatch/broadcast", jsonType, `"\u0000"`, 400},
		{"a form", "POST", "/api/dispatch/broadcast", "application/x-www-form-urlencoded", `a=b`, 415},
		{"no content type", "POST", "/api/dispatch/broadcast", "", `{}`, 415},
		{"too large", "POST", "/api/topics/dispatch", jsonType, `"` + strings.Repeat("x", 1<<20) + `"`, 413},
		{"unknown route", "GET", "/nowhere", "", "", 404},
		{"wrong method", "GET", "/api/dispatch/broadcast", "", "", 405},
		{"wrong method", "DELETE", "/api/dispatch/status", "", "", 405},
		{"no WebSocket handshake", "GET", "/ws", "", "", 426},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			code, body, header := ask(t, test.method, w.url(test.path), test.contentType, test.body)
			if code != test.code || header.Get("Content-Type") != "application/problem+json" {
				t.Fatalf("%d %s: %s, want %d and a problem document", code, header.Get("Content-Type"), body, test.code)
			}
			var problem struct {
				Type, Title, Detail string
				Status              int
			}
			if err := json.Unmarshal(body, &problem); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if problem.Status != test.code || problem.Title == "" || problem.Detail == "" || problem.Type == "" {
				t.Errorf("%s", body)
			}
			if code == http.StatusMethodNotAllowed && header.Get("Allow") == "" {
				t.Error("it does not say which methods are allowed")
			}
		})
	}
	if n := queryOne[int](t, conn, "select count(*)::int from trumpet.record where op = 'broadcast'"); n != 0 {
		t.Errorf("refused requests left %d records", n)
	}
}

// A broadcast by POST is committed when it is answered, and its id is that of the event.
func TestBroadcastByPost(t *testing.T) {
	t.Parallel()
	url, conn := newDatabase(t)
	w1, w2 := startWorker(t, url, "w1"), startWorker(t, url, "w2")
	c := dial(t, w2, dialling{transport: sse, topics: "dispatch,other"})
	c.ready(t)
	for i, value := range []string{`{"message": "hello"}`, `"text"`, `null`, `12345678901234567890.5`, `["ä", "€", "😀"]`} {
		path, topic := "/api/dispatch/broadcast", "dispatch"
		if i%2 == 1 {
			path, topic = "/api/topics/other", "other"
		}
		code, body, _ := ask(t, http.MethodPost, w1.url(path), "application/json; charset=utf-8", value)
		var answer struct{ ID *string }
		if err := json.Unmarshal(body, &answer); err != nil || code != http.StatusOK {
			t.Fatalf("%d %s", code, body)
		}
		if n := queryOne[int](t, conn, "select count(*)::int from trumpet.record where op = 'broadcast'"); n != i+1 {
			t.Errorf("%d records after %d answers", n, i+1)
		}
		e := c.waitData(t, value)
		if e.Op != "broadcast" || e.Topic != topic || answer.ID != nil && *answer.ID != e.ID {
			t.Errorf("answered %s, then came %s", body, e.text)
		}
	}
	c.check(t)
}
