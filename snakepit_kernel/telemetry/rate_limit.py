"""Limits on the rate of events, and on the number of distinct names."""

from __future__ import annotations

from time import monotonic

RATE = 1000.0
"""Default limit of one name's events in a second."""

MAX_NAMES = 1000
"""Distinct names of a kind; all later ones are replaced by `OTHER`."""

OTHER = "other"
"""The replacement of names beyond `MAX_NAMES`."""


class Buckets:
    """A token bucket for each name of events.

    Parameters
    ----------
    rate
        Events in a second, by default; a burst may be as large.
    """

    def __init__(self, rate: float = RATE) -> None:
        self._rate = rate
        self._rates: dict[str, float] = {}
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and the time of that count

    def set_rate(self, name: str, rate: float) -> None:
        """Set the rate of a name."""
        self._rates[name] = rate
        self._buckets.pop(name, None)

    def take(self, name: str) -> bool:
        """Take a token of a name; return whether there was one."""
        now = monotonic()
        if name not in self._buckets and len(self._buckets) >= MAX_NAMES:
            name = OTHER
        rate = self._rates.get(name, self._rate)
        tokens, before = self._buckets.get(name, (rate, now))
        tokens = min(rate, tokens + (now - before) * rate)
        self._buckets[name] = (max(tokens - 1.0, 0.0) if tokens >= 1.0 else tokens, now)
        return tokens >= 1.0


class Names:
    """Bounds the number of distinct names, for each kind of them."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}

    def bounded(self, kind: str, name: str) -> str:
        """Return a name, or `OTHER` if its kind has `MAX_NAMES` others."""
        known = self._known.setdefault(kind, set())
        if name not in known:
            if len(known) >= MAX_NAMES:
                return OTHER
            known.add(name)
        return name
