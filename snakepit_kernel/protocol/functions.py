"""Pickling of functions, and of other objects with names, that plain pickle gets wrong."""

from __future__ import annotations

import functools
import io
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import cloudpickle

from .class_registry import known
from .sources import sources

_CACHED: Any = type(functools.lru_cache(lambda: None))
_OF_A_CACHE = frozenset({"__wrapped__", "cache_parameters"})
_DISPATCHER = functools.singledispatch(lambda _: None).__code__  # type: ignore[attr-defined]
_OF_A_DISPATCHER = frozenset({"register", "dispatch", "registry", "_clear_cache"})

Reduced = tuple[Any, ...]


def is_by_value(obj: Any) -> bool:
    """Whether an object with a name must be pickled by value: another process cannot import it."""
    name = getattr(obj, "__qualname__", None) or obj.__name__
    module_name = getattr(obj, "__module__", None)
    if module_name is None or module_name == "__main__":
        return True
    found: Any = sys.modules.get(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not obj or _is_registered(module_name)


def _is_registered(module_name: str) -> bool:
    """Whether a module, or its package, was passed to `cloudpickle.register_pickle_by_value`."""
    registered = cloudpickle.list_registry_pickle_by_value()
    return bool(registered) and any(
        f"{module_name}.".startswith(f"{module}.") for module in registered
    )


def copy_of_function(function: types.FunctionType) -> types.FunctionType:
    """Return a copy of a function without its annotations."""
    made = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    made.__doc__, made.__kwdefaults__ = function.__doc__, function.__kwdefaults__
    vars(made).update(vars(function))
    return made


# -- functions with a cache ------------------------------------------------------------------------


def _reduce_cached(function: Any) -> Reduced | None:
    """Reduce a function of `functools.lru_cache` or `cache`, without its cached results."""
    if not is_by_value(function):
        return None
    parameters = function.cache_parameters()
    own = {name: value for name, value in vars(function).items() if name not in _OF_A_CACHE}
    arguments = (function.__wrapped__, parameters["maxsize"], parameters["typed"])
    return _make_cached, arguments, own, None, None, _set_attributes


def _make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    # The function may be incomplete, when it refers to itself: nothing is copied from it here.
    made = _CACHED(function, maxsize, typed, _CacheInfo)
    made.__wrapped__ = function
    made.cache_parameters = lambda: {"maxsize": maxsize, "typed": typed}
    return made


_CacheInfo = type(functools.lru_cache(lambda: None).cache_info())


def _set_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    vars(obj).update(attributes)


def _reduce_cached_property(obj: Any) -> Reduced:
    """Reduce a `functools.cached_property`, which has a lock before Python 3.12."""
    name, text = obj.attrname, obj.__doc__
    return _make_around_stub, (type(obj),), (obj.func, name, text), None, None, _set_property


def _make_around_stub(kind: Callable[[Callable[..., Any]], Any]) -> Any:
    return kind(_stub)


def _set_property(obj: Any, state: tuple[Callable[[Any], Any], str | None, str | None]) -> None:
    obj.func, obj.attrname, obj.__doc__ = state


def _reduce_dispatching_method(obj: functools.singledispatchmethod[Any]) -> Reduced:
    """Reduce a `functools.singledispatchmethod`, which has a cache in Python 3.13."""
    own = {name: value for name, value in vars(obj).items() if name != "_method_cache"}
    return _make_around_stub, (type(obj),), own, None, None, _set_attributes


def _reduce_partial_method(obj: functools.partialmethod[Any]) -> Reduced:
    return _make_partial_method, (obj.func, obj.args, dict(obj.keywords))


def _make_partial_method(func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return functools.partialmethod(func, *args, **keywords)


def _stub(*_: object) -> None:
    """Do nothing, in place of a function that is set later: it may refer to its container."""


# -- functions that dispatch -----------------------------------------------------------------------


def is_dispatcher(function: types.FunctionType) -> bool:
    """Whether a function was made by `functools.singledispatch`."""
    return function.__code__ is _DISPATCHER


def reduce_dispatcher(function: Any) -> Reduced:
    """Reduce a function of `functools.singledispatch`."""
    own = {name: value for name, value in vars(function).items() if name not in _OF_A_DISPATCHER}
    names = {name: getattr(function, name) for name in ("__module__", "__qualname__", "__name__")}
    names["__doc__"] = function.__doc__
    state = (own, names, dict(function.registry))
    return functools.singledispatch, (_stub,), state, None, None, _set_dispatcher


def _set_dispatcher(obj: Any, state: tuple[dict[str, Any], dict[str, Any], dict[Any, Any]]) -> None:
    own, names, registry = state
    vars(obj).update(own)
    for name, value in names.items():
        setattr(obj, name, value)
    for kind, function in registry.items():
        obj.register(kind, function)


# -- names of typing -------------------------------------------------------------------------------


def _reduce_new_type(obj: Any) -> Reduced | None:
    if not is_by_value(obj):
        return None
    state = {"__supertype__": obj.__supertype__, "__module__": obj.__module__}
    return typing.NewType, (obj.__qualname__, object), state, None, None, _set_attributes


def _reduce_parameter(obj: Any) -> Reduced | None:
    """Reduce a ``ParamSpec`` or ``TypeVarTuple`` to an id: its identity matters."""
    if not is_by_value(obj):
        return None
    return _make_parameter, (known.id_of(obj), type(obj), obj.__name__, obj.__module__)


def _make_parameter(parameter_id: str, kind: Any, name: str, module: str) -> Any:
    def make() -> Any:
        made = kind(name)
        made.__module__ = module
        return made

    return known.find_or_make(parameter_id, make)


def _reduce_alias(obj: Any) -> Reduced | None:
    """Reduce a type alias, made by ``type X = …``."""
    if not is_by_value(obj):
        return None
    return type(obj), (obj.__name__, obj.__value__)


# -- objects of this process -----------------------------------------------------------------------


def _reduce_file(file: Any) -> Reduced:
    for name in ("stdout", "stderr"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    msg = (
        f"the open file {getattr(file, 'name', '?')!r} cannot travel: it is open in this process "
        "only; pass its path, or its content"
    )
    raise TypeError(msg)


_reduce_code_without_file = cloudpickle.Pickler.dispatch_table[types.CodeType]


def _reduce_code(code: types.CodeType) -> Reduced:
    """Reduce a code object with its file name, so that errors can show its lines."""
    sources.note(code)
    kind, parts = _reduce_code_without_file(code)
    named = list(parts)
    named[_FILE] = code.co_filename
    return kind, tuple(named)


_FILE = 10
"""Index of the file name among the arguments of a code object, since Python 3.11.

cloudpickle leaves the name out, so that pickles of the same code are equal.
"""

_REDUCERS: dict[type, Callable[[Any], Reduced | None]] = {
    _CACHED: _reduce_cached,
    functools.cached_property: _reduce_cached_property,
    functools.partialmethod: _reduce_partial_method,
    functools.singledispatchmethod: _reduce_dispatching_method,
    typing.NewType: _reduce_new_type,
    typing.ParamSpec: _reduce_parameter,
    typing.TypeVarTuple: _reduce_parameter,
    io.TextIOWrapper: _reduce_file,
    types.CodeType: _reduce_code,
}
if sys.version_info >= (3, 12):
    _REDUCERS[typing.TypeAliasType] = _reduce_alias


def reducer_of(kind: type) -> Callable[[Any], Reduced | None] | None:
    """Return this module's reducer of a type, if any."""
    return _REDUCERS.get(kind)
