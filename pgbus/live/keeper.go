package live

import (
	"context"
	"errors"

	"github.com/trumpet-realtime/trumpet"
)

var errTooManyGroups = errors.New("too many groups")

type keeper struct{}

type feed struct{}

func (f *feed) put(topic string, events []trumpet.Event, head trumpet.EventID, whole bool) {}
func (f *feed) overflow()                                                                  {}

func (h *holder) keep(ctx context.Context, q *query, feeds map[string][]*feed) {}
