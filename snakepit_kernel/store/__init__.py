"""The durable store of sessions: nothing else opens their database."""
