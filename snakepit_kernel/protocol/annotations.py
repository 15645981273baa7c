"""Annotations of classes and functions pickled by value, resolved to objects.

The receiver cannot look their names up.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable
from typing import Any


def annotations_of_class(kind: type) -> dict[str, Any]:
    """Return the annotations of a class without those of its bases."""
    return _resolve(kind, _raw_annotations(kind))


def annotations_of_function(function: types.FunctionType) -> dict[str, Any]:
    """Return the annotations of a function."""
    return _resolve(function, _raw_annotations(function))


def _raw_annotations(obj: Any) -> dict[str, Any]:
    """Return annotations unresolved: since Python 3.14 they are evaluated lazily."""
    if sys.version_info < (3, 14):
        has = vars(obj).get("__annotations__") if isinstance(obj, type) else obj.__annotations__
        return dict(has or {})
    import annotationlib

    try:
        return annotationlib.get_annotations(obj)
    except Exception:  # noqa: BLE001 - names imported for type checkers only, for example
        return annotationlib.get_annotations(obj, format=annotationlib.Format.STRING)


def _resolve(obj: type | Callable[..., Any], annotations: dict[str, Any]) -> dict[str, Any]:
    """Evaluate annotations that are strings; keep those that cannot be evaluated here."""
    if not any(isinstance(annotation, str) for annotation in annotations.values()):
        return annotations
    try:
        hints = typing.get_type_hints(obj, include_extras=True)
    except Exception:  # noqa: BLE001 - a string may be anything; so each is evaluated alone
        return {name: _evaluate(obj, text) for name, text in annotations.items()}
    return {name: hints.get(name, annotation) for name, annotation in annotations.items()}


def _evaluate(obj: Any, annotation: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    names = vars(sys.modules.get(obj.__module__, typing))
    try:
        return eval(annotation, getattr(obj, "__globals__", names))  # noqa: S307 - as typing does; it is the user's own
    except Exception:  # noqa: BLE001 - as above
        return annotation
