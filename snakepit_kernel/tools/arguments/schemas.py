"""JSON Schemas (2020-12) of annotations."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import json
import pathlib
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from .annotations import UNIONS, is_container

_REFERENCE: Final = "#/$defs/{}"

_PARAMETERS: Final = re.compile(
    r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-+$|\Z)", re.MULTILINE | re.DOTALL
)
_PARAMETER: Final = re.compile(r"(?m)^(\S[^:\n]*).*\n((?:[ \t]+\S.*\n?|\n)+)")


class Schemas:
    """Schemas of one document, which share its definitions.

    Attributes
    ----------
    definitions
        The targets of ``#/$defs/NAME``.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of an annotation; for types that JSON does not have, a description."""
        try:
            (schema,), definitions = msgspec.json.schema_components(
                [kind], schema_hook=self._of_class, ref_template=_REFERENCE.format("{name}")
            )
        except Exception:  # noqa: BLE001 - ambiguous unions, bad annotations
            return self._by_parts(kind)
        return self._merge(schema, definitions)

    def _by_parts(self, kind: Any) -> dict[str, Any]:
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin is Annotated:
            named = [(n, meta) for n in ("title", "description") for meta in kind.__metadata__]
            texts = {name: text for name, meta in named if (text := getattr(meta, name, None))}
            return self.of(args[0]) | texts
        if origin in UNIONS:
            return {"anyOf": [self.of(arg) for arg in args]}
        if origin is Literal:
            return {"enum": [as_json(choice) for choice in args]}
        if is_container(origin):
            return self._of_container(origin, args)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return {"title": kind.__name__, "enum": [as_json(member) for member in kind]}
        return {"description": f"a {inspect.formatannotation(kind)}"}

    def _of_container(self, origin: type, args: tuple[Any, ...]) -> dict[str, Any]:
        if issubclass(origin, collections.abc.Mapping):
            return {"type": "object", "additionalProperties": self.of(args[1])}
        if issubclass(origin, tuple) and args[1:] != (...,):
            items = [self.of(arg) for arg in args]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        return {"type": "array", "items": self.of(args[0])}

    def _of_class(self, kind: Any) -> dict[str, Any]:
        if hasattr(kind, "model_json_schema"):  # pydantic's
            schema = kind.model_json_schema(ref_template=_REFERENCE.format("{model}"))
            return self._merge(schema, schema.pop("$defs", {}))
        if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
            return {"type": "string", "format": "path"}
        return {"description": f"a {inspect.formatannotation(kind)}"}

    def _merge(self, schema: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
        """Add definitions; return the schema with references to their new names."""
        names = {name: self._free_name(name, item) for name, item in definitions.items()}
        for name, item in definitions.items():
            self.definitions[names[name]] = _renamed(item, names)
        renamed: dict[str, Any] = _renamed(schema, names)
        return renamed

    def _free_name(self, name: str, definition: Any) -> str:
        """Return a name that no other definition has."""
        found, number = name, 1
        while self.definitions.get(found, definition) != definition:
            number += 1
            found = f"{name}_{number}"
        return found


def as_json(value: Any) -> Any:
    """Convert a value to JSON data.

    Raises
    ------
    TypeError, ValueError
        JSON cannot hold it.
    """
    data = msgspec.to_builtins(value, str_keys=True, enc_hook=_of_other_class)
    return json.loads(json.dumps(data, allow_nan=False))


def _of_other_class(value: Any) -> Any:
    if hasattr(value, "model_dump"):  # pydantic's
        return value.model_dump(mode="json")
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if getattr(value, "shape", None) == ():  # numpy's numbers
        return value.item()
    raise TypeError(value)


def parameter_descriptions(docstring: str | None) -> dict[str, str]:
    """Return the description of each parameter in a numpydoc docstring."""
    section = _PARAMETERS.search(inspect.cleandoc(docstring or ""))
    texts: dict[str, str] = {}
    for names, text in _PARAMETER.findall(section[1] if section else ""):
        texts |= {name.strip(" *"): " ".join(text.split()) for name in names.split(",")}
    return texts


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    if isinstance(node, list):
        return [_renamed(item, names) for item in node]
    if not isinstance(node, dict):
        return node
    renamed = {key: _renamed(item, names) for key, item in node.items()}
    reference = node.get("$ref")
    if isinstance(reference, str):
        name = reference.removeprefix("#/$defs/")
        renamed["$ref"] = f"#/$defs/{names.get(name, name)}"
    return renamed
