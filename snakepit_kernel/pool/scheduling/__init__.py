"""Scheduling of a pool's work: the queue, the idle lanes, session affinity and wait notices."""
