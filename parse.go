package trumpet

// ParseSubscription reads a topic, or a topic, a question mark and conditions
// joined by &.
func ParseSubscription(text string) (Subscription, error) {
	if err := ValidTopic(text); err != nil {
		return Subscription{}, Refuse(ErrFilter, "%s", err)
	}
	return Subscription{Topic: text}, nil
}
