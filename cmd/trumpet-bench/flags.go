package main

import (
	"fmt"
	"strconv"
	"strings"
)

// bounded refuses what would never end.
func bounded(name string, n, most int) error {
	if n < 1 || n > most {
		return fmt.Errorf("--%s %d: from 1 to %d", name, n, most)
	}
	return nil
}

// numbers is a flag of positive numbers with commas between them.
type numbers []int

// String implements flag.Value.
func (n *numbers) String() string { return joinNumbers(*n) }

// Set implements flag.Value.
func (n *numbers) Set(text string) (err error) {
	*n, err = parseNumbers(text, 1)
	return err
}

// counts is a flag of numbers with commas between them, of which some may be 0.
type counts []int

// String implements flag.Value.
func (c *counts) String() string { return joinNumbers(*c) }

// Set implements flag.Value.
func (c *counts) Set(text string) (err error) {
	*c, err = parseNumbers(text, 0)
	return err
}

func joinNumbers(all []int) string {
	texts := make([]string, len(all))
	for i, v := range all {
		texts[i] = strconv.Itoa(v)
	}
	return strings.Join(texts, ",")
}

func parseNumbers(text string, least int) (all []int, err error) {
	for part := range strings.SplitSeq(text, ",") {
		v, err := strconv.Atoi(part)
		if err != nil || v < least {
			return nil, fmt.Errorf("%q is not a number of at least %d", part, least)
		}
		all = append(all, v)
	}
	return all, nil
}

// capture is a flag: how changes of a table get into the log.
type capture string

const (
	byTriggers capture = "triggers"
	byWAL      capture = "wal"
)

// String implements flag.Value.
func (c *capture) String() string { return string(*c) }

// Set implements flag.Value.
func (c *capture) Set(text string) error {
	switch capture(text) {
	case byTriggers, byWAL:
		*c = capture(text)
		return nil
	}
	return fmt.Errorf("%q is neither %s nor %s", text, byTriggers, byWAL)
}

// title is how it reads in a sentence.
func (c capture) title() string {
	if c == byWAL {
		return "the WAL"
	}
	return "triggers"
}
