"""Pickling of values, with large buffers out of band.

What was defined in a notebook (functions, lambdas, classes) is pickled by value, with cloudpickle;
what can be imported is pickled by name.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from ..errors import ValueTooLarge
from .annotations import annotations_of_function
from .class_registry import OnReceipt, renew_shared, to_renew
from .classes import reduce_by_slots, reduce_class
from .culprits import culprit_of
from .encoders import encoders
from .frames import MAX_BUFFERS, MAX_BYTES
from .function_pickles import IMMUTABLE, FunctionPickles
from .functions import copy_of_function, is_by_value, is_dispatcher, reduce_dispatcher
from .objects import reduce_object
from .unserializable import Policy, marker

OUT_OF_BAND_BYTES = 8192
"""Buffers from this size on are sent out of band."""

MAX_VALUE_BYTES = MAX_BYTES
"""Default limit of one value's size."""

_ANNOTATIONS_ARE_LAZY = sys.version_info >= (3, 14)

_SHALLOW_ITEMS = 32
"""Largest container that `is_plain` examines."""

Pickled = tuple[bytes, list[memoryview]]


class BoundBuffers(list[memoryview]):
    """The buffers of a pickle in which something stands for a value that one worker has.

    Attributes
    ----------
    references
        What was pickled so, see `Encoders.bind`.
    """

    def __init__(self, buffers: Iterable[memoryview], references: Sequence[Any]) -> None:
        super().__init__(buffers)
        self.references = references


@dataclass(frozen=True, slots=True)
class Codec:
    """Settings of pickling, and the pickling itself.

    Attributes
    ----------
    max_bytes
        Maximum size of one value, its buffers included.
    unserializable
        Replacement of a part that cannot be pickled: ``"type"``, a marker with its type;
        ``"repr"``, one with its text as well, shortened and without secrets; ``"error"``, none:
        pickling the whole value fails.
    cannot_send_code_reason
        Why functions and classes cannot be pickled by value; empty when they can.
    on_receipt
        The receiver's policy for a class that it has: see `OnReceipt`.
    resolves_annotations
        Whether string annotations of functions are replaced by the objects they name, which the
        receiver cannot look up. Those of classes are always replaced.
    """

    max_bytes: int = MAX_VALUE_BYTES
    unserializable: Policy = "type"
    cannot_send_code_reason: str = ""
    on_receipt: OnReceipt = "keep"
    resolves_annotations: bool = False

    def dumps(self, value: object) -> Pickled:
        """Pickle a value, all of which can be pickled.

        Returns
        -------
        body
            The pickle.
        buffers
            Large contiguous data (arrays) that the pickle refers to; not copied.

        Raises
        ------
        ValueTooLarge
            It exceeds `max_bytes`. Pickling stops as soon as that is known.
        Exception
            Whatever pickling raises for a value that cannot be pickled.
        """
        if is_plain(value):
            return self._dumps_plain(value), []
        return self._dumps_all(value)

    def _dumps_plain(self, value: object) -> bytes:
        body = pickle.dumps(value, protocol=5)
        if len(body) > self.max_bytes:
            raise ValueTooLarge(self.max_bytes)
        return body

    def dumps_whole(self, value: object) -> bytes:
        """Pickle a value with its buffers in band. Raises what `dumps` raises."""
        if is_plain(value):
            return self._dumps_plain(value)
        return self._dumps_all(value, in_one_piece=True)[0]

    def dumps_call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Pickled:
        """Pickle a function with its arguments. Raises what `dumps` raises."""
        if is_plain(args) and is_plain(kwargs):
            pickled: object = None
            if _is_importable(function):
                pickled = function
            elif not self.cannot_send_code_reason:
                pickled = _function_pickles.get(function, self._dumps_all)
            if pickled is not None:
                body = pickle.dumps((pickled, args, kwargs), protocol=5)
                if len(body) <= self.max_bytes:
                    return body, []
        return self.dumps((function, args, kwargs))

    def dumps_with_markers(self, value: object) -> Pickled:
        """Pickle a value, with markers in place of parts that cannot be pickled.

        Raises
        ------
        ValueTooLarge
            As for `dumps`.
        Exception
            As for `dumps`, if that is the policy.
        """
        if type(value) in IMMUTABLE:
            return self._dumps_plain(value), []
        try:
            return self.dumps(value)
        except ValueTooLarge:
            raise
        except Exception:
            if self.unserializable == "error":
                raise
        try:
            return self._dumps(_TolerantPickler, value)
        except ValueTooLarge:
            raise
        except Exception:  # noqa: BLE001 - a part fails too late to be replaced alone
            return self.dumps(marker(value, self.unserializable))

    def can_travel(self, value: object) -> bool:
        """Whether a value can be pickled."""
        try:
            self.dumps(value)
        except Exception:  # noqa: BLE001 - whatever the reason
            return False
        return True

    def _dumps_all(self, value: object, *, in_one_piece: bool = False) -> Pickled:
        try:
            return self._dumps(_Pickler, value, in_one_piece=in_one_piece)
        except ValueTooLarge:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the reason
            try:
                return self._dumps(_ThoroughPickler, value, in_one_piece=in_one_piece)
            except Exception:  # noqa: BLE001 - the first error names the reason
                raise error from None

    def _dumps(
        self, make_pickler: type[_Pickler], value: object, *, in_one_piece: bool = False
    ) -> Pickled:
        file = _LimitedFile(self.max_bytes)
        buffers: list[memoryview] = []

        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if view.nbytes < OUT_OF_BAND_BYTES or len(buffers) == MAX_BUFFERS:
                return True
            file.reserve(view.nbytes)
            buffers.append(view)
            return False

        callback = None if in_one_piece else keep_in_band
        pickler = make_pickler(file, protocol=5, buffer_callback=callback, codec=self)
        pickler.dump(value)
        if pickler.references:
            return file.getvalue(), BoundBuffers(buffers, pickler.references)
        return file.getvalue(), buffers


_function_pickles = FunctionPickles()


class _LimitedFile(io.BytesIO):
    """A file that refuses to grow beyond a limit."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes
        self._left_bytes = limit_bytes

    def reserve(self, count: int) -> None:
        """Count bytes towards the limit.

        Raises
        ------
        ValueTooLarge
            They exceed it.
        """
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise ValueTooLarge(self._limit_bytes)

    def write(self, data: Any, /) -> int:
        """Write within the limit."""
        self.reserve(memoryview(data).nbytes)
        return super().write(data)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle is untyped
    """Pickles by value what a notebook defines, and by its encoder what has one.

    Parameters
    ----------
    codec
        The settings.
    """

    def __init__(self, *args: Any, codec: Codec, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._codec = codec
        self.references: list[Any] = []

    def reducer_override(self, obj: Any) -> Any:
        """Reduce an object, or leave that to pickle."""
        kind = type(obj)
        encoded = encoders.reducers.get(kind)
        if encoded is not None:
            if kind in encoders.bound:
                self.references.append(obj)
            return encoded(obj)
        if issubclass(kind, type) or kind is types.FunctionType:
            return self._reduce_definition(obj)
        if self._codec.cannot_send_code_reason and kind is types.CodeType:
            raise self._code_error(f"function {obj.co_name}")
        reduced = reduce_object(obj, kind)
        return NotImplemented if reduced is None else reduced

    def _reduce_definition(self, obj: Any) -> Any:
        if obj.__module__ == "builtins":
            return super().reducer_override(obj)  # it handles those that have no name there
        if not is_by_value(obj):
            return NotImplemented
        if self._codec.cannot_send_code_reason:
            what = "class" if isinstance(obj, type) else "function"
            raise self._code_error(f"{what} {obj.__qualname__}")
        if isinstance(obj, type):
            return self._reduce_class(obj)
        return reduce_dispatcher(obj) if is_dispatcher(obj) else self._reduce_function(obj)

    def _reduce_function(self, function: types.FunctionType) -> Any:
        if not (self._codec.resolves_annotations or _ANNOTATIONS_ARE_LAZY) or not _has_annotations(
            function
        ):
            return self._dynamic_function_reduce(function)
        annotations = annotations_of_function(function)
        if _ANNOTATIONS_ARE_LAZY:  # else they would be evaluated again
            function = copy_of_function(function)
        reduced = self._dynamic_function_reduce(function)
        _, attributes = reduced[2]
        attributes["__annotations__"] = annotations
        return reduced

    def _reduce_class(self, kind: type) -> Any:
        return reduce_class(kind, self._codec.on_receipt)

    def _code_error(self, called: str) -> TypeError:
        return TypeError(f"{called} would travel by value: {self._codec.cannot_send_code_reason}")


def _has_annotations(function: types.FunctionType) -> bool:
    if sys.version_info >= (3, 14):  # where reading them evaluates them
        return function.__annotate__ is not None
    return bool(function.__annotations__)


class _ThoroughPickler(_Pickler):
    """Second attempt at values that `_Pickler` cannot pickle."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce an object, or leave that to pickle."""
        return reduce_by_slots(obj) or super().reducer_override(obj)

    def _reduce_class(self, kind: type) -> Any:
        return reduce_class(kind, self._codec.on_receipt, self._codec.can_travel)


class _TolerantPickler(_ThoroughPickler):
    """Replaces each part that cannot be pickled by a marker."""

    def reducer_override(self, obj: Any) -> Any:
        """Reduce an object, or return its marker."""
        policy = self._codec.unserializable
        try:
            if self._codec.cannot_send_code_reason:
                super().reducer_override(type(obj))  # fails if its class cannot be pickled
            reduced = super().reducer_override(obj)
        except Exception:  # noqa: BLE001 - an encoder that fails
            return marker(obj, policy).__reduce__()
        if reduced is not NotImplemented or isinstance(obj, type | types.FunctionType):
            return reduced  # pickle looks the latter up by name
        reduce = self.dispatch_table.get(type(obj))
        try:
            return obj.__reduce_ex__(5) if reduce is None else reduce(obj)
        except Exception:  # noqa: BLE001 - the object cannot be pickled
            return marker(obj, policy).__reduce__()


def loads(body: bytes | memoryview, buffers: Sequence[bytearray | memoryview] = ()) -> Any:
    """Restore a value from its pickle. Only for bytes of an authenticated peer."""
    value = pickle.loads(body, buffers=buffers)  # noqa: S301 - from an authenticated peer, or the user's store
    if to_renew:
        renew_shared()
    return value


def pickled(
    codec: Codec,
    tool: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    to: str = "a worker",
    kind: str = "argument",
) -> Pickled:
    """Pickle the arguments of a call.

    Raises
    ------
    TypeError, ValueError
        An argument cannot be pickled, or is too large; it is named, with the part at fault.
    """
    try:
        if IMMUTABLE.issuperset(map(type, args)) and IMMUTABLE.issuperset(
            map(type, kwargs.values())
        ):
            body = pickle.dumps((tuple(args), dict(kwargs)), protocol=5)
            if len(body) <= codec.max_bytes:
                return body, []
        return codec.dumps((tuple(args), dict(kwargs)))
    except Exception as error:
        named = [(f"{kind} {i + 1}", value) for i, value in enumerate(args)]
        named += [(f"{kind} {name!r}", value) for name, value in kwargs.items()]
        culprits = [(label, value) for label, value in named if not codec.can_travel(value)]
        which = ", ".join(label for label, _ in culprits) or f"one {kind}"
        parts = [value for _, value in culprits]
        raise cannot_travel(codec, f"{which} of {tool}", parts, error, to=to) from error


def cannot_travel(
    codec: Codec, what: str, values: Sequence[object], error: Exception, *, to: str = "a worker"
) -> Exception:
    """Return the error for something that cannot be pickled, with the reason and the part at fault.

    Parameters
    ----------
    codec
        The codec that has failed.
    what
        The object's name in the error.
    values
        Its parts.
    error
        What pickling raised.
    to
        Where it was to be sent.
    """
    if isinstance(error, ValueTooLarge):
        return ValueError(f"{what} cannot travel to {to}: {error}")
    culprits = [culprit_of(value, codec.can_travel) for value in values]
    at_fault = ", ".join(culprit for culprit in culprits if culprit)
    why = f"; at fault is {at_fault}" if at_fault else ""
    return TypeError(f"{what} cannot travel to {to}: {error}{why}")


def _is_importable(function: Callable[..., Any]) -> bool:
    """Whether a function is pickled by name, so that plain pickle suffices."""
    if type(function) not in _IMPORTABLE:
        return False
    module = function.__module__
    if module == "__main__" or module not in sys.modules:
        return False
    named = getattr(sys.modules[module], function.__qualname__, None)
    return named is function and not cloudpickle.list_registry_pickle_by_value()


_IMPORTABLE = frozenset({types.FunctionType, types.BuiltinFunctionType})


def is_plain(value: object, depth: int = 3) -> bool:
    """Whether a value consists of few plain values only, which plain pickle does 5 times faster."""
    kind = type(value)
    if kind in IMMUTABLE:
        return True
    if depth == 0:
        return False
    items: Iterable[object]
    if kind is tuple or kind is list:
        items = value  # type: ignore[assignment]
    elif kind is dict:
        items = value.values()  # type: ignore[attr-defined]
        for key in value:  # type: ignore[attr-defined]
            if type(key) not in IMMUTABLE:
                return False
    else:
        return False
    if len(value) > _SHALLOW_ITEMS:  # type: ignore[arg-type]
        return False
    for item in items:  # noqa: SIM110 - a generator would double the time of a small call
        if not is_plain(item, depth - 1):
            return False
    return True
