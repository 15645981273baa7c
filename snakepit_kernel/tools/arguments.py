"""Arguments of a tool: checked against its signature and annotations, and described by a schema."""

from __future__ import annotations

import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

_NUMBERS: dict[object, type] = {int: numbers.Integral, float: numbers.Real}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """The parameters of one function.

    Parameters
    ----------
    function
        The function, or the method with its ``self``.
    skip_first
        Leave out the first parameter (``self``).
    """

    def __init__(self, function: Callable[..., Any], *, skip_first: bool = False) -> None:
        signature = _readable_signature(function)
        parameters = list(signature.parameters.values())[1 if skip_first else 0 :]
        self.signature = signature.replace(parameters=parameters)
        hints = _resolved_hints(function)
        self._types = {p.name: hints.get(p.name, Any) for p in parameters}
        self._checks = {name: _check_for(kind) for name, kind in self._types.items()}
        self._parameters = {p.name: p for p in parameters}
        named = [p for p in parameters if p.kind in _NAMED]
        self._known = {p.name for p in named}
        self._required = {p.name for p in named if p.default is p.empty}
        self._simple = len(named) == len(parameters)
        self._accepts_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)

    def bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
        """Fit arguments to the parameters.

        Returns
        -------
        args, kwargs
            The arguments, converted where an annotation asks for it (a dict to a dataclass).
        problems
            One sentence for each argument that is wrong, missing or unknown; empty when all fit.
        """
        names_fit = kwargs.keys() <= self._known and self._required <= kwargs.keys()
        if args or not (self._simple and names_fit):
            problems = self._misfits(args, kwargs)
            if problems:
                return args, kwargs, problems
        problems = []
        if not args:
            keywords = {n: self._convert(n, value, problems) for n, value in kwargs.items()}
            return args, keywords, problems
        names = [p.name for p in self._parameters.values() if p.kind in _POSITIONAL]
        checked = []
        for index, value in enumerate(args):
            name = names[index] if index < len(names) else self._star_name()
            checked.append(self._convert(name, value, problems))
        keywords = {name: self._convert(name, value, problems) for name, value in kwargs.items()}
        return tuple(checked), keywords, problems

    def _misfits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            problems = []
            if not self._accepts_any:
                unknown = [name for name in kwargs if name not in self._known]
                problems += [f"unknown argument {name!r}" for name in unknown]
            positional = [p for p in self._parameters.values() if p.kind in _POSITIONAL]
            given = {p.name for p in positional[: len(args)]} | kwargs.keys()
            problems += [
                f"missing argument {p.name!r}"
                for p in self._parameters.values()
                if p.name in self._required and p.name not in given
            ]
            text = str(error)
            return [*(problems or [text]), f"the signature is {self.signature}"]
        return []

    def _convert(self, name: str, value: Any, problems: list[str]) -> Any:
        check = self._checks.get(name)
        if check is None:
            return value
        try:
            return check(value)
        except (msgspec.ValidationError, ValueError) as error:
            problems.append(f"argument {name!r}: {error}")
            return value

    def _star_name(self) -> str:
        kinds = inspect.Parameter.VAR_POSITIONAL
        return next((p.name for p in self._parameters.values() if p.kind is kinds), "")

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments, an object by name."""
        properties: dict[str, Any] = {}
        required = []
        definitions: dict[str, Any] = {}
        for parameter in self._parameters.values():
            if parameter.kind not in _NAMED:
                continue
            described, more = _schema_for(self._types[parameter.name])
            definitions.update(more)
            if parameter.default is parameter.empty:
                required.append(parameter.name)
            elif isinstance(parameter.default, str | int | float | bool | None):
                described = {**described, "default": parameter.default}
            properties[parameter.name] = described
        schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        schema["additionalProperties"] = self._accepts_any
        if definitions:
            schema["$defs"] = definitions
        return schema


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

Check = Callable[[Any], Any]


def _readable_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return a signature with annotations as objects, not as texts, where they resolve."""
    try:
        return inspect.signature(function, eval_str=True)
    except Exception:  # noqa: BLE001 - an annotation may be any text
        return inspect.signature(function)


def _resolved_hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation may be any text; one that means nothing is no check
        return {}


def _check_for(kind: Any) -> Check | None:
    """Return what checks a value against an annotation, or None when there is nothing to check."""
    if kind in {Any, object} or isinstance(kind, typing.TypeVar):
        return None
    origin = typing.get_origin(kind)
    if origin in {typing.Union, types.UnionType}:
        return _union_check(kind, typing.get_args(kind))
    interface = origin or kind
    if isinstance(interface, type) and interface.__module__ == "collections.abc":
        return _interface_check(interface)
    if isinstance(kind, type) and origin is None and not typing.is_typeddict(kind):
        return _class_check(kind)
    return _structure_check(kind)


def _class_check(kind: type) -> Check:
    accepted: tuple[type, ...] = (kind, *filter(None, [_NUMBERS.get(kind)]))
    convert = _structure_check(kind)

    def check(value: Any) -> Any:
        if isinstance(value, accepted) and not (isinstance(value, bool) and kind in _NUMBERS):
            return value  # subclasses and numpy's numbers stay what they are
        return convert(value) if convert else value

    return check


def _interface_check(interface: type) -> Check:
    def check(value: Any) -> Any:
        if isinstance(value, interface):
            return value
        msg = f"Expected `{interface.__name__}`, got `{type(value).__name__}`"
        raise ValueError(msg)

    return check


def _union_check(kind: Any, members: Iterable[Any]) -> Check | None:
    checks = [_check_for(member) for member in members]
    if None in checks:
        return None

    def check(value: Any) -> Any:
        for member in checks:
            try:
                return member(value)  # type: ignore[misc]
            except (msgspec.ValidationError, ValueError):
                continue
        name = str(kind).replace("typing.", "")
        msg = f"Expected `{name}`, got `{type(value).__name__}`"
        raise ValueError(msg)

    return check


def _structure_check(kind: Any) -> Check | None:
    """Check by msgspec, which looks into containers, dataclasses, literals and constraints."""
    origin = typing.get_origin(kind)

    def check(value: Any) -> Any:
        converted = msgspec.convert(value, kind, strict=True)
        if isinstance(origin, type) and isinstance(value, origin) and _same(converted, value):
            return value
        return converted

    try:
        check(_Nothing())
    except msgspec.ValidationError:
        return check
    except TypeError:
        return None  # an annotation that msgspec does not know: nothing to check by
    return check


class _Nothing:
    """A value that fits no annotation."""


def _same(converted: Any, value: Any) -> bool:
    try:
        return bool(converted == value)
    except Exception:  # noqa: BLE001 - arrays have no truth value, others may raise anything
        return False


def _schema_for(kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    if kind is Any or kind is object:
        return {}, {}
    try:
        (schema,), definitions = msgspec.json.schema_components(
            [kind], schema_hook=_describe_class, ref_template="#/$defs/{name}"
        )
    except TypeError:
        return {"description": str(kind)}, {}
    return schema, definitions


def _describe_class(kind: type) -> dict[str, Any]:
    return {"description": f"a {kind.__module__}.{kind.__qualname__}"}
