"""What keeps a flood of events, or of names, from whoever listens."""

from __future__ import annotations

from time import monotonic

RATE = 1000.0
"""Events of one name that are handed on in a second."""

MAX_NAMES = 1000
"""Distinct names of a kind; all that come later count as one."""

OTHER = "other"
"""The name of those."""


class Buckets:
    """A token bucket for each name of events.

    Parameters
    ----------
    rate
        Events a second, by default; as many may come at once.
    """

    def __init__(self, rate: float = RATE) -> None:
        self._rate = rate
        self._rates: dict[str, float] = {}
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens that were there, and when

    def set_rate(self, name: str, rate: float) -> None:
        """Let other many events of a name pass."""
        self._rates[name] = rate
        self._buckets.pop(name, None)

    def take(self, name: str) -> bool:
        """Take a token of a name; say whether there was one."""
        now = monotonic()
        if name not in self._buckets and len(self._buckets) >= MAX_NAMES:
            name = OTHER
        rate = self._rates.get(name, self._rate)
        tokens, before = self._buckets.get(name, (rate, now))
        tokens = min(rate, tokens + (now - before) * rate)
        self._buckets[name] = (max(tokens - 1.0, 0.0) if tokens >= 1.0 else tokens, now)
        return tokens >= 1.0


class Names:
    """Keeps the number of distinct names in bounds, for each kind of them."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}

    def bounded(self, kind: str, name: str) -> str:
        """Return a name, or `OTHER` when too many of its kind were there before."""
        known = self._known.setdefault(kind, set())
        if name not in known:
            if len(known) >= MAX_NAMES:
                return OTHER
            known.add(name)
        return name
