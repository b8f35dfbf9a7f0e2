package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// returning is a client that comes back each time its connection ends. Its messages are those of all
// its connections.
type returning struct {
	*client
	dialling trumpettest.Dialling
	rng      *rand.Rand
	visits   []visit // under the client's lock until it has ended
}

// visit is one connection.
type visit struct {
	failures int // before it
	opened   time.Time
	ready    time.Time
	ended    time.Time
	farewell bool   // the worker said that it is draining
	retry    string // SSE: the last retry field
}

// openReturning connects to an address, host:port, until the test ends.
func openReturning(t *testing.T, address string, kind transport, topics string, seed uint64) *returning {
	t.Helper()
	b := &returning{
		client:   &client{name: fmt.Sprintf("%s %d", kind, seed%1000), changed: make(chan struct{}), ended: make(chan struct{})},
		dialling: trumpettest.Dialling{Transport: kind, Topics: topics},
		rng:      rand.New(rand.NewPCG(seed, 0)),
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	b.end = cancel
	go func() {
		defer close(b.ended)
		b.run(ctx, address)
	}()
	t.Cleanup(b.drop)
	return b
}

// run connects again and again, after pauses as those of client.js.
func (b *returning) run(ctx context.Context, address string) {
	const base, ceiling, opening = 500 * time.Millisecond, 15 * time.Second, 15 * time.Second
	failures := 0
	for ctx.Err() == nil {
		d := b.dialling
		if since := b.lastID(); since != "" {
			d.Since = since
			if d.Transport == trumpettest.SSE {
				d.Since, d.LastEventID = "", since
			}
		}
		dialing, dialed := context.WithTimeout(ctx, opening)
		s, err := trumpettest.Dial(dialing, address, d)
		dialed()
		if err == nil {
			b.change(func() { b.visits = append(b.visits, visit{failures: failures, opened: time.Now()}) })
			failures = 0
			b.stay(ctx, s)
		} else if ctx.Err() == nil {
			b.change(func() { b.err = err })
		}
		pause := time.NewTimer(time.Duration(b.rng.Int64N(int64(min(ceiling, base<<failures)))))
		failures++
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
		if err == nil {
			failures = 0
		}
	}
}

// stay reads until the connection ends.
func (b *returning) stay(ctx context.Context, s *trumpettest.Subscriber) {
	defer s.Cut()
	for {
		frame, err := s.Next(ctx)
		if err != nil {
			b.change(func() {
				v := &b.visits[len(b.visits)-1]
				v.ended, v.retry, b.err = time.Now(), s.Retry, err
				v.farewell = v.farewell || strings.Contains(err.Error(), "StatusCode(4001)")
				b.broken = append(b.broken, s.Broken...)
			})
			return
		}
		m, err := frame.Decode()
		b.change(func() {
			v := &b.visits[len(b.visits)-1]
			switch {
			case err != nil:
				b.broken = append(b.broken, err.Error())
			case m.Type == "ready":
				if v.ready.IsZero() {
					v.ready = time.Now()
				}
				if len(b.visits) > 1 && !m.Resumed {
					b.broken = append(b.broken, frame.Text)
				}
			case m.Type == "error" && m.Code == "draining" && m.Retry != nil && *m.Retry:
				v.farewell = true
			case m.Type == "reset" || m.Type == "error":
				b.broken = append(b.broken, frame.Text)
			}
			b.messages = append(b.messages, message{m, frame.Text, frame.Name, frame.ID})
		})
	}
}

// begin is where the client's first connection began.
func (b *returning) begin() string {
	for _, m := range b.messages {
		if m.Type == "ready" {
			return m.ID
		}
	}
	return ""
}

// allLive waits until all clients are connected and up to date.
func allLive(t *testing.T, clients []*returning) {
	t.Helper()
	for _, b := range clients {
		b.wait(t, "a connection that is live", func() bool {
			if len(b.visits) == 0 {
				return false
			}
			v := b.visits[len(b.visits)-1]
			return !v.ready.IsZero() && v.ended.IsZero()
		})
	}
}

// posting broadcasts over HTTP all the time.
type posting struct {
	stop  func()
	mu    sync.Mutex
	posts []sent
}

type sent struct {
	n    int
	id   string // as the answer has it
	code int
	err  error
	at   time.Time // it was answered
}

// startPosting begins to broadcast every 50 ms, without waiting for the answer to the one before.
func startPosting(t *testing.T, address string) *posting {
	t.Helper()
	p := &posting{}
	stopping, stop := context.WithCancel(t.Context())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*patience)
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-stopping.Done():
				return
			case <-tick.C:
				group.Go(func() { p.post(ctx, address, n) })
			}
		}
	})
	p.stop = func() {
		stop()
		group.Wait()
		cancel()
	}
	t.Cleanup(p.stop)
	return p
}

func (p *posting) post(ctx context.Context, address string, n int) {
	s := sent{n: n}
	defer func() {
		s.at = time.Now()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.posts = append(p.posts, s)
	}()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address+"/api/dispatch/broadcast", strings.NewReader(fmt.Sprintf(`{"post": %d}`, n)))
	if err != nil {
		s.err = err
		return
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.err = err
		return
	}
	defer response.Body.Close()
	s.code = response.StatusCode
	body, err := io.ReadAll(response.Body)
	if err != nil || s.code != http.StatusOK {
		s.err = err
		return
	}
	var answer struct{ ID string }
	s.err = json.Unmarshal(body, &answer)
	s.id = answer.ID
}

// check fails unless each broadcast was acknowledged and came exactly once, or failed while a worker
// was down, in a way that says that it may be repeated, and came at most once.
func (p *posting) check(t *testing.T, faults []fault, events []message) {
	t.Helper()
	came := map[string][]string{}
	for _, e := range events {
		came[string(e.Data)] = append(came[string(e.Data)], e.ID)
	}
	acknowledged, failed, committed := 0, map[string]int{}, 0
	for _, s := range p.posts {
		ids := came[fmt.Sprintf(`{"post": %d}`, s.n)]
		if s.err == nil && s.code == http.StatusOK {
			acknowledged++
			if len(ids) != 1 || s.id != "" && ids[0] != s.id {
				t.Errorf("broadcast %d was acknowledged as %q and came as %v", s.n, s.id, ids)
			}
			continue
		}
		at := slices.IndexFunc(faults, func(f fault) bool { return f.during(s.at) })
		retryable := s.err == nil && (s.code == http.StatusBadGateway || s.code == http.StatusServiceUnavailable || s.code == http.StatusGatewayTimeout)
		if at < 0 || !retryable || len(ids) > 1 {
			t.Errorf("broadcast %d was answered with %d (%v), while a worker was down: %v, and came as %v", s.n, s.code, s.err, at >= 0, ids)
			continue
		}
		failed[fmt.Sprintf("%d at the %s", s.code, faults[at].what)]++
		committed += len(ids)
	}
	t.Logf("%d broadcasts were acknowledged; failed: %v, of these %d came", acknowledged, failed, committed)
	if acknowledged == 0 {
		t.Error("no broadcast was acknowledged")
	}
}
