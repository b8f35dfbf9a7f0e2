package oracle

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/trumpet-realtime/trumpet/internal/trumpettest"
)

var worker string // its binary

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

// runTests builds the binary once for all tests.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "trumpet-oracle-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make folder for the binary:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if worker, err = trumpettest.Build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// seed is printed, and taken from TRUMPET_SEED to repeat a run.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if given := os.Getenv("TRUMPET_SEED"); given != "" {
		var err error
		if n, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatalf("TRUMPET_SEED: %v", err)
		}
	}
	t.Logf("TRUMPET_SEED=%d repeats this run", n)
	return n
}

// A short run with all faults. scripts/soak is the same for as long as one likes.
func TestOracle(t *testing.T) { testOracle(t, "triggers", 14*time.Second) }

// A shorter one with one of two tables watched by the WAL.
func TestOracleMixed(t *testing.T) { testOracle(t, "mixed", 8*time.Second) }

func testOracle(t *testing.T, capture string, duration time.Duration) {
	report, err := Run(t.Context(), Config{
		Seed: seed(t), Binary: worker, Capture: capture, Duration: duration, Longest: 3 * time.Second, Calm: time.Second,
		Clients: 12, Boards: 9, Writers: 2,
		Restless: 4 * time.Second, LiveWithin: 30 * time.Second, // of a machine that does much else
	})
	if err != nil {
		t.Error(err)
	}
	for _, v := range report.Violations {
		t.Error(v)
	}
	for i, log := range report.Logs {
		t.Logf("the log of worker %d ends with:\n%s", i+1, log)
	}
	t.Logf("%s\n%s", report.Line(), report.Markdown())
	if !t.Failed() && (report.Committed == 0 || report.Aborted == 0 || report.Received == 0 || report.Resumes == 0 || report.Snapshots == 0 || report.Moves == 0 || report.ResultsCompared == 0 || len(report.Faults) == 0) {
		t.Error("this was no storm")
	}
}
