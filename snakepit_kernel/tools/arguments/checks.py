"""Checks of values against annotations, and conversion of plain data.

A valid value stays the same object: also subclasses, and numpy's numbers. Plain data becomes what
the annotation names: a dict a dataclass or a model, a value its enum's member, a text a date.
Containers are checked here, so that every annotation may be nested in any other; constraints and
the types of the standard library are checked by msgspec.

Not pydantic's ``TypeAdapter``: strict, it copies each container, makes an int of an ``IntEnum``'s
member, and rejects numpy's numbers and plain data to convert; lax, it accepts ``"3"`` for a
number. Neither accepts ``typing.TypedDict`` before Python 3.12.
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

from .annotations import UNIONS, hints_of, is_container, normalized, required_keys
from .containers import CONVERTED_FROM, container_check, converted_container
from .mismatch import Check, Mismatch, WrongType, build, not_one_of, wrong_type

_NUMBERS: Final[dict[type, type]] = {
    int: numbers.Integral,
    float: numbers.Real,
    complex: numbers.Complex,
}
_NEVER_CONVERTED: Final = (int, float, complex, bool, str, bytes, bytearray, type(None))
"""Types that nothing is converted to: no text to a number, no base64 to bytes."""


def check_for(kind: Any) -> Check | None:
    """Return the check of an annotation, or None if every value is valid."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _constrained_check(args[0], kind.__metadata__)
    if origin is Literal:
        return _literal_check(args)
    if origin in UNIONS:
        return _union_check(kind, args)
    if is_container(origin):
        return container_check(kind, [None if arg is ... else check_for(arg) for arg in args])
    found = type(None) if kind is None else origin or kind
    if typing.is_typeddict(found):
        return _deferred(lambda: _typed_dict_check(found))
    if type(kind).__name__ == "TypeAliasType":  # of typing since 3.12, of typing_extensions before
        return _deferred(lambda: check_for(normalized(kind.__value__)))
    return _class_check(found) if isinstance(found, type) and found is not object else None


def _deferred(make: Callable[[], Check | None]) -> Check:
    """Make a check when it is first used: its type may be recursive."""
    made = functools.cache(make)

    def check(value: Any) -> Any:
        found = made()
        return found(value) if found else value

    return check


def _class_check(kind: type) -> Check | None:
    accepted = (kind, _NUMBERS.get(kind, kind))
    is_number = kind in _NUMBERS
    try:
        isinstance(None, kind)
    except TypeError:
        return None  # a protocol that is not checkable at runtime
    convert = _conversion_to(kind)

    def check(value: Any) -> Any:
        if type(value) is kind:
            return value
        if isinstance(value, accepted) and not (is_number and isinstance(value, bool)):
            return value
        return convert(value)

    return check


def _conversion_to(kind: type) -> Check:
    """Return a function that converts plain data to a class, or rejects it."""
    if issubclass(kind, enum.Enum):
        return functools.partial(_member_of, kind)
    if kind in CONVERTED_FROM:
        return functools.partial(converted_container, kind)
    if hasattr(kind, "model_validate"):  # pydantic's, which need not be installed
        return functools.partial(build, kind.model_validate)
    if dataclasses.is_dataclass(kind):
        return _deferred(lambda: _dataclass_conversion(kind))
    if issubclass(kind, pathlib.PurePath):
        return lambda value: kind(value) if isinstance(value, str) else _reject(kind, value)
    is_interface = kind.__module__ == "collections.abc"
    if kind in _NEVER_CONVERTED or is_interface or not _is_known_to_msgspec(kind):
        return functools.partial(_reject, kind)
    return functools.partial(_msgspec_convert, kind)


def _reject(kind: Any, value: object) -> Any:
    if kind is bool and type(value).__module__ == "numpy" and type(value).__name__[:4] == "bool":
        return value  # numpy's bool is neither a subclass of bool nor a number
    raise wrong_type(kind, value)


def _member_of(kind: type[enum.Enum], value: Any) -> enum.Enum:
    plain = _plain_number(value)
    try:
        member = kind(plain)
    except (ValueError, TypeError):
        member = None
    # To an enum, 1, 1.0 and True are equal.
    if member is None or type(member.value) is not type(plain):
        raise not_one_of([member.value for member in kind], value)
    return member


def _msgspec_convert(kind: Any, value: Any) -> Any:
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes, bytearray, memoryview))
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        given = "" if ", got `" in text else f", got {reprlib.repr(value)}"
        raise Mismatch(text + given, path.removesuffix("`")) from None


def _is_known_to_msgspec(kind: Any) -> bool:
    try:
        msgspec.convert(object(), kind)
    except msgspec.ValidationError:
        return True
    except Exception:  # noqa: BLE001 - TypeError for unknown types; any error for bad annotations
        return False
    return True


def _dataclass_conversion(kind: type) -> Check:
    parameters = inspect.signature(kind).parameters
    hints = hints_of(kind)
    check_fields = _fields_check(
        kind,
        {name: hints.get(name, Any) for name in parameters},
        {name for name, item in parameters.items() if item.default is item.empty},
    )
    return lambda value: build(lambda fields: kind(**fields), check_fields(value))


def _typed_dict_check(kind: Any) -> Check:
    hints = hints_of(kind)
    unresolved = sorted((kind.__required_keys__ | kind.__optional_keys__) - hints.keys())
    return _fields_check(kind, hints | dict.fromkeys(unresolved, Any), required_keys(kind))


def _fields_check(kind: Any, hints: dict[str, Any], required: Collection[str]) -> Check:
    """Return the check of a dict with the fields of a class."""
    checks = {name: check_for(hint) for name, hint in hints.items()}

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise wrong_type(kind, value)
        for name in checks:
            if name in required and name not in value:
                raise Mismatch(f"Missing field {name!r}")
        for name in value:
            if name not in checks:
                raise Mismatch(f"Unknown field {name!r}, there are {', '.join(checks)}")
        checked = {}
        for name, item in value.items():
            check_item = checks[name]
            try:
                checked[name] = check_item(item) if check_item else item
            except Mismatch as mismatch:
                raise mismatch.within(f".{name}") from None
        return value if all(map(operator.is_, checked.values(), value.values())) else checked

    return check


def _union_check(kind: Any, members: Iterable[Any]) -> Check | None:
    checks = list(map(check_for, members))

    def check(value: Any) -> Any:
        converted, mismatches = [], []
        for check_member in filter(None, checks):
            try:
                checked = check_member(value)
            except Mismatch as mismatch:
                mismatches.append(mismatch)
                continue
            if checked is value:
                return value  # "red" is a valid text for ``Color | str``
            converted.append(checked)
        if converted:
            return converted[0]
        specific = [it for it in mismatches if it.path or not isinstance(it, WrongType)]
        raise specific[0] if len(specific) == 1 else wrong_type(kind, value)

    return None if None in checks else check


def _literal_check(choices: tuple[Any, ...]) -> Check:
    def check(value: Any) -> Any:
        plain = _plain_number(value)
        for choice in choices:
            if _is_equal(plain, choice) and isinstance(plain, bool) is isinstance(choice, bool):
                return value if isinstance(value, type(choice)) else choice
        for choice in choices:
            if isinstance(choice, enum.Enum) and _is_equal(plain, choice.value):
                return choice
        raise not_one_of(choices, value)

    return check


def _is_equal(value: Any, choice: object) -> bool:
    try:
        return bool(value == choice)
    except ValueError:  # arrays and tables compare item by item
        return False


def _constrained_check(base: Any, metas: tuple[Any, ...]) -> Check | None:
    base_check = check_for(base)
    rule: Any = Annotated[(_without_arguments(base), *metas)]
    if not _is_known_to_msgspec(rule):
        return base_check  # a constraint that msgspec cannot apply to this type

    def check(value: Any) -> Any:
        checked = base_check(value) if base_check else value
        _msgspec_convert(rule, _plain_number(checked))
        return checked

    return check


def _without_arguments(kind: Any) -> Any:
    """Return ``list`` for ``list[int]``: constraints do not concern the items."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        return typing.Union[tuple(map(_without_arguments, args))]  # noqa: UP007 - built at run time
    return origin if is_container(origin) else kind


def _plain_number(value: Any) -> Any:
    """Convert numpy's numbers, and others, to Python's, which msgspec and enums support."""
    if isinstance(value, numbers.Real) and not isinstance(value, int | float):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value
