"""Encoders that users register for types that pickle cannot, or should not, handle itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import cloudpickle

from ..tracebacks import hides_own_frames

T = TypeVar("T")

Reducer = Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]
Encoder = tuple[type, Callable[[Any], Any], Callable[[Any], Any]]


class Encoders:
    """The encoders of this process, by type.

    Attributes
    ----------
    reducers
        Reducers by type, as in `copyreg`.
    known
        All encoders, in the order of their registration; their number identifies a state of the
        registry.
    bound
        The types that `bind` has added.
    """

    def __init__(self) -> None:
        self.reducers: dict[type, Reducer] = {}
        self.bound: set[type] = set()
        self.known: list[Encoder] = []

    def bind(self, kind: type, reduce: Reducer) -> None:
        """Add a type of our own whose values stand for others that one worker has.

        Pickling collects them, see `BoundBuffers`: such a call can be made in that worker only.
        """
        self.reducers[kind] = reduce
        self.bound.add(kind)

    def add(self, kind: type, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> None:
        """Add an encoder, or replace that of its type."""

        def reduce(value: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return decode, (encode(value),)

        self.reducers[kind] = reduce
        self.known.append((kind, encode, decode))


encoders = Encoders()
"""The encoders of this process, global as those of `copyreg`."""


@hides_own_frames
def register_encoder(kind: type[T], encode: Callable[[T], Any], decode: Callable[[Any], T]) -> None:
    """Register how values of a type are sent between notebook and workers, both ways.

    It applies to all pools of this process, from their next call on. Registering a type again
    replaces its encoder. It does not apply to subclasses.

    Parameters
    ----------
    kind
        The type.
    encode
        Converts a value to something that can be pickled.
    decode
        Converts that back. It is sent with each value, so the other end needs nothing.

    Raises
    ------
    TypeError
        ``kind`` is not a type, or one of the others not a function that can be pickled.

    Examples
    --------
    >>> import sqlite3
    >>> def path_of(connection):
    ...     return connection.execute("pragma database_list").fetchone()[2]
    >>> register_encoder(sqlite3.Connection, path_of, sqlite3.connect)
    """
    if not isinstance(kind, type):
        msg = f"an encoder is registered for a type, not for {type(kind).__name__} {kind!r}"
        raise TypeError(msg)
    for name, function in (("encode", encode), ("decode", decode)):
        if not callable(function):
            msg = f"{name} must be a function, not {type(function).__name__} {function!r}"
            raise TypeError(msg)
    try:
        cloudpickle.dumps((kind, encode, decode))
    except Exception as error:
        msg = f"the encoder of {kind.__qualname__} cannot travel to workers: {error}"
        raise TypeError(msg) from error
    encoders.add(kind, encode, decode)
