package demo

import (
	"encoding/json"
	"mime"
	"net/http"
)

// Worker is where a worker's pages are.
type Worker struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

type simulatorState struct {
	Paused bool `json:"paused"`
}

// State serves what the board's tools need to know of the demo; worker is the one it is mounted
// on. Rows and numbers come over the pages' own connections.
func (a *App) State(worker string, workers []Worker) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, struct {
			Simulator simulatorState `json:"simulator"`
			Worker    string         `json:"worker"`
			Workers   []Worker       `json:"workers"`
		}{simulatorState{a.isPaused()}, worker, workers})
	})
}

// Simulator serves POST {"paused": true|false}.
func (a *App) Simulator() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A page of another origin can send this type only with the browser's leave.
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			http.Error(w, "send application/json", http.StatusUnsupportedMediaType)
			return
		}
		var wanted struct {
			Paused *bool `json:"paused"`
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&wanted); err != nil || wanted.Paused == nil {
			http.Error(w, `send {"paused": true} or {"paused": false}`, http.StatusBadRequest)
			return
		}
		a.setPaused(*wanted.Paused)
		writeJSON(w, simulatorState{*wanted.Paused})
	})
}

func writeJSON(w http.ResponseWriter, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err) // plain structs, and JSON that Postgres made
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body) // a client that has gone needs no answer
}

func (a *App) isPaused() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.paused
}

func (a *App) setPaused(paused bool) {
	a.mu.Lock()
	a.paused = paused
	a.mu.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}
