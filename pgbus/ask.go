package pgbus

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Questions and answers between workers are signed notifications on channelWorkers: nothing
// is written, and nothing is sent unless somebody asks.

const (
	// echoPrefix begins the notification with which a session proves that it hears.
	echoPrefix = "echo "
	// askTimeout bounds how long Ask waits for workers that Postgres shows as connected.
	askTimeout = time.Second
	// maxAnswerBytes keeps an answer within one notification.
	maxAnswerBytes = 4096
	// maxQuestions bounds the questions waiting for this worker's answer; further ones are not
	// answered, and the asker counts this worker as silent.
	maxQuestions = 16
	// maxAnswered is how many questions are remembered, so that one that is sent again is not answered again.
	maxAnswered = 256
)

// message is a question (Answer nil) or an answer.
type message struct {
	Question string          `json:"question"`
	Worker   string          `json:"worker"`
	Sender   string          `json:"sender"` // one run of one bus, because names may be equal, and any role can send again what it heard
	Answer   json.RawMessage `json:"answer,omitempty"`
}

type answers struct {
	bus       *Bus
	sender    string
	questions chan string
	answered  []string // the newest questions, which are answered once; the listener's

	mu      sync.Mutex
	waiting map[string]chan message
}

func newAnswers(b *Bus) *answers {
	return &answers{bus: b, sender: rand.Text(), questions: make(chan string, maxQuestions), waiting: make(map[string]chan message)}
}

// heard takes one notification of channelWorkers. It never waits.
func (a *answers) heard(payload string) {
	body, err := verify(*a.bus.secret.Load(), payload)
	var m message
	if err != nil || json.Unmarshal([]byte(body), &m) != nil {
		a.bus.status.forged.Add(1)
		return
	}
	if m.Answer == nil {
		if a.bus.config.Answer == nil || slices.Contains(a.answered, m.Question) {
			return
		}
		select {
		case a.questions <- m.Question:
			a.answered = append(a.answered[max(0, len(a.answered)-maxAnswered+1):], m.Question)
		default:
		}
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if waiter, ok := a.waiting[m.Question]; ok {
		select {
		case waiter <- m:
		default: // more answers than any cluster has workers
		}
	}
}

// run answers questions until ctx ends.
func (a *answers) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case question := <-a.questions:
			if err := a.reply(ctx, question); err != nil && ctx.Err() == nil {
				a.bus.log.Warn("cannot answer another worker", "error", err)
			}
		}
	}
}

func (a *answers) reply(ctx context.Context, question string) error {
	answer := a.bus.config.Answer()
	if len(answer) > maxAnswerBytes {
		return fmt.Errorf("the answer has %d bytes, at most %d fit", len(answer), maxAnswerBytes)
	}
	return a.send(ctx, message{Question: question, Worker: a.bus.config.Worker, Sender: a.sender, Answer: answer})
}

func (a *answers) send(ctx context.Context, m message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	secret := a.bus.secret.Load()
	if secret == nil {
		return errNotRunning
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := a.bus.acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, "select pg_notify($1, $2)", channelWorkers, sign(*secret, string(body))); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return nil
}

// Ask asks every worker, this one too, and returns their answers in the order of their coming.
// alive is how many workers Postgres shows as listening; it is larger than the number of
// answers where one did not answer within a second.
func (b *Bus) Ask(ctx context.Context) (collected []json.RawMessage, alive int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	conn, err := b.acquire(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("ask: %w", err)
	}
	err = conn.QueryRow(ctx, `select count(*) from pg_stat_activity
		where datname = current_database() and application_name like 'trumpet ' || $1 || ' %'`, roleWorker).Scan(&alive)
	conn.Release()
	if err != nil {
		return nil, 0, fmt.Errorf("ask: %w", err)
	}

	question := rand.Text()
	answers := make(chan message, 4*max(alive, 1)+64)
	b.answers.mu.Lock()
	b.answers.waiting[question] = answers
	b.answers.mu.Unlock()
	defer func() {
		b.answers.mu.Lock()
		delete(b.answers.waiting, question)
		b.answers.mu.Unlock()
	}()
	if err := b.answers.send(ctx, message{Question: question, Worker: b.config.Worker}); err != nil {
		return nil, alive, fmt.Errorf("ask: %w", err)
	}
	timer := time.NewTimer(askTimeout)
	defer timer.Stop()
	heard := make(map[string]bool)
	for len(collected) < alive {
		select {
		case m := <-answers:
			if !heard[m.Sender] {
				heard[m.Sender] = true
				collected = append(collected, m.Answer)
			}
		case <-timer.C:
			return collected, alive, nil
		case <-ctx.Done():
			return collected, alive, ctx.Err()
		}
	}
	return collected, alive, nil
}
