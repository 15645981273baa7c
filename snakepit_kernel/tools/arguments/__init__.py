"""Arguments of a tool: checked against its signature and annotations, and described by a schema."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from . import portable
from .annotations import hints_of, signature_of
from .checks import check_for
from .misfits import Misfit
from .schemas import Schemas, parameter_texts, plain

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_MAX_SHAPES = 64
"""Calls of one tool that are known at a glance: by number, names and classes of the arguments."""


class Arguments:
    """The parameters of one function.

    Parameters
    ----------
    signature
        How the function is called.
    hints
        What is checked, by the name of the parameter; nothing of those that are not here.
    texts
        What the parameters mean, by name.
    """

    def __init__(
        self,
        signature: inspect.Signature,
        hints: Mapping[str, Any],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.signature = signature
        self._parameters = list(signature.parameters.values())
        self._texts = texts or {}
        self._hints = {p.name: _hint_for(p, hints.get(p.name, Any)) for p in self._parameters}
        self._checks = {name: check_for(kind) for name, kind in self._hints.items()}
        named = [p for p in self._parameters if p.kind in _NAMED]
        self._known = {p.name for p in named}
        self._required = {p.name for p in named if p.default is p.empty}
        self._positional = [p.name for p in self._parameters if p.kind in _POSITIONAL]
        self._is_simple = len(named) == len(self._parameters)
        self._good_shapes: set[tuple[Any, ...]] = set()
        self._rest = self._name_of(inspect.Parameter.VAR_POSITIONAL)
        self._more = self._name_of(inspect.Parameter.VAR_KEYWORD)

    @classmethod
    def of(cls, function: Callable[..., Any], *, skip_first: bool = False) -> Arguments:
        """Read the parameters of a function, or of a method without its ``self``."""
        signature = signature_of(function)
        parameters = list(signature.parameters.values())[1 if skip_first else 0 :]
        texts = parameter_texts(inspect.getdoc(function))
        return cls(signature.replace(parameters=parameters), hints_of(function), texts)

    def portable(self) -> bytes:
        """Return what another process needs to check arguments, which `restored` takes there."""
        return portable.pack(self.signature, self._hints)

    @classmethod
    def restored(cls, data: bytes) -> Arguments:
        """Restore what `portable` made, without an import.

        A parameter whose annotation names what this process does not have is not checked by type.
        """
        return cls(*portable.unpack(data))

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
        shape = (len(args), *kwargs, *map(type, args), *map(type, kwargs.values()))
        if shape in self._good_shapes:
            return args, kwargs, []
        named = dict(zip(self._positional, args, strict=False))
        if not self._names_fit(named, len(args), kwargs):
            problems = self._misfits(args, kwargs)
            if problems:
                return args, kwargs, problems
        if self._fits_by_its_classes(named | kwargs) and len(self._good_shapes) < _MAX_SHAPES:
            self._good_shapes.add(shape)
        problems = []
        rest = [self._fit(self._rest, value, problems) for value in args[len(named) :]]
        args = (*self._fitted(named, problems).values(), *rest)
        return args, self._fitted(kwargs, problems), problems

    def _fits_by_its_classes(self, given: dict[str, Any]) -> bool:
        """Whether no other values of the same classes could be wrong either."""
        return self._is_simple and all(
            type(value) is self._hints[name] or self._checks[name] is None
            for name, value in given.items()
        )

    def _names_fit(self, named: dict[str, Any], positional: int, kwargs: dict[str, Any]) -> bool:
        """Whether it is plain to see that names and number are right; if not, they may be still."""
        given = named | kwargs
        return (
            self._is_simple
            and len(given) == positional + len(kwargs)
            and given.keys() <= self._known
            and self._required <= given.keys()
        )

    def _fitted(self, given: dict[str, Any], problems: list[str]) -> dict[str, Any]:
        return {name: self._fit(name, value, problems) for name, value in given.items()}

    def _fit(self, name: str, value: Any, problems: list[str]) -> Any:
        check = self._checks[name if name in self._hints else self._more]
        if check is None:
            return value
        try:
            return check(value)
        except Misfit as misfit:
            problems.append(f"argument {name!r}: {misfit}")
            return value

    def _misfits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        """Return what is wrong with the names and the number of arguments."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            named = self._unknown(kwargs) + self._missing(len(args), kwargs)
            return [*(named or [str(error)]), f"the signature is {self.signature}"]
        return []

    def _unknown(self, kwargs: dict[str, Any]) -> list[str]:
        if self._more:
            return []
        return [f"unknown argument {name!r}" for name in kwargs if name not in self._known]

    def _missing(self, positional: int, kwargs: dict[str, Any]) -> list[str]:
        given = {*self._positional[:positional], *kwargs}
        required = [p.name for p in self._parameters if p.name in self._required]
        return [f"missing argument {name!r}" for name in required if name not in given]

    def _name_of(self, kind: object) -> str:
        return next((p.name for p in self._parameters if p.kind is kind), "")

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments, an object by name."""
        schemas = Schemas()
        properties = {
            p.name: self._property(p, schemas) for p in self._parameters if p.kind in _NAMED
        }
        schema: dict[str, Any] = {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in self._required],
            "additionalProperties": schemas.of(self._hints[self._more]) if self._more else False,
        }
        if schemas.definitions:
            schema["$defs"] = schemas.definitions
        return schema

    def _property(self, parameter: inspect.Parameter, schemas: Schemas) -> dict[str, Any]:
        described = schemas.of(self._hints[parameter.name])
        if parameter.name in self._texts:
            described = {"description": self._texts[parameter.name]} | described
        if parameter.default is parameter.empty:
            return described
        try:
            return described | {"default": plain(parameter.default)}
        except (TypeError, ValueError):
            return described  # a default that JSON does not have


def _hint_for(parameter: inspect.Parameter, kind: Any) -> Any:
    """Return an annotation that admits the parameter's own default: ``x: int = None``."""
    return typing.Optional[kind] if parameter.default is None and kind is not Any else kind  # noqa: UP045 - at run time
