package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
)

// Worker is where a worker's pages are.
type Worker struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

type simulatorState struct {
	Paused bool `json:"paused"`
}

// stateTimeout bounds a request for the state.
const stateTimeout = 5 * time.Second

// State serves the tables' rows, as the pages need them to begin with; worker is the one it
// is mounted on.
func (a *App) State(worker string, workers []Worker) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), stateTimeout)
		defer cancel()
		jobs, customers, err := a.rows(ctx)
		if err != nil {
			a.log.Warn("cannot read the demo's state", "error", err)
			http.Error(w, "the demo's tables could not be read", http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, struct {
			Jobs      json.RawMessage `json:"jobs"`
			Customers json.RawMessage `json:"customers"`
			Simulator simulatorState  `json:"simulator"`
			Worker    string          `json:"worker"`
			Workers   []Worker        `json:"workers"`
		}{jobs, customers, simulatorState{a.isPaused()}, worker, workers})
	})
}

// rows reads both tables as of one moment, in the form that events have.
func (a *App) rows(ctx context.Context) (jobs, customers json.RawMessage, err error) {
	err = pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local timezone = 'UTC'"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `select
			(select coalesce(json_agg(j order by j.id), '[]') from jobs j),
			(select coalesce(json_agg(c order by c.id), '[]') from customers c)`).Scan(&jobs, &customers)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read rows: %w", err)
	}
	return jobs, customers, nil
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
