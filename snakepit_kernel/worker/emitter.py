"""Events that code in a worker emits, sent to the owner."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from ..lane.worker_end import WorkerLane
from ..locks import RLock
from ..printable import sendable
from ..protocol import messages
from ..protocol.frames import pack
from ..telemetry.rate_limit import Buckets
from ..telemetry.spans import Scalar

MAX_ATTRIBUTES = 32

MAX_TEXT_BYTES = 1024
"""Bytes of a string that are kept; the rest is cut off."""

ADDED = ("session", "worker", "pool", "correlation_id")
"""Attributes that every event gets."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Emitter:
    """Sends events over one lane; never waits.

    Parameters
    ----------
    lane
        The lane.
    """

    def __init__(self, lane: WorkerLane) -> None:
        self._lane = lane
        self._buckets = Buckets()
        self._lock = RLock()  # a call may have threads that emit
        self._dropped = 0
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = RLock()

    def emit(
        self,
        call_id: int,
        name: str,
        attributes: Mapping[str, object],
        session: str | None,
        correlation: str,
    ) -> None:
        """Send an event; drop it if there are too many or the owner does not read.

        Raises
        ------
        TypeError, ValueError
            The name or an attribute cannot be sent.
        """
        _check_name("the name of an event", name)
        plain = _check_attributes(name, attributes)
        with self._lock:
            dropped = self._dropped
            event = messages.Event(
                call_id, name, plain, time.time_ns(), session, correlation, dropped
            )
            is_sent = self._buckets.take(name) and self._lane.offer(pack(messages.encode(event)))
            self._dropped = 0 if is_sent else dropped + 1


def _check_attributes(name: str, attributes: Mapping[str, object]) -> dict[str, Scalar]:
    if len(attributes) > MAX_ATTRIBUTES:
        msg = f"event {name!r} has {len(attributes)} attributes; {MAX_ATTRIBUTES} are allowed"
        raise ValueError(msg)
    for key in attributes:
        _check_name(f"an attribute of event {name!r}", key)
        if key in ADDED:
            msg = f"attribute {key!r} of event {name!r} is added by itself; choose another name"
            raise ValueError(msg)
    return {key: _plain(name, key, value) for key, value in attributes.items()}


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str):
        msg = f"{what} must be a string, not {type(name).__name__}"
        raise TypeError(msg)
    if not _NAME.fullmatch(name):
        msg = f"{what} must be 1 to 64 characters of A-Z a-z 0-9 _ . -, not {name[:80]!r}"
        raise ValueError(msg)


def _plain(name: str, key: str, value: Any) -> Scalar:
    """Convert a value to a type that messages can hold."""
    if not isinstance(value, bool | int | float | str) and getattr(value, "ndim", None) == 0:
        value = value.item()  # of NumPy, torch and their like
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, Integral):
        number = int(value)
        if -(2**63) <= number < 2**63:
            return number
        msg = f"attribute {key!r} of event {name!r} does not fit into 64 bits"
        raise ValueError(msg)
    if isinstance(value, Real):
        return float(value)
    msg = (
        f"attribute {key!r} of event {name!r} must be a string, a number or a boolean, "
        f"not {type(value).__name__}"
    )
    raise TypeError(msg)


def _cut(text: str) -> str:
    """Return the beginning of a text, as valid Unicode."""
    text = sendable(str.__str__(text[:MAX_TEXT_BYTES]))
    if text.isascii():
        return text[:MAX_TEXT_BYTES]
    return text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
