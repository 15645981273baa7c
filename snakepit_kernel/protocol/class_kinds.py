"""Blueprints of classes sent by value, for each kind of class that Python and msgspec know.

A blueprint is taken of a class, is sent, and makes a class without state: no methods, no values.
Everything that could refer to the class itself is sent with its state.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import msgspec

from .annotations import annotations_of_class
from .class_registry import known

_T = typing.TypeVar("_T")

_STRUCT_OPTIONS = (
    *("frozen", "eq", "order", "array_like", "gc", "repr_omit_defaults", "omit_defaults"),
    *("forbid_unknown_fields", "cache_hash", "tag", "tag_field"),
)


class ClassBlueprint(NamedTuple):
    """Blueprint of an ordinary class; also of a named tuple, a dataclass, a protocol."""

    meta: Any
    name: str
    bases: tuple[type, ...]
    namespace: dict[str, Any]

    @classmethod
    def of(cls, kind: type) -> Self:
        """Take the blueprint of a class."""
        namespace = _names_of(kind)
        slots = own_slots(kind)
        if slots is not None:
            namespace["__slots__"] = slots
        if isinstance(own := vars(kind).get("__dict__"), property):
            namespace["__dict__"] = own
        return cls(type(kind), kind.__name__, kind.__bases__, namespace)

    def make(self) -> type:
        """Make the class, without its state."""
        namespace = dict(self.namespace)
        if tuple in self.bases and typing.Generic in self.bases:
            namespace["__class_getitem__"] = classmethod(generic_method())
        if _would_run_a_hook(self.bases):
            for quiet in _QUIET:
                with contextlib.suppress(TypeError):  # incompatible memory layouts
                    made = self._make_with(namespace, (quiet, *self.bases))
                    made.__bases__ = self.bases
                    return made
        return self._make_with(namespace, self.bases)

    def _make_with(self, namespace: dict[str, Any], bases: tuple[type, ...]) -> type:
        importable: Any = _importable_part(self.meta)
        if importable is not self.meta:
            return importable.__new__(self.meta, self.name, bases, dict(namespace))  # type: ignore[no-any-return]
        try:
            return self.meta(self.name, bases, dict(namespace))  # type: ignore[no-any-return]
        except TypeError:  # the metaclass requires keywords of the class definition
            if self.meta is type:
                raise
        importable = abc.ABCMeta if issubclass(self.meta, abc.ABCMeta) else type
        return importable.__new__(self.meta, self.name, bases, dict(namespace))  # type: ignore[no-any-return]


class EnumBlueprint(NamedTuple):
    """Blueprint of an enumeration: its members, their values, their parts of a mixed-in class."""

    meta: Any
    name: str
    bases: tuple[type, ...]
    namespace: dict[str, str]
    members: Mapping[str, tuple[Any, tuple[Any, ...] | None]]

    @classmethod
    def of(cls, kind: enum.EnumMeta) -> Self:
        """Take the blueprint of an enumeration."""
        mixed_in = vars(kind)["_member_type_"]
        members = {
            name: (member._value_, _arguments_of(mixed_in, member))
            for name, member in members_of(kind).items()
        }
        return cls(type(kind), kind.__name__, kind.__bases__, _names_of(kind), members)

    def make(self) -> type:
        """Make the enumeration, without running the code that made its members."""
        namespace = enum.EnumMeta.__prepare__(self.name, self.bases)
        parts = list(self.members.values())

        def make_member(cls: Any, place: Any, *_: object) -> Any:
            value, arguments = parts[place[0] if isinstance(place, tuple) else place]
            member = _new_member(cls, cls._member_type_, value, arguments)
            member._value_ = value
            return member

        namespace.update({"__new__": make_member, "__init__": lambda *_: None})
        for place, name in enumerate(self.members):
            namespace[name] = enum.member((place,))
        importable: Any = _importable_part(self.meta)
        made: type = importable.__new__(self.meta, self.name, self.bases, namespace)
        for temporary in ("__init__", "__new_member__"):
            if temporary in vars(made):
                type.__delattr__(made, temporary)
        for name, text in self.namespace.items():
            type.__setattr__(made, name, text)
        return made


def _arguments_of(mixed_in: type, member: Any) -> tuple[Any, ...] | None:
    """Return the arguments of a member's mixed-in class; None for the member's value."""
    new: Any = mixed_in.__new__
    if new is object.__new__:
        return ()
    if issubclass(mixed_in, str):
        return (str.__str__(member),)
    plains: tuple[Any, ...] = (int, float, bytes, tuple, complex)
    for plain in plains:
        if issubclass(mixed_in, plain):
            return (plain.__new__(plain, member),)
    return None


def members_of(kind: enum.EnumMeta) -> Mapping[str, Any]:
    """Return the members of an enumeration by name, aliases included."""
    return kind.__members__


def _new_member(cls: type, mixed_in: Any, value: Any, arguments: tuple[Any, ...] | None) -> Any:
    if arguments is None:
        arguments = value if isinstance(value, tuple) else (value,)
    return object.__new__(cls) if not arguments else mixed_in.__new__(cls, *arguments)


class StructBlueprint(NamedTuple):
    """Blueprint of a ``msgspec.Struct``: its own fields with their defaults, and its options."""

    meta: Any
    name: str
    bases: tuple[type, ...]
    namespace: dict[str, Any]
    fields: Mapping[str, tuple[Any, ...]]
    options: dict[str, Any]
    has_post_init: bool

    @classmethod
    def of(cls, kind: Any) -> Self:
        """Take the blueprint of a struct."""
        names = kind.__struct_fields__
        own = [name for name in names if name in annotations_of_class(kind)]
        defaults = kind.__struct_defaults__
        with_default = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
        fields = {name: _default_of(with_default.get(name, msgspec.NODEFAULT)) for name in own}
        encoded = dict(zip(names, kind.__struct_encode_fields__, strict=True))
        parameters = inspect.signature(kind).parameters
        options = {
            **_options_of(kind),
            "rename": {name: encoded[name] for name in own},
            "kw_only": bool(own) and all(parameters[n].kind is _KEYWORD_ONLY for n in own),
        }
        has_post_init = "__post_init__" in vars(kind)
        namespace = _names_of(kind)
        return cls(
            *(type(kind), kind.__name__, kind.__bases__, namespace, fields, options, has_post_init)
        )

    def make(self) -> type:
        """Make the struct. The types of its fields are set with its state, and not used before."""
        namespace = {**self.namespace, "__annotations__": dict.fromkeys(self.fields, Any)}
        for field, default in self.fields.items():
            if default:
                value, is_factory = default
                namespace[field] = msgspec.field(default_factory=value) if is_factory else value
        if self.has_post_init:  # msgspec binds the one that exists now
            namespace["__post_init__"] = lambda self: type(self).__post_init__(self)
        made: type = self.meta(self.name, self.bases, namespace, **self.options)
        return made


_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


def _options_of(kind: Any) -> dict[str, Any]:
    config = kind.__struct_config__
    options = {
        name: value for name in _STRUCT_OPTIONS if (value := getattr(config, name)) is not None
    }
    inherited = [getattr(base, "__struct_config__", None) for base in kind.__bases__]
    for name in ("weakref", "dict"):  # they must not be set twice
        if getattr(config, name) and not any(getattr(each, name, False) for each in inherited):
            options[name] = True
    return options


def _default_of(default: Any) -> tuple[Any, ...]:
    """Return a default and whether it is made by a function; nothing where there is none."""
    if default is msgspec.NODEFAULT:
        return ()
    factory = getattr(default, "factory", None) if type(default).__name__ == "Factory" else None
    return (default, False) if factory is None else (factory, True)


class TypedDictBlueprint(NamedTuple):
    """Blueprint of a ``TypedDict``, also of typing_extensions; its keys are part of its state."""

    meta: Any
    name: str
    bases: tuple[type, ...]
    namespace: dict[str, Any]

    @classmethod
    def of(cls, kind: type) -> Self:
        """Take the blueprint of a typed dictionary."""
        bases = tuple(base for base in kind.__bases__ if base is not dict)  # Generic, or nothing
        return cls(type(kind), kind.__name__, bases, _names_of(kind))

    def make(self) -> type:
        """Make the typed dictionary, without its state."""
        made: type = self.meta(self.name, self.bases, dict(self.namespace))
        return made


Blueprint = ClassBlueprint | EnumBlueprint | StructBlueprint | TypedDictBlueprint


def blueprint_of(kind: type) -> Blueprint:
    """Take the blueprint of a class of any kind."""
    if isinstance(kind, enum.EnumMeta):
        return EnumBlueprint.of(kind)
    if isinstance(kind, msgspec.StructMeta):
        return StructBlueprint.of(kind)
    if type(kind).__name__ == "_TypedDictMeta":
        return TypedDictBlueprint.of(kind)
    return ClassBlueprint.of(kind)


# -- details ---------------------------------------------------------------------------------------


def _names_of(kind: type) -> dict[str, Any]:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    if "__orig_bases__" in vars(kind):  # without these, typing refuses a bare Generic
        names["__orig_bases__"] = vars(kind)["__orig_bases__"]
    return names


def own_slots(kind: type) -> tuple[str, ...] | None:
    """Return a class's slots, also when ``__slots__`` was an iterator; None if it has none."""
    attributes = vars(kind)
    if "__slots__" not in attributes:
        return None
    slots = [name for name, value in attributes.items() if is_slot(kind, value)]
    slots += [name for name in ("__dict__", "__weakref__") if name in attributes]
    return tuple(slots)


def is_slot(kind: type, value: object) -> bool:
    """Whether an attribute of a class is one of its own slots."""
    return isinstance(value, types.MemberDescriptorType) and value.__objclass__ is kind


class _GenericTuple(NamedTuple, typing.Generic[_T]):
    """A generic named tuple, made to read its method."""


def generic_method() -> Any:
    """Return the method that generic named tuples get from ``typing``."""
    return vars(_GenericTuple)["__class_getitem__"].__func__


def _importable_part(meta: type) -> type:
    """Return the first base of a metaclass that was not received by value."""
    return next(each for each in meta.__mro__ if not known.was_received(each))


def _would_run_a_hook(bases: tuple[type, ...]) -> bool:
    """Whether making a subclass would call an ``__init_subclass__`` that was received by value."""
    return any(
        known.was_received(kind) and "__init_subclass__" in vars(kind)
        for base in bases
        for kind in base.__mro__
    )


def _quiet(*slots: str, has_dict: bool = False) -> type:
    """Make a temporary first base, whose ``__init_subclass__`` does nothing."""

    def do_nothing(_cls: Any, /, **_: object) -> None:
        pass

    namespace: dict[str, Any] = {"__init_subclass__": classmethod(do_nothing)}
    if not has_dict:
        namespace["__slots__"] = slots
    return type("Quiet", (), namespace)


_QUIET = (_quiet(), _quiet(has_dict=True), _quiet("__weakref__"), _quiet("__dict__"))
"""One for each memory layout of a class without slots of its own."""
