package main

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// pollers are dashboards that ask: each sends its queries every so often, through the small pool of
// connections that a web application has. Who still waits for an answer does not ask again.
type pollers struct {
	pool     *pgxpool.Pool
	interval time.Duration
	queries  []string // the first returns how many changes it has seen

	mu       sync.Mutex
	arrivals [][]arrival // by client
	took     []time.Duration
	err      error
	end      context.CancelFunc
	done     sync.WaitGroup
}

func (b *bench) poll(ctx context.Context, database string, clients, connections int, interval time.Duration, queries ...string) (*pollers, error) {
	config, err := pgxpool.ParseConfig(b.server.URL(database))
	if err != nil {
		return nil, err
	}
	config.MaxConns, config.MinConns = int32(connections), int32(connections) //nolint:gosec // small
	config.ConnConfig.RuntimeParams["application_name"] = "dashboards"
	p := &pollers{interval: interval, queries: queries, arrivals: make([][]arrival, clients)}
	if p.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	ctx, p.end = context.WithCancel(ctx)
	for i := range clients {
		p.done.Go(func() {
			// Spread evenly, as those of people are who opened their pages at different times.
			if sleep(ctx, interval*time.Duration(i)/time.Duration(clients)) != nil {
				return
			}
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for p.ask(ctx, i) == nil {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return p, nil
}

func (p *pollers) ask(ctx context.Context, client int) error {
	begun := time.Now()
	var seen int64
	for i, query := range p.queries {
		var n int64
		var sum any
		err := p.pool.QueryRow(ctx, query).Scan(&n, &sum)
		if err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			if ctx.Err() == nil {
				p.err = err
			}
			return err
		}
		if i == 0 {
			seen = n
		}
	}
	at := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.arrivals[client] = append(p.arrivals[client], arrival{seen, at})
	p.took = append(p.took, at.Sub(begun))
	return nil
}

// reset lets what came so far not count.
func (p *pollers) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.arrivals {
		p.arrivals[i] = nil
	}
	p.took = nil
}

func (p *pollers) stop() error {
	p.end()
	p.done.Wait()
	p.pool.Close()
	return p.err
}

// delays is as crowd's; places are how many changes there were before the first.
func (p *pollers) delays(commits []commit, before int64) []time.Duration {
	moved := make([]commit, len(commits))
	for i, c := range commits {
		moved[i] = commit{before + c.place, c.at}
	}
	var all []time.Duration
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range p.arrivals {
		all = append(all, delays(moved, list)...)
	}
	return all
}
