"""How values of users' own types travel that pickle cannot take apart, or should not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import cloudpickle

T = TypeVar("T")

Reducer = Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]
Encoder = tuple[type, Callable[[Any], Any], Callable[[Any], Any]]


class Encoders:
    """The encoders of this process, by type.

    Attributes
    ----------
    reducers
        As `copyreg` has them.
    known
        All, in the order of their registration; a number of them names a state of the registry.
    """

    def __init__(self) -> None:
        self.reducers: dict[type, Reducer] = {}
        self.known: list[Encoder] = []

    def add(self, kind: type, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> None:
        """Add an encoder, or replace that of its type."""

        def reduce(value: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return decode, (encode(value),)

        self.reducers[kind] = reduce
        self.known.append((kind, encode, decode))


encoders = Encoders()
"""Of this process; as in `copyreg`, what a type means does not depend on who asks."""


def register_encoder(kind: type[T], encode: Callable[[T], Any], decode: Callable[[Any], T]) -> None:
    """Say how values of a type travel between notebook and workers, both ways.

    It holds for all pools of this process, from their next call on. Registering a type again
    replaces its encoder. Subclasses have their own.

    Parameters
    ----------
    kind
        The type.
    encode
        Makes of a value something that can travel.
    decode
        Makes a value of that again. It travels with each value, so the other end needs nothing.

    Raises
    ------
    TypeError
        ``kind`` is no type, or one of the others no function that can travel.

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
