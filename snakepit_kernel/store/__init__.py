"""The durable home of sessions: nothing else opens their database."""
