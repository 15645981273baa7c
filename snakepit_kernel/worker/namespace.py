"""Access of the pool to a session's namespace in a worker: functions that are sent by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import suggest
from ..protocol.codec import Codec

_PARTS = "_snakepit_parts"
"""Name under which a namespace holds the `Part` of each name that `scatter` has set in it."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a worker knows of a sequence of which it has a part.

    Attributes
    ----------
    scatter
        Id of the call that has cut the sequence.
    workers
        Numbers of the workers that have its parts, in order.
    """

    scatter: str
    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a worker has under a name.

    Attributes
    ----------
    is_defined
        Whether it has the name.
    value
        Its value.
    part
        What `scatter` has noted of the name.
    """

    is_defined: bool
    value: Any
    part: Part | None


NOTHING = Found(is_defined=False, value=None, part=None)
"""What there is where there is no worker."""


def push(variables: dict[str, Any]) -> None:
    """Set variables in the session's namespace."""
    namespace = _shell().user_ns
    for name in variables:
        namespace.get(_PARTS, {}).pop(name, None)
    _shell().push(variables)


def scatter(name: str, value: Any, part: Part) -> None:
    """Set a variable in the session's namespace to this worker's part of a sequence."""
    _shell().push({name: value})
    _shell().user_ns.setdefault(_PARTS, {})[name] = part


def gather(name: str) -> Found:
    """Return a variable of the session's namespace, and what `scatter` has noted of it."""
    namespace = _shell().user_ns
    part = namespace.get(_PARTS, {}).get(name)
    return Found(name in namespace, namespace.get(name), part)


def pull(names: list[str]) -> dict[str, Any]:
    """Return variables of the session's namespace.

    Raises
    ------
    NameError
        One of them does not exist.
    """
    namespace = _shell().user_ns
    for name in names:
        if name not in namespace:
            known = [key for key in namespace if not key.startswith("_")]
            msg = f"name {name!r} is not defined in the worker{suggest(name, known)}"
            raise NameError(msg)
    return {name: namespace[name] for name in names}


def last_value(max_bytes: int | None = None) -> Any:
    """Return the value of the last expression of the last cell, or None.

    Raises
    ------
    ValueTooLarge
        It takes more bytes than that to send it.
    """
    result = _shell().last_execution_result
    value = None if result is None else result.result
    if max_bytes is not None:
        Codec(max_bytes=max_bytes).dumps_with_markers(value)  # stops where it is too large
    return value


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()
