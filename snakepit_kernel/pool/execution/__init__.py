"""Execution of work on assigned lanes: calls, streams, cells, futures and host calls."""
