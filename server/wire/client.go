package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/trumpet-realtime/trumpet"
)

// MaxClientFrame bounds what one WebSocket message of a client may hold.
const MaxClientFrame = 16 << 10

// MaxTopics bounds the topics of one connection.
const MaxTopics = 256

// Command is what a client asks for: topics to be added, or to be removed.
type Command struct {
	Unsubscribe bool
	Topics      []string
}

// ParseClientFrame reads one message of a client. Its errors tell the client what to do
// and never repeat more than a topic's name.
func ParseClientFrame(message []byte) (Command, error) {
	if len(message) > MaxClientFrame {
		return Command{}, fmt.Errorf("a message has at most %d bytes", MaxClientFrame)
	}
	var frame struct {
		Type   string   `json:"type"`
		Topics []string `json:"topics"`
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
	switch {
	case len(frame.Topics) == 0:
		return Command{}, errors.New("topics must name at least one topic")
	case len(frame.Topics) > MaxTopics:
		return Command{}, fmt.Errorf("a connection has at most %d topics", MaxTopics)
	}
	for _, topic := range frame.Topics {
		if err := trumpet.ValidTopic(topic); err != nil {
			return Command{}, err
		}
	}
	return Command{Unsubscribe: frame.Type == "unsubscribe", Topics: frame.Topics}, nil
}
