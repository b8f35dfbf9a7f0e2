package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/pgtest"
	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

// crowdVariable makes the crowd larger than scripts/test has time for, such as 5000.
const crowdVariable = "TRUMPET_TEST_CROWD"

// Among many clients some stop reading, or read a byte a second, while events go on. The others do not
// feel it; the slow ones are ended as slow, and miss nothing when they come back.
//
// What the others' latencies are is reported and not asserted: the machine has other work.
func TestSlowClientsAmongMany(t *testing.T) {
	t.Parallel()
	size := 500
	if given := os.Getenv(crowdVariable); given != "" {
		var err error
		if size, err = strconv.Atoi(given); err != nil {
			t.Fatalf("%s: %v", crowdVariable, err)
		}
	}
	const topics = "dispatch,large"
	url, conn := newDatabase(t)
	w := startWorker(t, url, "w1")
	crowd := joinCrowd(t, w, size)
	rss := memoryOf(t, w)
	stop := beat(t, url, 5)

	// More than the kernel keeps for a slow client; the crowd does not follow this topic, but it is
	// work for the worker, and so it comes without slow clients first.
	large := strings.Repeat("x", 500<<10)
	flood := func() {
		for n := range 16 {
			pgtest.Exec(t, conn, "select trumpet.broadcast('large', jsonb_build_object('n', $1::int, 'x', $2::text))", n, large)
		}
	}
	flood()
	crowd.waitBeats(t, 25)
	split := time.Now()

	var slow []*slowClient
	for _, kind := range transports {
		for _, sips := range []bool{false, true} {
			slow = append(slow, dialSlow(t, w, kind, topics, sips))
		}
	}
	flood()
	var most int64
	began := time.Now()
	poll(t.Context(), t, "the slow clients to be ended", func() bool {
		most = max(most, memoryOf(t, w))
		return metricsOf(t, w)[`trumpet_endings_total{ending="slow"}`] >= float64(len(slow)) || time.Since(began) > placeWithin+patience
	})
	keep(t, "the slow clients were ended", began, placeWithin)
	if n := metricsOf(t, w)[`trumpet_endings_total{ending="slow"}`]; n != float64(len(slow)) {
		t.Errorf("%v endings as slow are counted, want %d", n, len(slow))
	}
	stop()
	witness := dial(t, w, dialling{transport: sse, topics: "dispatch"})
	witness.ready(t)
	truth := finish(t, conn, witness)

	crowd.finish(t)
	without, with := crowd.latencies(split)
	t.Logf("%d clients, %d deliveries; without slow ones p50 %v p99 %v max %v; with %d slow ones p50 %v p99 %v max %v",
		size, len(without)+len(with), quantile(without, .5), quantile(without, .99), quantile(without, 1),
		len(slow), quantile(with, .5), quantile(with, .99), quantile(with, 1))
	t.Logf("worker's memory: %d MiB before, at most %d MiB with the slow ones, %d MiB after", rss>>20, most>>20, memoryOf(t, w)>>20)

	for _, s := range slow {
		s.readRest(t)
		back := dial(t, w, dialling{transport: s.kind, topics: topics, since: s.lastID})
		if ready := back.ready(t); !ready.Resumed {
			t.Errorf("%s came back with %s: %s", s.name, s.lastID, ready.text)
		}
		back.waitEnd(t)
		back.check(t)
		t.Logf("%s: %d events before it was ended, %d after it came back", s.name, len(s.events), len(back.events()))
		checkEvents(t, s.name, topics, truth, s.begin, append(s.events, back.events()...))
	}
}

// beat broadcasts its own time to topic dispatch, so often a second.
func beat(t *testing.T, url string, rate int) (stop func()) {
	t.Helper()
	conn := pgtest.Connect(t, url)
	var stopping atomic.Bool
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for n := 1; !stopping.Load(); n++ {
			if _, err := conn.Exec(t.Context(), "select trumpet.broadcast('dispatch', jsonb_build_object('n', $1::int, 'sent', $2::bigint))", n, time.Now().UnixNano()); err != nil {
				if t.Context().Err() == nil {
					t.Errorf("beat: %v", err)
				}
				return
			}
			<-tick.C
		}
	})
	stop = func() {
		stopping.Store(true)
		group.Wait()
	}
	t.Cleanup(stop) // before the connection is closed
	return stop
}

// crowd is many clients of little cost: they notice when each beat came, and that none is missing.
type crowd struct {
	members []*member
	group   sync.WaitGroup
}

type member struct {
	conn  net.Conn
	beats atomic.Int64
	seen  []arrived
	wrong string
}

type arrived struct{ sent, took time.Duration } // since 1970; on the way

func joinCrowd(t *testing.T, w *worker, size int) *crowd {
	t.Helper()
	c := &crowd{}
	for range size {
		m := &member{conn: dialRaw(t, w.addr, sse, "dispatch", "", 0)}
		reader := bufio.NewReaderSize(m.conn, 1024)
		for line := ""; !strings.HasPrefix(line, "event: ready"); {
			var err error
			if line, err = reader.ReadString('\n'); err != nil {
				t.Fatalf("join the crowd: %v", err)
			}
		}
		c.members = append(c.members, m)
		c.group.Go(func() { m.read(reader) })
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			_ = m.conn.Close()
		}
		c.group.Wait()
	})
	return c
}

// read reads until the connection or the test's events end.
func (m *member) read(reader *bufio.Reader) {
	last := 0
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			m.wrong = fmt.Sprintf("ended after %d beats: %v", last, err)
			return
		}
		if !bytes.HasPrefix(line, []byte(`data: {"id"`)) {
			continue
		}
		now := time.Duration(time.Now().UnixNano())
		_, data, found := bytes.Cut(line, []byte(`"data":`))
		if !found {
			m.wrong = fmt.Sprintf("got %s", line)
			return
		}
		if bytes.HasPrefix(data, []byte(endOfTest)) {
			return
		}
		var beat struct {
			N    int
			Sent time.Duration
		}
		if err := json.NewDecoder(bytes.NewReader(data)).Decode(&beat); err != nil || beat.N != last+1 {
			m.wrong = fmt.Sprintf("after beat %d came %s", last, line)
			return
		}
		last = beat.N
		m.seen = append(m.seen, arrived{beat.Sent, now - beat.Sent})
		m.beats.Add(1)
	}
}

func (c *crowd) waitBeats(t *testing.T, n int64) {
	t.Helper()
	poll(t.Context(), t, fmt.Sprintf("%d beats", n), func() bool { return c.members[len(c.members)-1].beats.Load() >= n })
}

// finish waits until all have the last event.
func (c *crowd) finish(t *testing.T) {
	t.Helper()
	for _, m := range c.members {
		_ = m.conn.SetReadDeadline(time.Now().Add(patience))
	}
	c.group.Wait()
	for i, m := range c.members {
		if m.wrong != "" {
			t.Errorf("client %d of the crowd: %s", i, m.wrong)
			return
		}
	}
}

// latencies are how long beats took that were sent before and after a time, in order.
func (c *crowd) latencies(split time.Time) (before, after []time.Duration) {
	for _, m := range c.members {
		for _, a := range m.seen {
			if a.sent < time.Duration(split.UnixNano()) {
				before = append(before, a.took)
			} else {
				after = append(after, a.took)
			}
		}
	}
	slices.Sort(before)
	slices.Sort(after)
	return before, after
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(float64(len(sorted))*q), len(sorted)-1)].Round(10 * time.Microsecond)
}

// memoryOf is a worker's resident memory in bytes, or 0 where the system does not tell.
func memoryOf(t *testing.T, w *worker) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", w.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// slowClient takes nothing, or sips a byte a second.
type slowClient struct {
	name   string
	kind   transport
	conn   net.Conn
	begin  string
	reader *bufio.Reader // of what was got so far, and then of the connection
	sipped bytes.Buffer
	done   chan struct{}
	once   sync.Once
	ended  sync.WaitGroup

	events []message
	lastID string
}

func dialSlow(t *testing.T, w *worker, kind transport, topics string, sips bool) *slowClient {
	t.Helper()
	s := &slowClient{name: fmt.Sprintf("%s that does not read", kind), kind: kind, done: make(chan struct{})}
	s.conn = dialRaw(t, w.addr, kind, topics, "", 4096)
	// Nothing is read ahead: what a slow client has not taken is the kernel's.
	var head []byte
	for !bytes.Contains(head, []byte(`"type":"ready"`)) {
		var b [1]byte
		if _, err := s.conn.Read(b[:]); err != nil {
			t.Fatalf("%s: %v after %q", s.name, err, head)
		}
		head = append(head, b[0])
	}
	s.sipped.Write(head)
	if sips {
		s.name = fmt.Sprintf("%s that reads a byte a second", kind)
		s.ended.Go(func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				select {
				case <-s.done:
					return
				case <-tick.C:
				}
				var b [1]byte
				n, err := s.conn.Read(b[:])
				s.sipped.Write(b[:n])
				if err != nil {
					return
				}
			}
		})
	}
	t.Cleanup(s.stop)
	return s
}

func (s *slowClient) stop() {
	s.once.Do(func() { close(s.done) })
	s.ended.Wait()
}

// readRest reads what the kernel still has for a client that was ended, and finds what came whole.
func (s *slowClient) readRest(t *testing.T) {
	t.Helper()
	s.stop()
	_ = s.conn.SetReadDeadline(time.Now().Add(patience))
	s.reader = bufio.NewReader(io.MultiReader(&s.sipped, s.conn))
	response, err := http.ReadResponse(s.reader, nil)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	body := bufio.NewReader(response.Body)
	for {
		var frame trumpettest.Frame
		var err error
		if s.kind == sse {
			frame, err = nextEvent(body)
		} else {
			frame, err = nextFrame(s.reader)
		}
		if err != nil {
			return
		}
		m, err := frame.Decode()
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			return
		}
		if m.ID != "" {
			s.lastID = m.ID
		}
		switch {
		case m.Type == "ready":
			s.begin = m.ID
		case m.IsEvent():
			s.events = append(s.events, message{m, frame.Text, frame.Name, frame.ID})
		}
	}
}

// nextFrame reads a WebSocket's next text frame.
func nextFrame(r *bufio.Reader) (trumpettest.Frame, error) {
	for {
		opcode, payload, err := readFrame(r)
		if err != nil {
			return trumpettest.Frame{}, err
		}
		if opcode == 1 {
			return trumpettest.Frame{Text: string(payload)}, nil
		}
	}
}

// nextEvent reads a stream's next event that is whole.
func nextEvent(r *bufio.Reader) (trumpettest.Frame, error) {
	var f trumpettest.Frame
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return f, err
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch {
		case line == "\n" && f.Text != "":
			return f, nil
		case line == "\n":
			f = trumpettest.Frame{}
		case field == "data":
			f.Text = value
		case field == "event":
			f.Name = value
		case field == "id":
			f.ID = value
		}
	}
}
