"""Search for the part of a value that cannot be pickled, and where a function uses it."""

from __future__ import annotations

import dis
import functools
import inspect
import linecache
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .functions import is_by_value

MAX_DEPTH = 12
"""Levels of nested parts that are searched."""

MAX_SOURCE = 80
"""Characters of a line that are shown."""

MAX_ITEMS = 1000
"""Items of a container that are examined."""


class _Part(NamedTuple):
    """A part of a value, and its description."""

    name: str
    value: Any


def culprit_of(value: object, can_travel: Callable[[object], bool]) -> str:
    """Describe the part of a value that cannot be pickled, from the inside out.

    Parameters
    ----------
    value
        A value that cannot be pickled.
    can_travel
        Returns whether a part can be pickled.

    Returns
    -------
    culprit
        Such as ``"global 'lock' of function f (line 3: with lock:)"``; empty when it is the value
        itself, or when no single part is at fault.
    """
    path: list[str] = []
    seen = {id(value)}
    for _ in range(MAX_DEPTH):
        part = next((part for part in _parts(value) if not can_travel(part.value)), None)
        if part is None or id(part.value) in seen:
            break
        path += [part.name] if part.name else []
        value = part.value
        seen.add(id(value))
    return " of ".join(reversed(path))


def _parts(value: Any) -> Iterator[_Part]:
    if isinstance(value, types.FunctionType):
        if is_by_value(value):
            yield from _parts_of_function(value)
    elif isinstance(value, type):
        if is_by_value(value):
            yield from _parts_of_class(value)
    elif isinstance(value, types.MethodType):
        yield _Part(f"its object, a {type(value.__self__).__qualname__}", value.__self__)
        yield _Part("", value.__func__)
    elif isinstance(value, functools.partial):
        yield _Part(f"function {_name_of(value.func)}", value.func)
        yield from _items(value.args, "argument {}")
        yield from _values(value.keywords, "argument {!r}")
    elif hasattr(value, "__wrapped__") and callable(value):
        yield _Part(f"function {_name_of(value)}", value.__wrapped__)
    elif isinstance(value, Mapping):
        yield from _values(value, "value of {!r}")
    elif isinstance(value, list | tuple | set | frozenset):
        yield from _items(value, "item [{}]")
    elif is_by_value(type(value)):
        yield from _parts_of_object(value)


def _items(values: Any, name: str) -> Iterator[_Part]:
    for number, item in zip(range(MAX_ITEMS), values, strict=False):
        yield _Part(name.format(number), item)


def _values(values: Mapping[Any, Any], name: str) -> Iterator[_Part]:
    for key, item in list(values.items())[:MAX_ITEMS]:
        yield _Part(name.format(key), item)


def _parts_of_function(function: types.FunctionType) -> Iterator[_Part]:
    called = f"function {_name_of(function)}"
    found = inspect.getclosurevars(function)
    for name, value in found.globals.items():
        yield _Part(f"global {name!r} of {called}{_line_using(function, name)}", value)
    for name, value in found.nonlocals.items():
        yield _Part(f"closure variable {name!r} of {called}{_line_using(function, name)}", value)
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    for name, value in zip(names[len(names) - len(defaults) :], defaults, strict=True):
        yield _Part(f"default of parameter {name!r} of {called}", value)
    for name, value in (function.__kwdefaults__ or {}).items():
        yield _Part(f"default of parameter {name!r} of {called}", value)
    for name, value in vars(function).items():
        yield _Part(f"attribute {name!r} of {called}", value)


def _parts_of_class(kind: type) -> Iterator[_Part]:
    for base in kind.__bases__:
        yield _Part(f"base {base.__qualname__} of class {kind.__qualname__}", base)
    for name, value in vars(kind).items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(function, types.FunctionType):
            yield _Part("", function)
        elif not isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            yield _Part(f"attribute {name!r} of class {kind.__qualname__}", value)


def _parts_of_object(value: Any) -> Iterator[_Part]:
    kind = type(value)
    yield _Part("", kind)
    names = [n for c in kind.__mro__ for n, v in vars(c).items() if inspect.ismemberdescriptor(v)]
    attributes = {name: getattr(value, name) for name in names if hasattr(value, name)}
    for name, part in {**attributes, **getattr(value, "__dict__", {})}.items():
        yield _Part(f"attribute {name!r} of the {kind.__qualname__}", part)


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _line_using(function: types.FunctionType, name: str) -> str:
    """Describe the line in which a function first uses a name."""
    for code in _codes(function.__code__):
        line = code.co_firstlineno
        for instruction in dis.get_instructions(code):
            if instruction.starts_line:
                line = _line_of(instruction) or line
            if instruction.argval == name:
                source = linecache.getline(code.co_filename, line).strip()
                return f" (line {line}: {source[:MAX_SOURCE]})" if source else f" (line {line})"
    return ""


def _line_of(instruction: dis.Instruction) -> int | None:
    # Since Python 3.13 `starts_line` is a flag, and the number is in `line_number`.
    number = getattr(instruction, "line_number", instruction.starts_line)
    return None if number is None else int(number)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
