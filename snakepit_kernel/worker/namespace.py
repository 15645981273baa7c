"""Access of the pool to a session's namespace in a worker: functions that are sent by name."""

from __future__ import annotations

from typing import Any

from ..errors import suggest
from ..protocol.codec import Codec


def push(variables: dict[str, Any]) -> None:
    """Set variables in the session's namespace."""
    _shell().push(variables)


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
