package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestDivideFiles(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		limit                 uint64
		clients, fits, others int
	}{
		{1 << 20, 20000, 20000, 1024},
		{21088, 20000, 20000, 1024},
		{21087, 20000, 19999, 1024},
		{1024, 20000, 720, 240},
		{1024, 10, 10, 240},
		{300, 20000, 177, 59},
		{3, 20000, 6, 2},
	} {
		fits, others := divideFiles(test.limit, test.clients)
		if fits != test.fits || others != test.others {
			t.Errorf("%d files for %d clients: %d and %d others, want %d and %d", test.limit, test.clients, fits, others, test.fits, test.others)
		}
	}
}

func TestFewerFilesAreToldOnce(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	const many = 1 << 33 // more than any limit
	fits, _ := fitDescriptors(many, slog.New(slog.NewTextHandler(&log, nil)))
	if fits >= many || strings.Count(log.String(), "level=WARN") != 1 || !strings.Contains(log.String(), "LimitNOFILE") {
		t.Errorf("%d clients, and the log says %q", fits, log.String())
	}
	log.Reset()
	if fits, _ = fitDescriptors(1, slog.New(slog.NewTextHandler(&log, nil))); fits != 1 || log.Len() > 0 {
		t.Errorf("%d clients, and the log says %q", fits, log.String())
	}
}
