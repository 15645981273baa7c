"""Comparison of two definitions: functions, and objects made of functions."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

_CACHED: Any = type(functools.lru_cache(lambda: None))
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})


def is_same_definition(one: Any, other: Any) -> bool:
    """Whether two functions, or objects made of functions, do the same.

    They do if code, defaults, and all that they refer to are equal. The answer is no where that
    cannot be determined.
    """
    return _Comparison().are_same(one, other)


class _Comparison:
    def __init__(self) -> None:
        self._assumed: dict[tuple[int, int], tuple[Any, Any]] = {}  # keeps them, so ids stay unique

    def are_same(self, one: Any, other: Any) -> bool:
        if one is other:
            return True
        kind = type(one)
        if kind is not type(other):
            return False
        if kind in _ATOMS or kind is types.CodeType:
            return bool(one == other)
        pair = id(one), id(other)
        if pair in self._assumed:  # it refers to itself
            return True
        self._assumed[pair] = one, other
        parts = _PARTS.get(kind)
        return parts is not None and self._all_same(parts(one), parts(other))

    def _all_same(self, ones: Iterable[Any], others: Iterable[Any]) -> bool:
        ones, others = list(ones), list(others)
        return len(ones) == len(others) and all(map(self.are_same, ones, others))


def _parts_of_function(function: types.FunctionType) -> list[Any]:
    names = _global_names(function.__code__)
    return [
        *(function.__defaults__ or ()),
        function.__kwdefaults__,
        function.__dict__,
        *(cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)),
        {name: function.__globals__.get(name) for name in sorted(names)},
        function.__code__,
    ]


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - the access is the test
    except ValueError:
        return True
    return False


_PARTS: dict[type, Callable[[Any], Iterable[Any]]] = {
    types.FunctionType: _parts_of_function,
    _CACHED: lambda f: [f.__wrapped__, f.cache_parameters()],
    functools.cached_property: lambda p: [p.func, p.attrname],
    functools.partial: lambda p: [p.func, p.args, p.keywords],
    property: lambda p: [p.fget, p.fset, p.fdel, p.__doc__],
    classmethod: lambda m: [m.__func__],
    staticmethod: lambda m: [m.__func__],
    types.MethodType: lambda m: [m.__func__, m.__self__],
    tuple: iter,
    list: iter,
    dict: lambda d: [*d.keys(), *d.values()],
}
