"""Validation of a tool's arguments by its signature and annotations, and their JSON Schema."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from . import portable
from .annotations import exact_classes, hints_of, signature_of
from .checks import check_for
from .mismatch import Mismatch
from .schemas import Schemas, as_json, parameter_descriptions

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_MAX_SHAPES = 64
"""Cached shapes of valid calls of a tool: number, names and classes of the arguments."""


class Arguments:
    """The parameters of one function.

    Parameters
    ----------
    signature
        The function's signature.
    hints
        Annotations to check, by the name of the parameter; the others are not checked.
    descriptions
        Descriptions of the parameters, by name.
    """

    def __init__(
        self,
        signature: inspect.Signature,
        hints: Mapping[str, Any],
        descriptions: Mapping[str, str] | None = None,
    ) -> None:
        self.signature = signature
        self._parameters = list(signature.parameters.values())
        self._descriptions = descriptions or {}
        self._hints = {p.name: _hint_for(p, hints.get(p.name, Any)) for p in self._parameters}
        self._checks = {name: check_for(kind) for name, kind in self._hints.items()}
        self._classes = {name: exact_classes(kind) for name, kind in self._hints.items()}
        self._named = [p for p in self._parameters if p.kind in _NAMED]
        self._required = [p.name for p in self._named if p.default is p.empty]
        self._positional = [p.name for p in self._parameters if p.kind in _POSITIONAL]
        self._valid_names: set[tuple[Any, ...]] = set()
        self._valid_shapes: set[tuple[Any, ...]] = set()
        self._var_positional = self._name_of(inspect.Parameter.VAR_POSITIONAL)
        self._var_keyword = self._name_of(inspect.Parameter.VAR_KEYWORD)

    @classmethod
    def of(cls, function: Callable[..., Any], *, skip_first: bool = False) -> Arguments:
        """Read the parameters of a function, or of a method without its ``self``."""
        signature = signature_of(function)
        parameters = list(signature.parameters.values())[1 if skip_first else 0 :]
        descriptions = parameter_descriptions(inspect.getdoc(function))
        return cls(signature.replace(parameters=parameters), hints_of(function), descriptions)

    def portable(self) -> bytes:
        """Return data with which another process checks arguments, see `restored`."""
        return portable.pack(self.signature, self._hints)

    @classmethod
    def restored(cls, data: bytes) -> Arguments:
        """Restore what `portable` made, without an import.

        A parameter whose annotation names a class that this process does not have is not checked.
        """
        return cls(*portable.unpack(data))

    def bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
        """Fit arguments to the parameters.

        Returns
        -------
        args, kwargs
            The arguments, converted where an annotation requires it (a dict to a dataclass).
        problems
            One sentence for each argument that is wrong, missing or unknown; empty when all fit.
        """
        shape = (len(args), *kwargs, *map(type, args), *map(type, kwargs.values()))
        if shape in self._valid_shapes:
            return args, kwargs, []
        names = (len(args), *kwargs)
        if names not in self._valid_names:
            if problems := self._wrong_names(args, kwargs):
                return args, kwargs, problems
            _cache(self._valid_names, names)
        named = dict(zip(self._positional, args, strict=False))
        if self._match_by_class(named | kwargs):
            _cache(self._valid_shapes, shape)
        problems = []
        rest = [self._check(self._var_positional, value, problems) for value in args[len(named) :]]
        named = {name: self._check(name, value, problems) for name, value in named.items()}
        kwargs = {name: self._check(name, value, problems) for name, value in kwargs.items()}
        return (*named.values(), *rest), kwargs, problems

    def _match_by_class(self, given: dict[str, Any]) -> bool:
        """Whether all values of these classes are valid."""
        return not (self._var_positional or self._var_keyword) and all(
            self._checks[name] is None or type(value) in self._classes[name]
            for name, value in given.items()
        )

    def _check(self, name: str, value: Any, problems: list[str]) -> Any:
        check = self._checks[name if name in self._hints else self._var_keyword]
        if check is None:
            return value
        try:
            return check(value)
        except Mismatch as mismatch:
            problems.append(f"argument {name!r}: {mismatch}")
            return value

    def _wrong_names(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        """Return what is wrong with the names and the number of arguments."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            known = {p.name for p in self._named}
            given = {*self._positional[: len(args)], *kwargs}
            unknown = [] if self._var_keyword else [name for name in kwargs if name not in known]
            problems = [
                *(f"unknown argument {name!r}" for name in unknown),
                *(f"missing argument {name!r}" for name in self._required if name not in given),
            ]
            return [*(problems or [str(error)]), f"the signature is {self.signature}"]
        return []

    def _name_of(self, kind: object) -> str:
        return next((p.name for p in self._parameters if p.kind is kind), "")

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments, an object by name."""
        schemas = Schemas()
        properties = {p.name: self._property(p, schemas) for p in self._named}
        schema: dict[str, Any] = {
            "type": "object",
            "properties": properties,
            "required": list(self._required),
            "additionalProperties": schemas.of(self._hints[self._var_keyword])
            if self._var_keyword
            else False,
        }
        if schemas.definitions:
            schema["$defs"] = schemas.definitions
        return schema

    def _property(self, parameter: inspect.Parameter, schemas: Schemas) -> dict[str, Any]:
        described = schemas.of(self._hints[parameter.name])
        if parameter.name in self._descriptions:
            described = {"description": self._descriptions[parameter.name]} | described
        if parameter.default is parameter.empty:
            return described
        try:
            return described | {"default": as_json(parameter.default)}
        except (TypeError, ValueError):
            return described  # a default that JSON does not have


def _hint_for(parameter: inspect.Parameter, kind: Any) -> Any:
    """Return an annotation that admits the parameter's own default: ``x: int = None``."""
    return typing.Optional[kind] if parameter.default is None and kind is not Any else kind  # noqa: UP045 - at run time


def _cache(known: set[tuple[Any, ...]], shape: tuple[Any, ...]) -> None:
    if len(known) < _MAX_SHAPES:
        known.add(shape)
