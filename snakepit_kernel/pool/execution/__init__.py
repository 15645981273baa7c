"""Driving workers that are lent: calls, streams, futures, cells, and calls that come back."""
