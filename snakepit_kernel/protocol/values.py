"""Values: pickles that keep value and type, with big buffers out of band.

What was defined in a notebook (functions, lambdas, classes) travels by value, by cloudpickle;
what can be imported travels by its name.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import cloudpickle

from .frames import MAX_BUFFERS

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
OUT_OF_BAND_BYTES = 8192
"""Buffers from this size on travel beside the pickle, not in it."""

_SHALLOW_ITEMS = 32
"""Items of a container that are looked at in search of a shortcut."""


def dumps(value: object) -> tuple[bytes, list[memoryview]]:
    """Pickle a value.

    Returns
    -------
    body
        The pickle.
    buffers
        Large contiguous data (arrays) that the pickle refers to; not copied.

    Raises
    ------
    Exception
        Whatever pickling raises for a value that cannot travel.
    """
    if is_plain(value):
        return pickle.dumps(value, protocol=5), []
    found: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_BYTES or len(found) == MAX_BUFFERS:
            return True
        found.append(view)
        return False

    body: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=keep_in_band)
    return body, found


def loads(body: bytes | memoryview, buffers: Sequence[bytearray | memoryview] = ()) -> Any:
    """Restore a value from its pickle. Only for bytes of an authenticated peer."""
    return pickle.loads(body, buffers=buffers)


def is_plain(value: object, depth: int = 3) -> bool:
    """Whether a value consists of plain small values only, which pickle does 5 times faster."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if depth == 0:
        return False
    items: Iterable[object]
    if kind is tuple or kind is list:
        items = value  # type: ignore[assignment]
    elif kind is dict:
        items = value.values()  # type: ignore[attr-defined]
        for key in value:  # type: ignore[attr-defined]
            if type(key) not in _ATOMS:
                return False
    else:
        return False
    if len(value) > _SHALLOW_ITEMS:  # type: ignore[arg-type]
        return False
    for item in items:  # noqa: SIM110 - a generator would double the time of a small call
        if not is_plain(item, depth - 1):
            return False
    return True
