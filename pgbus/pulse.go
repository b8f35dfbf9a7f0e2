package pgbus

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pglogrepl"
)

// walPulse is what a heartbeat tells of the WAL capture: trumpet.wal_pulse. The zero value says that
// there is none.
type walPulse struct {
	wanted    bool
	slot      string
	confirmed pglogrepl.LSN
	end       pglogrepl.LSN // of the WAL
	retained  int64         // bytes that the slot keeps from being removed
	safe      int64         // bytes until the slot is given up; -1: any number
	status    string        // pg_replication_slots.wal_status; "gone" without one
	dutyFree  bool          // nobody sequences
}

// parsePulse reads the columns of a heartbeat.
func parsePulse(row []string) (walPulse, error) {
	if row[0] == "" {
		return walPulse{}, nil
	}
	p := walPulse{wanted: row[0] == "t", slot: row[1], status: row[6], dutyFree: row[7] == "t", safe: -1}
	var errC, errE, errR, errS error
	if row[2] != "" {
		p.confirmed, errC = pglogrepl.ParseLSN(row[2])
	}
	p.end, errE = pglogrepl.ParseLSN(row[3])
	if row[4] != "" {
		p.retained, errR = strconv.ParseInt(row[4], 10, 64)
	}
	if row[5] != "" {
		p.safe, errS = strconv.ParseInt(row[5], 10, 64)
	}
	if err := errors.Join(errC, errE, errR, errS); err != nil {
		return walPulse{}, fmt.Errorf("read the WAL capture's state: %w", err)
	}
	return p, nil
}

const (
	// stalledBeats is after how many heartbeats a slot whose reader has confirmed nothing, though there was
	// something to read, is taken for stuck.
	stalledBeats = 2
	// retainedWarning is how much WAL a slot may retain without a word where nothing bounds it.
	retainedWarning = 1 << 30
)

// walWatch is what one listening session remembers of earlier heartbeats.
type walWatch struct {
	before walPulse
	ends   []pglogrepl.LSN // of the WAL, at the last heartbeats
	warned bool
}

// watchWAL acts on a heartbeat: the duty is free, or whoever has it must look, or does not read.
func (b *Bus) watchWAL(w *walWatch, now walPulse) {
	b.status.wal.Store(&now)
	if now.wanted != w.before.wanted || now.slot != w.before.slot {
		b.sequencer.walChanged.Store(true)
		if b.status.duty.Load() {
			b.sequencer.lookNow()
		}
	}
	w.before = now
	if now.dutyFree {
		b.sequencer.lookNow()
	}
	b.warnOfSlot(w, now)

	if now.slot == "" || b.status.duty.Load() {
		w.ends = nil
		b.sequencer.walStalled.Store(false)
		return
	}
	stalled := len(w.ends) == stalledBeats && now.confirmed < w.ends[0]
	b.sequencer.walStalled.Store(stalled)
	if stalled {
		b.sequencer.lookNow()
	}
	if len(w.ends) == stalledBeats {
		w.ends = w.ends[1:]
	}
	w.ends = append(w.ends, now.end)
}

// warnOfSlot says so, once, when the slot retains so much that it, or the disk, is in danger.
func (b *Bus) warnOfSlot(w *walWatch, now walPulse) {
	danger := now.slot != "" && (now.status == "unreserved" || now.status == "lost" ||
		now.safe >= 0 && now.retained > now.safe || now.safe < 0 && now.retained > retainedWarning)
	switch {
	case danger && !w.warned:
		b.log.Warn("the replication slot retains much WAL: whatever reads it is behind",
			"slot", now.slot, "retained_bytes", now.retained, "safe_bytes", now.safe, "wal_status", now.status)
	case !danger && w.warned:
		b.log.Info("the replication slot retains little WAL again", "slot", now.slot, "retained_bytes", now.retained)
	}
	w.warned = danger
}
