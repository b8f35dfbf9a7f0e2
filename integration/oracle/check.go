package oracle

import (
	"fmt"
	"sort"

	"github.com/trumpet-realtime/trumpet"
)

// An invariant of the list in the package comment, such as "I1".
type invariant string

const (
	delivered invariant = "I1"
	unique    invariant = "I2"
	ordered   invariant = "I3"
	committed invariant = "I4"
	equal     invariant = "I5"
	bounded   invariant = "I6"
	private   invariant = "I7"
	prompt    invariant = "I8"
	counted   invariant = "I9"
	current   invariant = "I10"
)

// broken is an invariant that does not hold.
type broken struct {
	invariant invariant
	what      string
}

func (b *broken) Error() string { return fmt.Sprintf("%s: %s", b.invariant, b.what) }

func breaks(i invariant, format string, args ...any) *broken {
	return &broken{i, fmt.Sprintf(format, args...)}
}

// received is an event as a client got it.
type received struct {
	id    trumpet.EventID
	sum   sum
	topic string
	op    trumpet.Op
	more  bool
}

// claim is a worker's word that a client had everything up to id when it had got count events.
type claim struct {
	count int
	id    trumpet.EventID
	said  string
}

// stretch is what a client got from a point on at which it began anew: its start, or a reset. It
// goes on over any number of connections for as long as each resumes the one before, and ends where
// the client's interest changes.
//
// Where a snapshot stands, a client is not told. A stretch that begins behind one has no after: it begins
// somewhere behind from, up to where the client followed what it did formerly.
type stretch struct {
	after   trumpet.EventID
	follows interest
	got     []received
	claims  []claim

	from     trumpet.EventID
	formerly interest // nil: nothing before counts
}

// newest is the id up to which the stretch has everything.
func (s *stretch) newest() trumpet.EventID {
	newest := s.begins()
	if n := len(s.got); n > 0 {
		newest = s.got[n-1].id
	}
	if n := len(s.claims); n > 0 && s.claims[n-1].id.Compare(newest) > 0 {
		newest = s.claims[n-1].id
	}
	return newest
}

// begins is what the stretch comes after, at the least.
func (s *stretch) begins() trumpet.EventID {
	if s.after.IsZero() {
		return s.from
	}
	return s.after
}

// largest is the size of a transaction above which "more" may be absent within it: workers
// give 16 MiB and more in pieces.
const largest = 8 << 20

// since is the log's events from where a stretch begins.
func (t *truth) since(s *stretch) ([]logged, *broken) {
	if !s.after.IsZero() {
		if !t.has(s.after) {
			return nil, breaks(committed, "it was told to begin after %s, which is not in the log", s.after)
		}
		return t.after(s.after), nil
	}
	events := t.after(s.from)
	begin := 0
	switch { // what surely comes after the snapshots
	case len(s.claims) > 0 && s.claims[0].count == 0:
		begin = sort.Search(len(events), func(i int) bool { return events[i].id.Compare(s.claims[0].id) > 0 })
	case len(s.got) > 0:
		begin = sort.Search(len(events), func(i int) bool { return events[i].id.Compare(s.got[0].id) >= 0 })
	default:
		return nil, nil // it ended before it had anything
	}
	// The snapshots stand somewhere before. What the client followed formerly it must have up to
	// there, and what it follows now from there on.
	var missed *logged
	for i := range events[:begin] {
		e := &events[i]
		if _, _, ok := s.formerly.sees(e); ok && missed == nil {
			missed = e
		}
		if _, _, ok := s.follows.sees(e); ok && missed != nil {
			return nil, breaks(delivered, "it got neither %s nor %s, and no snapshot can stand so that both are right", missed.describe(), e.describe())
		}
	}
	return events[begin:], nil
}

// expected is an event as a client must get it.
type expected struct {
	logged
	op      trumpet.Op
	content sum
}

// check compares a stretch with the log: it must be the log's events that the client's interest takes,
// from where the stretch began, each once, in order, whole; up to the last one that it has, and at least
// up to until.
func (t *truth) check(s *stretch, until trumpet.EventID) *broken {
	events, wrong := t.since(s)
	if wrong != nil {
		return wrong
	}
	var want []expected
	sizes := map[string]int64{}
	for _, e := range events {
		sizes[e.xid] += e.size
		if op, content, ok := s.follows.sees(&e); ok {
			want = append(want, expected{e, op, content})
		}
	}
	for i, got := range s.got {
		if i >= len(want) || got.id.Compare(want[i].id) < 0 {
			if e, ok := t.at(got.id); ok {
				return breaks(private, "it got %s, and %s is not for it: filters %b take the row before, %b the one after, it has %b",
					got.describe(), e.describe(), e.was, e.is, s.follows[e.topic])
			}
			return breaks(committed, "it got %s, which the log does not have on its topics", got.describe())
		}
		if c := got.id.Compare(want[i].id); c > 0 {
			return breaks(delivered, "it did not get %s, and then got %s", want[i].describe(), got.describe())
		}
		if w := want[i]; got.id != w.id || got.topic != w.topic || got.op != w.op || got.sum != w.content {
			return breaks(committed, "it got %s, where the log has %s, which it sees as %s", got.describe(), w.describe(), w.op)
		}
		more := i+1 < len(want) && want[i+1].xid == want[i].xid
		if got.more != more && (got.more || sizes[want[i].xid] < largest) {
			return breaks(ordered, "more is %v on %s, and should be %v", got.more, got.describe(), more)
		}
	}
	for _, c := range s.claims {
		if !t.has(c.id) {
			return breaks(committed, "%s said %s, which is not in the log", c.said, c.id)
		}
		if c.count < len(want) && want[c.count].id.Compare(c.id) <= 0 {
			return breaks(delivered, "%s said that everything up to %s had come, when %s had not", c.said, c.id, want[c.count].describe())
		}
	}
	if n := len(s.got); n < len(want) && want[n].id.Compare(until) <= 0 {
		return breaks(delivered, "it did not get %s, nor anything after it", want[n].describe())
	}
	return nil
}

func (e logged) describe() string {
	return fmt.Sprintf("%s %s %s of transaction %s", e.topic, e.op, e.id, e.xid)
}

func (r received) describe() string { return fmt.Sprintf("%s %s %s", r.topic, r.op, r.id) }

// transaction is one that the table committed has.
type transaction struct {
	token string
	made
	late bool // it may have committed when nobody waited for it any more
}

// checkCommitted compares the log after an id with what was committed: every transaction with
// exactly its events, and none that is not there. posts are broadcasts over HTTP; true are those that
// a worker said were committed. What was found is taken out of both.
func (t *truth) checkCommitted(after trumpet.EventID, transactions map[string]transaction, posts map[string]bool) *broken {
	events, rows := map[string]int{}, map[string]int{}
	posted := map[string]int{}
	newest := map[string]int64{}
	seen := map[string]bool{} // transactions that are over
	current, step := "", 0
	for _, e := range t.after(after) {
		if e.xid != current {
			if seen[e.xid] {
				return breaks(ordered, "transaction %s stands in two places of the log, the second is %s", e.xid, e.describe())
			}
			seen[current] = true
			current, step = e.xid, 0
		}
		if e.step >= 0 {
			if e.step < step {
				return breaks(ordered, "%s is of statement %d, and stands behind one of statement %d", e.describe(), e.step, step)
			}
			step = e.step
		}
		if e.op == trumpet.OpResult {
			if b := t.checkResult(&e, newest); b != nil {
				return b
			}
			continue // a worker's own transaction
		}
		if e.post != "" {
			posted[e.post]++
			if _, ours := posts[e.post]; !ours || posted[e.post] > 1 {
				return breaks(unique, "the broadcast %s over HTTP is in the log %d times", e.post, posted[e.post])
			}
			continue
		}
		if _, ok := transactions[e.xid]; !ok {
			if t.slotLost && e.op == trumpet.OpBulk && e.rows == 0 {
				continue // what a new slot has of transactions that a step had passed comes too late, and is told of so
			}
			return breaks(committed, "the log has %s, which was not committed", e.describe())
		}
		events[e.xid]++
		rows[e.xid] += e.rows
	}
	for xid, tx := range transactions {
		if t.slotLost && tx.byWAL > 0 && events[xid] == tx.events-tx.byWAL {
			delete(transactions, xid) // it stands between two slots: nothing of it was read from the WAL
			continue
		}
		if events[xid] == 0 && tx.late {
			continue // it may have committed after all else
		}
		if events[xid] != tx.events {
			return breaks(delivered, "transaction %s (%s) has %d events in the log, it made %d", xid, tx.token, events[xid], tx.events)
		}
		if tx.rows >= 0 && rows[xid] != tx.rows {
			return breaks(delivered, "bulk events of transaction %s (%s) tell of %d rows, it changed %d", xid, tx.token, rows[xid], tx.rows)
		}
		delete(transactions, xid)
	}
	for token, confirmed := range posts {
		if confirmed && posted[token] == 0 {
			return breaks(delivered, "the broadcast %s over HTTP was confirmed, and is not in the log", token)
		}
		if posted[token] > 0 {
			delete(posts, token)
		}
	}
	return nil
}

// view is a table as a client has it: the sums of its rows, by their keys.
type view map[string]sum

// differs says how a client's view differs from the table, or nothing.
func (v view) differs(table view) string {
	for key, row := range table {
		mine, ok := v[key]
		if !ok {
			return fmt.Sprintf("it lacks the row %s", key)
		}
		if mine != row {
			return fmt.Sprintf("its row %s is not the table's", key)
		}
	}
	for key := range v {
		if _, ok := table[key]; !ok {
			return fmt.Sprintf("it has the row %s, which the table does not have", key)
		}
	}
	return ""
}
