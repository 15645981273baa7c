"""Values checked against annotations, and converted where plain data stands for more.

A value that fits stays the object that it is: subclasses, and numpy's numbers. Plain data becomes
what the annotation names: a dict a dataclass or a model, a value its enum's member, a text a date.
Containers are looked into here, so that every annotation may stand inside any other; constraints
and the types of the standard library are msgspec's work.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import numbers
import operator
import pathlib
import reprlib
import typing
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any, Final, Literal

import msgspec

from .annotations import UNIONS, hints_of, in_our_words, is_container, required_keys
from .containers import TAKEN_FOR, container_check, converted_container
from .misfits import Check, Misfit, built, fit_within, none_of, wrong_type

_NUMBERS: Final[dict[type, type]] = {
    int: numbers.Integral,
    float: numbers.Real,
    complex: numbers.Complex,
}
_AS_THEY_ARE: Final = (int, float, complex, bool, str, bytes, bytearray, type(None))
"""Nothing else stands for one of these: no text for a number, no base64 for bytes."""


def check_for(kind: Any) -> Check | None:
    """Return what checks a value against an annotation, or None when there is nothing to check."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is None:
        return _class_check(type(None))
    if origin is Annotated:
        return _constrained_check(args[0], kind.__metadata__)
    if origin is Literal:
        return _literal_check(args)
    if origin in UNIONS:
        return _union_check(kind, args)
    if is_container(origin):
        return container_check(kind, [None if arg is ... else check_for(arg) for arg in args])
    if typing.is_typeddict(origin or kind):
        return _typed_dict_check(origin or kind)
    if type(kind).__name__ == "TypeAliasType":  # of typing since 3.12, of typing_extensions before
        return _later(lambda: check_for(in_our_words(kind.__value__)))
    found = origin or kind
    return _class_check(found) if isinstance(found, type) and found is not object else None


def _later(make: Callable[[], Check | None]) -> Check:
    """Make a check when it is first used: what it checks may contain itself."""
    made = functools.cache(make)

    def check(value: Any) -> Any:
        found = made()
        return found(value) if found else value

    return check


def _class_check(kind: type) -> Check | None:
    accepted: tuple[type, ...] = (kind, *filter(None, [_NUMBERS.get(kind)]))
    is_number = kind in _NUMBERS
    try:
        isinstance(None, kind)
    except TypeError:
        return None  # a protocol that cannot be looked for
    convert = _conversion_to(kind)

    def check(value: Any) -> Any:
        if type(value) is kind:
            return value
        if isinstance(value, accepted) and not (is_number and isinstance(value, bool)):
            return value
        return convert(value)

    return check


def _conversion_to(kind: type) -> Check:
    """Return what makes an instance of plain data, or refuses what it is given."""
    if issubclass(kind, enum.Enum):
        return functools.partial(_member_of, kind)
    if kind in TAKEN_FOR:
        return functools.partial(converted_container, kind)
    if hasattr(kind, "model_validate"):  # pydantic's, which need not be installed
        return functools.partial(built, kind.model_validate)
    if dataclasses.is_dataclass(kind):
        return _dataclass_conversion(kind)
    if issubclass(kind, pathlib.PurePath):
        return lambda value: kind(value) if isinstance(value, str) else _refuse(kind, value)
    is_interface = kind.__module__ == "collections.abc"
    if kind in _AS_THEY_ARE or is_interface or not _is_known_to_msgspec(kind):
        return functools.partial(_refuse, kind)
    return functools.partial(_msgspec_convert, kind)


def _refuse(kind: Any, value: object) -> Any:
    if kind is bool and type(value).__module__ == "numpy" and type(value).__name__[:4] == "bool":
        return value  # numpy's is no subclass of bool, and no number either
    raise wrong_type(kind, value)


def _member_of(kind: type[enum.Enum], value: Any) -> enum.Enum:
    plain = _plain_number(value)
    try:
        member = kind(plain)
    except (ValueError, TypeError):
        member = None
    # To an enum, 1, 1.0 and True are the same.
    if member is None or type(member.value) is not type(plain):
        raise none_of([member.value for member in kind], value)
    return member


def _msgspec_convert(kind: Any, value: Any) -> Any:
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes, bytearray, memoryview))
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        given = "" if ", got `" in text else f", got {reprlib.repr(value)}"
        raise Misfit(text + given, path.removesuffix("`")) from None


def _is_known_to_msgspec(kind: Any) -> bool:
    try:
        msgspec.convert(_Nothing(), kind)
    except msgspec.ValidationError:
        return True
    except Exception:  # noqa: BLE001 - TypeError of what it does not know; any of bad annotations
        return False
    return True


class _Nothing:
    """A value that fits no annotation."""


def _dataclass_conversion(kind: type) -> Check:
    @functools.cache
    def fields() -> _Fields:
        parameters = inspect.signature(kind).parameters
        hints = hints_of(kind)
        return _Fields(
            {name: check_for(hints.get(name, Any)) for name in parameters},
            {name for name, item in parameters.items() if item.default is item.empty},
        )

    def convert(value: Any) -> Any:
        if not isinstance(value, dict):
            raise wrong_type(kind, value)
        return built(lambda fitted: kind(**fitted), fields().fit(value))

    return convert


def _typed_dict_check(kind: Any) -> Check:
    @functools.cache
    def fields() -> _Fields:
        hints = {name: check_for(hint) for name, hint in hints_of(kind).items()}
        return _Fields(hints, required_keys(kind))

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise wrong_type(kind, value)
        fitted = fields().fit(value)
        return value if all(map(operator.is_, fitted.values(), value.values())) else fitted

    return check


class _Fields:
    """The fields of a dataclass or a TypedDict."""

    def __init__(self, checks: dict[str, Check | None], required: Collection[str]) -> None:
        self._checks = checks
        self._required = required

    def fit(self, given: dict[Any, Any]) -> dict[Any, Any]:
        """Return the fields, converted, in their order."""
        for name in self._required:
            if name not in given:
                raise Misfit(f"Missing field {name!r}")
        for name in given:
            if name not in self._checks:
                raise Misfit(f"Unknown field {name!r}, there are {', '.join(self._checks)}")
        return {
            name: fit_within(f".{name}", self._checks[name], value) for name, value in given.items()
        }


def _union_check(kind: Any, members: Iterable[Any]) -> Check | None:
    checks = [made for member in members if (made := check_for(member))]
    if len(checks) < len(typing.get_args(kind)):
        return None

    def check(value: Any) -> Any:
        converted, misfits = [], []
        for member in checks:
            try:
                fitted = member(value)
            except Misfit as misfit:
                misfits.append(misfit)
                continue
            if fitted is value:
                return value  # "red" of ``Color | str`` is a text
            converted.append(fitted)
        if converted:
            return converted[0]
        telling = [misfit for misfit in misfits if misfit.path or type(misfit) is Misfit]
        raise telling[0] if len(telling) == 1 else wrong_type(kind, value)

    return check


def _literal_check(choices: tuple[Any, ...]) -> Check:
    def check(value: Any) -> Any:
        plain = _plain_number(value)
        for choice in choices:
            if plain == choice and isinstance(plain, bool) is isinstance(choice, bool):
                return value if isinstance(value, type(choice)) else choice
        for choice in choices:
            if isinstance(choice, enum.Enum) and plain == choice.value:
                return choice
        raise none_of(choices, value)

    return check


def _constrained_check(base: Any, metas: tuple[Any, ...]) -> Check | None:
    base_check = check_for(base)
    rule: Any = Annotated[(_without_arguments(base), *metas)]
    if not _is_known_to_msgspec(rule):
        return base_check  # a limit of what has no length or size that msgspec knows

    def check(value: Any) -> Any:
        fitted = base_check(value) if base_check else value
        _msgspec_convert(rule, _plain_number(fitted))
        return fitted

    return check


def _without_arguments(kind: Any) -> Any:
    """Return ``list`` of ``list[int]``: the items are not what a constraint is about."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        return typing.Union[tuple(map(_without_arguments, args))]  # noqa: UP007 - built at run time
    return origin if is_container(origin) else kind


def _plain_number(value: Any) -> Any:
    """Return numpy's numbers, and other strangers, as Python's, which msgspec and enums know."""
    if isinstance(value, numbers.Real) and not isinstance(value, int | float):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value
