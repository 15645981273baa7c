"""Checks of containers against annotations, item by item."""

from __future__ import annotations

import collections.abc
import functools
import itertools
import operator
import reprlib
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from .annotations import exact_classes
from .mismatch import Check, Mismatch, build, wrong_type

CONVERTED_FROM: Final[dict[type, tuple[type, ...]]] = {
    list: (tuple,),
    tuple: (list,),
    set: (list, tuple, frozenset),
    frozenset: (list, tuple, set),
    dict: (),
}
"""Types that are converted to a container: JSON has only one kind of array."""


def converted_container(kind: type, value: Any) -> Any:
    """Convert a tuple to a list, and the like, without checking the items."""
    if not isinstance(value, CONVERTED_FROM[kind]):
        raise wrong_type(kind, value)
    return build(kind, value)


def container_check(kind: Any, checks: list[Check | None]) -> Check:
    """Return the check of a container.

    Parameters
    ----------
    kind
        Its annotation, with arguments.
    checks
        The checks of its items, one for each argument of the annotation.
    """
    origin: type = typing.get_origin(kind)
    accepted = (origin, *CONVERTED_FROM.get(origin, ()))
    check_items = _items_check(origin, typing.get_args(kind), checks)

    def check(value: Any) -> Any:
        if not isinstance(value, accepted):
            raise wrong_type(kind, value)
        # Other iterables are not iterated over: that might exhaust them, or never end.
        plain = next((plain for plain in CONVERTED_FROM if isinstance(value, plain)), None)
        if plain is None or (plain is dict) != issubclass(origin, collections.abc.Mapping):
            return value
        checked = check_items(value)
        if checked is value and isinstance(value, origin):
            return value
        return build(origin if origin in CONVERTED_FROM else plain, checked)

    return check


def _items_check(origin: type, args: tuple[Any, ...], checks: list[Check | None]) -> Check:
    """Return a check that returns the container if its items are unchanged, else the new items."""
    if issubclass(origin, tuple) and args[1:] != (...,):
        return functools.partial(_check_tuple, checks)
    classes = list(map(exact_classes, args))
    if issubclass(origin, collections.abc.Mapping):
        return functools.partial(_check_pairs, checks, classes)
    return functools.partial(_check_all, checks[0], classes[0])


def _match_by_class(check: Check | None, classes: frozenset[type], values: Iterable[Any]) -> bool:
    """Whether items match by their classes alone: a million of them take 20 ms."""
    return check is None or classes.issuperset(map(type, values))


def _check_all(
    check: Check | None, classes: frozenset[type], values: Collection[Any]
) -> Collection[Any]:
    if _match_by_class(check, classes, values):
        return values
    return _check_each(itertools.repeat(check, len(values)), values)


def _check_tuple(checks: list[Check | None], values: Collection[Any]) -> Collection[Any]:
    if len(values) != len(checks):
        raise Mismatch(f"Expected {len(checks)} items, got {len(values)}")
    return _check_each(checks, values)


def _check_each(checks: Iterable[Check | None], values: Collection[Any]) -> Collection[Any]:
    checked: list[Any] = []
    try:
        for check, value in zip(checks, values, strict=True):
            checked.append(check(value) if check else value)
    except Mismatch as mismatch:
        raise mismatch.within(f"[{len(checked)}]") from None
    return values if all(map(operator.is_, checked, values)) else checked


def _check_pairs(
    checks: list[Check | None], classes: list[frozenset[type]], given: Mapping[Any, Any]
) -> Mapping[Any, Any]:
    if all(map(_match_by_class, checks, classes, (given, given.values()))):
        return given
    check_key, check_value = checks
    checked: dict[Any, Any] = {}
    for key, value in given.items():
        try:
            item = check_value(value) if check_value else value
            checked[check_key(key) if check_key else key] = item
        except Mismatch as mismatch:
            raise mismatch.within(f"[{reprlib.repr(key)}]") from None
    same_keys = all(map(operator.is_, checked, given))
    same_values = all(map(operator.is_, checked.values(), given.values()))
    return given if same_keys and same_values else checked
