"""Containers checked against annotations, item by item."""

from __future__ import annotations

import collections.abc
import functools
import operator
import reprlib
import typing
from collections.abc import Collection, Mapping
from typing import Any, Final

from .misfits import Check, Misfit, built, fit_within, wrong_type

TAKEN_FOR: Final[dict[type, tuple[type, ...]]] = {
    list: (tuple,),
    tuple: (list,),
    set: (list, tuple, frozenset),
    frozenset: (list, tuple, set),
    dict: (),
}
"""What stands for a container: JSON has one kind of array."""


def converted_container(kind: type, value: Any) -> Any:
    """Return a list of a tuple, and the like, without a look at the items."""
    if not isinstance(value, TAKEN_FOR[kind]):
        raise wrong_type(kind, value)
    return built(kind, value)


def container_check(kind: Any, checks: list[Check | None]) -> Check:
    """Return what checks a container.

    Parameters
    ----------
    kind
        Its annotation, with arguments.
    checks
        What checks its items, for each argument of the annotation.
    """
    origin: type = typing.get_origin(kind)
    accepted = (origin, *TAKEN_FOR.get(origin, ()))
    fit = _items_check(origin, typing.get_args(kind), checks)

    def check(value: Any) -> Any:
        if not isinstance(value, accepted):
            raise wrong_type(kind, value)
        # Other iterables are not looked into: that might use them up, or take for ever.
        plain = next((plain for plain in TAKEN_FOR if isinstance(value, plain)), None)
        if plain is None or (plain is dict) != issubclass(origin, collections.abc.Mapping):
            return value
        fitted = fit(value)
        if fitted is value and isinstance(value, origin):
            return value
        return built(origin if origin in TAKEN_FOR else plain, fitted)

    return check


def _items_check(origin: type, args: tuple[Any, ...], checks: list[Check | None]) -> Check:
    """Return what gives a container back when its items stay what they are, else the new ones."""
    if issubclass(origin, collections.abc.Mapping):
        return functools.partial(_fit_pairs, checks[0], checks[1])
    if issubclass(origin, tuple) and args[1:] != (...,):
        return functools.partial(_fit_each, checks)
    return functools.partial(_fit_all, checks[0], args[0])


def _fit_all(check: Check | None, kind: Any, values: Collection[Any]) -> Collection[Any]:
    # Instances of the very class fit: a million of them are seen in 20 ms.
    if check is None or (isinstance(kind, type) and set(map(type, values)) <= {kind}):
        return values
    fitted = [fit_within(f"[{i}]", check, value) for i, value in enumerate(values)]
    return values if all(map(operator.is_, fitted, values)) else fitted


def _fit_each(checks: list[Check | None], values: Collection[Any]) -> Collection[Any]:
    if len(values) != len(checks):
        raise Misfit(f"Expected {len(checks)} items, got {len(values)}")
    pairs = enumerate(zip(checks, values, strict=True))
    fitted = [fit_within(f"[{i}]", check, value) for i, (check, value) in pairs]
    return values if all(map(operator.is_, fitted, values)) else fitted


def _fit_pairs(
    key_check: Check | None, value_check: Check | None, given: Mapping[Any, Any]
) -> Mapping[Any, Any]:
    fitted = {}
    for key, value in given.items():
        step = f"[{reprlib.repr(key)}]"
        fitted[fit_within(step, key_check, key)] = fit_within(step, value_check, value)
    same_keys = all(map(operator.is_, fitted, given))
    same_values = all(map(operator.is_, fitted.values(), given.values()))
    return given if same_keys and same_values else fitted
