"""Pickles of functions that are pickled by value, kept as long as nothing in them can have changed.

Who submits a function of a notebook a thousand times pickles it once.
"""

from __future__ import annotations

import operator
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import cloudpickle

from .encoders import encoders
from .functions import is_by_value

MAX_KEPT_BYTES = 64 * 1024
"""Largest pickle that is kept."""

IMMUTABLE = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types of values that nothing can change."""

_PARTS = IMMUTABLE | {
    *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.CodeType, tuple, dict)
}
"""Types of what is in the pickle of such a function."""

_OF_THE_MODULE = ("__package__", "__name__", "__path__", "__file__")
"""Names that a pickled function has in its globals, whether it uses them or not."""

_MISSING = object()


class PickledFunction:
    """Stands for a function in a larger pickle, from which the function is restored.

    Parameters
    ----------
    body
        The function's own pickle.
    """

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._body,)


class _Kept(NamedTuple):
    names: tuple[str, ...]
    parts: list[object]
    modules: tuple[int, str]  # number of imported modules, and the last: a pickle names submodules
    pickled: PickledFunction


class FunctionPickles:
    """Keeps the pickles of functions all of whose parts are immutable.

    These parts are the code, the defaults and the globals that the code names, for which numbers,
    texts, modules and functions of modules written in C will do. A function with a closure, with
    annotations or with attributes of its own is pickled anew each time.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[types.FunctionType, _Kept] = WeakKeyDictionary()

    def get(
        self, function: object, dumps: Callable[[object], tuple[bytes, list[memoryview]]]
    ) -> PickledFunction | None:
        """Return a function's pickle, made by ``dumps`` if none is kept; None if it may change."""
        if type(function) is not types.FunctionType or not _is_simple(function):
            return None
        if not is_by_value(function):  # its module may get another one of that name
            return None
        kept = self._kept.get(function)
        code = function.__code__
        names = tuple(_names_in(code)) if kept is None or kept.parts[0] is not code else kept.names
        parts = _parts_of(function, names)
        if parts is None:
            return None
        modules = len(sys.modules), next(reversed(sys.modules))
        if kept is not None and kept.modules == modules and _are_the_same(kept.parts, parts):
            return kept.pickled
        body, buffers = dumps(function)
        now = _parts_of(function, names)
        if buffers or type(buffers) is not list:  # or it refers to what only one worker has
            return None
        if len(body) > MAX_KEPT_BYTES or now is None or not _are_the_same(parts, now):
            return None
        pickled = PickledFunction(body)
        self._kept[function] = _Kept(names, parts, modules, pickled)
        return pickled


def _is_simple(function: types.FunctionType) -> bool:
    """Whether a function has none of the rare parts, which might be changed in place."""
    if function.__closure__ is not None or function.__kwdefaults__ or vars(function):
        return False
    if getattr(function, "__type_params__", ()):
        return False
    if sys.version_info >= (3, 14) and function.__annotate__ is not None:
        return False  # reading the annotations would evaluate them
    return not function.__annotations__


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Iterate over all names that code may look up in its globals, and some others."""
    yield from _OF_THE_MODULE
    codes = [code]
    while codes:
        code = codes.pop()
        yield from code.co_names
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]


def _parts_of(function: types.FunctionType, names: tuple[str, ...]) -> list[object] | None:
    """Return what a function consists of; None if any of it could be changed in place."""
    if not _PARTS.isdisjoint(encoders.reducers) or cloudpickle.list_registry_pickle_by_value():
        return None
    defaults, namespace = function.__defaults__, function.__globals__
    values = [namespace.get(name, _MISSING) for name in names]
    if not all(map(_is_immutable, values)) or not all(map(_is_immutable, defaults or ())):
        return None
    return [
        function.__code__,
        defaults,
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        *values,
    ]


def _is_immutable(value: Any) -> bool:
    kind = type(value)
    if kind in IMMUTABLE or value is _MISSING:
        return True
    if kind is types.ModuleType:
        return sys.modules.get(getattr(value, "__name__", "")) is value
    return kind is types.BuiltinFunctionType and type(value.__self__) is types.ModuleType


def _are_the_same(before: list[object], now: list[object]) -> bool:
    return len(before) == len(now) and all(map(operator.is_, before, now))
