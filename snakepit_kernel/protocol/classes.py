"""Pickling of notebook classes by value: restored in the other process, not defined again.

A class is sent as a blueprint, an id, and its state (methods, attributes). The receiver makes it
once for each id. No user code runs for that: neither a metaclass that the notebook defines, nor a
hook such as ``__init_subclass__``, which have run where the class was defined.
"""

from __future__ import annotations

import abc
import copyreg
import enum
import functools
import hashlib
import io
import itertools
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import msgspec

from .annotations import annotations_of_class
from .class_kinds import Blueprint, blueprint_of, generic_method, is_slot, members_of, own_slots
from .class_registry import SETTERS, OnReceipt, State, known

_LIBRARY_CACHES = ("__msgspec_cache__", "__slotnames__")
"""Attributes in which libraries cache facts about a class; they recreate them."""

_MADE_WITH_A_CLASS = ("__dict__", "__weakref__", "_abc_impl")
_ANNOTATIONS = ("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__")
_LEFT_OUT = frozenset({*_LIBRARY_CACHES, *_MADE_WITH_A_CLASS, *_ANNOTATIONS})
_MADE_WITH_AN_ENUM = ("_member_names_", "_member_map_", "_member_type_", "_value2member_map_")
_MADE_WITH_A_MEMBER = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})

_DEFINITIONS = (
    *(type, types.FunctionType, types.BuiltinFunctionType, classmethod, staticmethod, property),
    *(functools.cached_property, functools.partialmethod, functools.singledispatchmethod),
    type(functools.lru_cache(lambda: None)),
)
_ABSENT = object()
_serials = itertools.count()


def reduce_class(
    kind: type, on_receipt: OnReceipt, can_travel: Callable[[object], bool] | None = None
) -> tuple[Any, ...]:
    """Reduce a class that is pickled by value.

    Parameters
    ----------
    kind
        The class.
    on_receipt
        The receiver's policy for its state.
    can_travel
        Returns whether an attribute with a dunder name (``__x__``) can be pickled. One that cannot
        is left out: a library has put it there.
    """
    state = _state_of(kind)
    if can_travel is not None:
        for name in [name for name in state.attributes if _is_dunder(name)]:
            if not can_travel(state.attributes[name]):
                del state.attributes[name]
    arguments = known.id_of(kind), blueprint_of(kind)
    return _make, arguments, state, None, None, SETTERS[on_receipt]


def _make(class_id: str, blueprint: Blueprint) -> type:
    """Return the class of an id; make it, without state, if it does not exist here."""
    return known.add(class_id, blueprint.make)


def reduce_by_slots(obj: Any) -> tuple[Any, ...] | None:
    """Reduce an object whose class has an exhausted iterator for ``__slots__``; else None."""
    kinds = [kind for kind in type(obj).__mro__ if "__slots__" in vars(kind)]
    if not any(isinstance(vars(kind)["__slots__"], Iterator) for kind in kinds):
        return None
    names = {name for kind in kinds for name in own_slots(kind) or () if not _is_dunder(name)}
    values = {name: getattr(obj, name) for name in names if hasattr(obj, name)}
    return copyreg.__newobj__, (type(obj),), (getattr(obj, "__dict__", None), values)  # type: ignore[attr-defined]


def _state_of(kind: type) -> State:
    attributes = {
        name: value
        for name, value in vars(kind).items()
        if not (name in _LEFT_OUT or is_slot(kind, value) or _is_inherited(kind, name, value))
    }
    slots = own_slots(kind)
    if slots is not None and not isinstance(attributes.get("__slots__"), str | tuple | list | dict):
        attributes["__slots__"] = slots
    if isinstance(kind, msgspec.StructMeta):
        attributes.pop("__slots__", None)
    annotations = annotations_of_class(kind)
    if annotations:
        attributes["__annotations__"] = annotations
    members: dict[str, dict[str, Any]] = {}
    if isinstance(kind, enum.EnumMeta):
        members = {name: _own_attributes(member) for name, member in members_of(kind).items()}
        for name in [*_MADE_WITH_AN_ENUM, *members]:
            attributes.pop(name, None)
    if _is_generic_method(attributes.get("__class_getitem__")):
        del attributes["__class_getitem__"]
    registered: list[type] = []
    if isinstance(kind, abc.ABCMeta):
        registered = [ref() for ref in abc._get_dump(kind)[0]]  # type: ignore[attr-defined] # noqa: SLF001 - as cloudpickle
    stamps = {name: _stamp(value) for name, value in attributes.items() if _is_data(name, value)}
    return State(attributes, stamps, registered, members, next(_serials))


def _is_inherited(kind: type, name: str, value: object) -> bool:
    if len(kind.__bases__) == 1:
        return vars(kind.__bases__[0]).get(name, _ABSENT) is value
    for base in kind.__bases__:
        if name in vars(base):
            return vars(base)[name] is value
    return False


def _own_attributes(member: Any) -> dict[str, Any]:
    return {n: v for n, v in vars(member).items() if n not in _MADE_WITH_A_MEMBER}


def _is_generic_method(value: object) -> bool:
    """Whether this method is ``typing.Generic``'s, which generic named tuples get."""
    return isinstance(value, classmethod) and value.__func__ is generic_method()


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_data(name: str, value: object) -> bool:
    """Whether an attribute is data, which calls may change, and not a definition."""
    return not _is_dunder(name) and not isinstance(getattr(value, "__func__", value), _DEFINITIONS)


# -- digests of attributes -------------------------------------------------------------------------


def _stamp(value: object) -> bytes:
    """Return a digest of a value, to detect whether it has changed."""
    digest = hashlib.blake2b(digest_size=16)
    file = io.BytesIO()

    def add(buffer: pickle.PickleBuffer) -> bool:
        digest.update(buffer.raw())
        return False

    try:
        _Stamper(file, protocol=5, buffer_callback=add).dump(value)
    except Exception:  # noqa: BLE001 - not picklable; pickling the class itself raises the reason
        return b""
    digest.update(file.getbuffer())
    return digest.digest()


class _Stamper(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle is untyped
    """Pickles a value for comparison; classes and functions are represented by their names."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce an object, or leave that to pickle."""
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented or not isinstance(obj, type | types.FunctionType):
            return reduced
        if isinstance(obj, type):
            return str, (known.id_of(obj),)
        return str, (f"{obj.__module__} {obj.__qualname__} {obj.__code__.co_code!r}",)
