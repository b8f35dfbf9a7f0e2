package trumpet

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxTopicLength is the longest name of a topic in bytes: a schema's name, a dot
// and a table's name at Postgres's limit of 63 bytes each.
const MaxTopicLength = 127

// ValidTopic returns an error that says what is wrong with name, or nil. A topic
// is 1 to MaxTopicLength bytes of printable UTF-8 without white space and without
// the characters that separate topics and filters in a URL: , ? & = # and +. The
// function trumpet.valid_topic(text) in the database draws the same line.
func ValidTopic(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("a topic's name cannot be empty")
	case len(name) > MaxTopicLength:
		return fmt.Errorf("a topic's name has at most %d bytes, this one has %d", MaxTopicLength, len(name))
	case !utf8.ValidString(name):
		return fmt.Errorf("topic %q is not valid UTF-8", name)
	}
	for _, r := range name {
		if strings.ContainsRune(",?&=#+", r) || !unicode.IsGraphic(r) || unicode.IsSpace(r) {
			return fmt.Errorf("topic %q contains %q; white space, control characters and , ? & = # + are not allowed", name, r)
		}
	}
	return nil
}

// ParseTopics reads a comma-separated list of topics, as ?topics= gives it. Names
// that occur twice are taken once; the order is kept.
func ParseTopics(list string) ([]string, error) {
	var topics []string
	seen := make(map[string]bool)
	for name := range strings.SplitSeq(list, ",") {
		if err := ValidTopic(name); err != nil {
			return nil, err
		}
		if !seen[name] {
			seen[name] = true
			topics = append(topics, name)
		}
	}
	return topics, nil
}
