package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/trumpet-realtime/trumpet"
)

const (
	// MaxClientFrame bounds what one WebSocket message of a client may hold.
	MaxClientFrame = 16 << 10
	// MaxTopics bounds the subscriptions of one connection.
	MaxTopics = 256
	// maxRef bounds the name that a client gives to a request.
	maxRef = 64
)

// Command is what a client asks for: subscriptions to be added, or to be removed.
type Command struct {
	// Ref is the client's name of this request, which comes back in the answer: a JSON
	// string or integer, or nil.
	Ref           json.RawMessage
	Unsubscribe   bool
	Snapshot      bool // the rows first
	Subscriptions []trumpet.Subscription
}

// ParseClientFrame reads one message of a client. Its errors tell the client what to do
// and repeat little of what was sent. A *trumpet.Refusal says that the message is in the
// protocol, but what it asks for is not possible: then the command has its Ref. Any other
// error ends the connection.
func ParseClientFrame(message []byte) (Command, error) {
	if len(message) > MaxClientFrame {
		return Command{}, fmt.Errorf("a message has at most %d bytes", MaxClientFrame)
	}
	var frame struct {
		Type     string          `json:"type"`
		Ref      json.RawMessage `json:"ref"`
		Topics   []string        `json:"topics"`
		Snapshot bool            `json:"snapshot"`
	}
	decoder := json.NewDecoder(bytes.NewReader(message))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&frame); err != nil {
		return Command{}, errors.New(`a message is a JSON object such as {"type":"subscribe","topics":["jobs"]}`)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Command{}, errors.New("a message holds one JSON object and nothing after it")
	}
	if frame.Type != "subscribe" && frame.Type != "unsubscribe" {
		return Command{}, errors.New(`the type of a message is "subscribe" or "unsubscribe"`)
	}
	command := Command{Ref: frame.Ref, Unsubscribe: frame.Type == "unsubscribe", Snapshot: frame.Snapshot}
	switch {
	case len(frame.Topics) == 0:
		return Command{}, errors.New("topics must name at least one topic")
	case command.Unsubscribe && command.Snapshot:
		return Command{}, errors.New("a snapshot comes with subscribe, not with unsubscribe")
	case string(frame.Ref) == "null":
		command.Ref = nil
	case !validRef(frame.Ref):
		return Command{}, fmt.Errorf("ref is a string of at most %d bytes or a whole number", maxRef)
	}
	for _, text := range frame.Topics {
		topic, _, _ := strings.Cut(text, "?")
		if err := trumpet.ValidTopic(topic); err != nil {
			return Command{}, err
		}
	}
	if len(frame.Topics) > MaxTopics {
		return command, trumpet.Refuse(trumpet.ErrFilter, "a connection has at most %d topics", MaxTopics)
	}
	for _, text := range frame.Topics {
		subscription, err := trumpet.ParseSubscription(text)
		if err != nil {
			return command, trumpet.Refuse(trumpet.ErrFilter, "%s", err)
		}
		command.Subscriptions = append(command.Subscriptions, subscription)
	}
	return command, nil
}

// validRef reports whether a JSON value, or none, can be a request's name.
func validRef(ref json.RawMessage) bool {
	if len(ref) == 0 {
		return true
	}
	if ref[0] == '"' {
		var text string
		return json.Unmarshal(ref, &text) == nil && len(text) <= maxRef
	}
	digits := bytes.TrimPrefix(ref, []byte("-"))
	return len(digits) > 0 && len(digits) <= maxRef && len(bytes.Trim(digits, "0123456789")) == 0
}
