package main

import (
	"io"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// logFlags say how to log.
type logFlags struct {
	level  oneOf
	format oneOf
}

func (l *logFlags) add(flags *pflag.FlagSet, level string) {
	l.level = oneOf{level, []string{"debug", "info", "warn", "error"}}
	l.format = oneOf{"auto", []string{"auto", "text", "json"}}
	flags.Var(&l.level, "log-level", "log this level and what is graver")
	flags.Var(&l.format, "log-format", "auto is text on a terminal, JSON otherwise")
	withTwin(flags, "log-level", "log-format")
}

func (l *logFlags) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level.value)); err != nil {
		panic(err) // oneOf lets no other name pass
	}
	options := &slog.HandlerOptions{Level: level}
	format := l.format.value
	if format == "auto" {
		format = "json"
		if isTerminal(w) {
			format = "text"
		}
	}
	if format == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

func isTerminal(w any) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
