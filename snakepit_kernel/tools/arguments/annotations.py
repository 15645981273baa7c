"""Resolution of annotations, and translation of their constraints to ``msgspec.Meta``."""

from __future__ import annotations

import collections.abc
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec

UNIONS: Final = (typing.Union, types.UnionType)

_NUMBER: Final = (int, float)
_CONSTRAINTS: Final[dict[str, type | tuple[type, ...]]] = {
    "gt": _NUMBER,
    "ge": _NUMBER,
    "lt": _NUMBER,
    "le": _NUMBER,
    "multiple_of": _NUMBER,
    "min_length": int,
    "max_length": int,
    "pattern": str,
    "title": str,
    "description": str,
    "examples": list,
}
"""Constraints with the same names in ``msgspec.Meta``, annotated_types and pydantic's ``Field``."""


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return a signature with annotations as objects, not strings, where they can be resolved."""
    try:
        return inspect.signature(function, eval_str=True)
    except Exception:  # noqa: BLE001 - an annotation may be any string
        if sys.version_info >= (3, 14):  # where other annotations may be unresolvable, too
            from annotationlib import Format

            return inspect.signature(function, annotation_format=Format.STRING)
        return inspect.signature(function)


def hints_of(target: Any) -> dict[str, Any]:
    """Return the annotations of a function or a class by name, without unresolvable ones."""
    return {name: normalized(kind) for name, kind in _resolve(target).items()}


def required_keys(typed_dict: Any) -> set[str]:
    """Return the keys that a TypedDict must have.

    Its own ``__required_keys__`` ignores ``Required`` and ``NotRequired`` in annotations that are
    strings, as they all are under ``from __future__ import annotations``.
    """
    required = set(typed_dict.__required_keys__)
    for name, kind in _resolve(typed_dict).items():
        match _qualifier_of(kind):
            case "Required":
                required.add(name)
            case "NotRequired":
                required.discard(name)
    return required


def _resolve(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation may be any text
        return _resolve_one_by_one(inspect.unwrap(target))


def _resolve_one_by_one(target: Any) -> dict[str, Any]:
    """Resolve each annotation alone, so that an unresolvable one does not affect the others."""
    module = sys.modules.get(getattr(target, "__module__", ""))
    namespace = getattr(target, "__globals__", None) or vars(module or types)
    hints: dict[str, Any] = {}
    for name, kind in _unresolved(target).items():
        alone = types.SimpleNamespace(__annotations__={name: kind})
        try:
            hints |= typing.get_type_hints(alone, globalns=namespace, include_extras=True)
        except Exception:  # noqa: BLE001, S112 - the same
            continue
    return hints


def _unresolved(target: Any) -> Mapping[str, Any]:
    if sys.version_info >= (3, 14):
        from annotationlib import Format, get_annotations

        return get_annotations(target, format=Format.FORWARDREF)
    return getattr(target, "__annotations__", {})


def normalized(kind: Any) -> Any:
    """Return an annotation with its constraints as ``msgspec.Meta``, also nested ones.

    Other extras are removed, and so are wrappers that do not constrain a value: ``NewType``,
    ``Required``, ``NotRequired``, ``ReadOnly``.
    """
    if isinstance(kind, typing.NewType):
        return normalized(kind.__supertype__)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        base, metas = normalized(args[0]), tuple(_metas_of(args[1:]))
        return Annotated[(base, *metas)] if metas else base
    if origin in UNIONS:
        return typing.Union[tuple(map(normalized, args))]  # noqa: UP007 - built at run time
    if is_container(origin):
        is_bare = not args and (origin is not tuple or kind is typing.Tuple)  # noqa: UP006 - asked for
        return origin if is_bare else origin[tuple(map(normalized, args))]
    return normalized(args[0]) if _qualifier_of(kind) else kind


def _qualifier_of(kind: Any) -> str | None:
    name = getattr(typing.get_origin(kind), "_name", None)
    return name if name in {"Required", "NotRequired", "ReadOnly"} else None


def is_container(origin: Any) -> bool:
    """Whether the arguments of a generic class are the types of its items."""
    if not isinstance(origin, type):
        return False
    is_interface = origin.__module__ == "collections.abc"
    is_iterable = is_interface and issubclass(origin, collections.abc.Iterable)
    return is_iterable or origin in {list, tuple, set, frozenset, dict}


def exact_classes(kind: Any) -> frozenset[type]:
    """Return the classes whose direct instances match an annotation, whatever their value."""
    if typing.get_origin(kind) in UNIONS:
        return frozenset().union(*map(exact_classes, typing.get_args(kind)))
    return frozenset({kind} if isinstance(kind, type) else ())


def _metas_of(extras: Iterable[Any]) -> Iterator[msgspec.Meta]:
    """Translate constraints, by the names of their attributes.

    So neither annotated_types nor pydantic need be installed. A ``Field`` of pydantic keeps its
    constraints in ``metadata``, a grouped one of annotated_types (``Len``) has them all itself.
    """
    for extra in extras:
        if isinstance(extra, msgspec.Meta):
            yield extra
            continue
        for name, kinds in _CONSTRAINTS.items():
            value = getattr(extra, name, None)
            if isinstance(value, kinds):
                yield msgspec.Meta(**{name: value})  # type: ignore[call-overload]
        metadata = getattr(extra, "metadata", None)
        if isinstance(metadata, list):
            yield from _metas_of(metadata)
