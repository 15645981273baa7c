"""Pickling of objects that plain pickle would look up by name in the notebook, or copy wrongly."""

from __future__ import annotations

import enum
from typing import Any

from .class_kinds import members_of
from .functions import is_by_value, reducer_of

_SHELLS = frozenset({"ZMQInteractiveShell", "TerminalInteractiveShell", "InteractiveShell"})
_AUTOCALLS = frozenset({"ExitAutocall", "ZMQExitAutocall", "IPyAutocall"})


def reduce_object(obj: Any, kind: type) -> tuple[Any, ...] | None:
    """Reduce an object that is neither a class nor a function; None to leave that to pickle."""
    reducer = reducer_of(kind)
    if reducer is not None:
        return reducer(obj)
    if type(kind) is not type and isinstance(kind, enum.EnumMeta):
        return _reduce_member(obj, kind)
    if kind.__module__ == "__main__":
        return _reduce_named(obj, kind)
    if kind.__name__ in _SHELLS:
        return _shell, ()
    if kind.__name__ in _AUTOCALLS:
        return _autocall, (kind,)
    return None


def _reduce_member(member: Any, kind: enum.EnumMeta) -> tuple[Any, ...] | None:
    """Reduce a member of an enumeration to its name: values may not equal their copies."""
    name = member._name_
    if members_of(kind).get(name) is not member or not is_by_value(kind):
        return None  # several flags at once, for example
    return _member_of, (kind, name)


def _member_of(kind: enum.EnumMeta, name: str) -> Any:
    return members_of(kind)[name]


def _reduce_named(obj: Any, kind: type) -> tuple[Any, ...] | None:
    """Reduce an object that would be looked up by a name that the receiver does not have."""
    own: Any = kind
    if own.__reduce__ is object.__reduce__ and own.__reduce_ex__ is object.__reduce_ex__:
        return None
    reduced = obj.__reduce_ex__(5)
    if isinstance(reduced, str):
        return _by_its_state(obj)
    return reduced  # type: ignore[no-any-return]


def _by_its_state(obj: Any) -> tuple[Any, ...]:
    import copyreg

    state = obj.__getstate__()
    return copyreg.__newobj__, (type(obj),), state  # type: ignore[attr-defined]


def _shell() -> Any:
    """Return IPython's shell of this process."""
    from IPython.core.getipython import get_ipython

    return get_ipython()


def _autocall(kind: Any) -> Any:
    """Return IPython's ``exit`` or a similar object, bound to the shell of this process."""
    made = kind()
    made.set_ip(_shell())
    return made
