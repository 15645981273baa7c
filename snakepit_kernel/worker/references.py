"""Values that stay in this worker, where the notebook has references to them.

The pool calls these functions, which are sent by name.
"""

from __future__ import annotations

import inspect
import itertools
import operator
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ..tools.context import context_of_cells

MAX_ITEMS, COLLECTING_SECONDS = 1000, 0.01
"""Most items of an iterator that are sent together, and seconds that collecting them may take."""

_values: dict[int, Any] = {}
_numbers = itertools.count(1)


class Kept(NamedTuple):
    """What the notebook is told of a value that stays here.

    Attributes
    ----------
    pid, worker
        Process id and name of this worker.
    number
        The value's number here.
    kind
        Name of its type.
    """

    pid: int
    worker: str
    number: int
    kind: str


class Items(NamedTuple):
    """Items of an iterator, and whether it has ended."""

    values: list[Any]
    has_ended: bool


class Attribute(NamedTuple):
    """An attribute that is called here and does not travel."""

    is_async: bool


def keep(value: Any) -> Kept:
    """Keep a value, and describe it."""
    number = next(_numbers)
    _values[number] = value
    return Kept(os.getpid(), context_of_cells().worker, number, type(value).__qualname__)


def keeping(ready: Callable[[], Any], *, is_async: bool) -> Callable[[], Any]:
    """Return a function that keeps what another one returns, or what its awaitable gives."""
    if not is_async:
        return lambda: keep(ready())

    async def keep_awaited(awaitable: Awaitable[Any]) -> Kept:
        return keep(await awaitable)

    return lambda: keep_awaited(ready())


def resolve(pid: int, number: int) -> Any:
    """Return the value that an argument refers to.

    Raises
    ------
    LookupError
        This process does not have it.
    """
    if pid != os.getpid() or number not in _values:
        msg = (
            "a RemoteRef stands for a value in one worker of its pool; it can be an argument of "
            "calls of that pool, which are then made in that worker, and nothing else; fetch() "
            "brings the value itself"
        )
        raise LookupError(msg)
    return _values[number]


def release(number: int) -> None:
    """Forget a value."""
    _values.pop(number, None)


def fetch(number: int) -> Any:
    """Return a value itself."""
    return _values[number]


def read(number: int, name: str) -> Any:
    """Return an attribute of a value; an `Attribute` in place of one that is called."""
    value = getattr(_values[number], name)
    return Attribute(inspect.iscoroutinefunction(value)) if callable(value) else value


def write(number: int, name: str, value: Any) -> None:
    """Set an attribute of a value."""
    setattr(_values[number], name, value)


def erase(number: int, name: str) -> None:
    """Delete an attribute of a value."""
    delattr(_values[number], name)


def names(number: int) -> list[str]:
    """Return the names of a value's attributes."""
    return dir(_values[number])


def call(number: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a value, or one of its methods."""
    value = _values[number]
    return (getattr(value, name) if name else value)(*args, **kwargs)


async def acall(number: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method that is a coroutine function."""
    return await getattr(_values[number], name)(*args, **kwargs)


def operate(number: int, operation: str, *operands: Any) -> Any:
    """Apply a function of the module `operator`, or `len` or `iter`, to a value."""
    value = _values[number]
    match operation:
        case "len":
            return len(value)
        case "iter":
            return iter(value)
        case _:
            return getattr(operator, operation)(value, *operands)


def advance(number: int) -> Items:
    """Return the next items of an iterator, as many as come soon."""
    values: list[Any] = []
    until = time.monotonic() + COLLECTING_SECONDS
    for value in _values[number]:
        values.append(value)
        if len(values) == MAX_ITEMS or time.monotonic() >= until:
            return Items(values, has_ended=False)
    return Items(values, has_ended=True)


def enter(number: int) -> Kept | None:
    """Enter a context manager; describe what it gives, None for itself."""
    value = _values[number]
    entered = type(value).__enter__(value)
    return None if entered is value else keep(entered)


def leave(number: int, error: BaseException | None) -> bool:
    """Leave a context manager; return whether it swallows the error."""
    value = _values[number]
    return bool(type(value).__exit__(value, type(error) if error else None, error, None))
