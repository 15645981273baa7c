"""Values: pickles that keep value and type, with big buffers out of band.

What was defined in a notebook (functions, lambdas, classes) travels by value, by cloudpickle;
what can be imported travels by its name.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
import types
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cloudpickle

from ..errors import ValueTooLarge
from .encoders import encoders
from .frames import MAX_BUFFERS
from .unserializable import Policy, marker

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
OUT_OF_BAND_BYTES = 8192
"""Buffers from this size on travel beside the pickle, not in it."""

MAX_VALUE_BYTES = 1 << 32
"""What one value may take when the pool was not told otherwise."""

_SHALLOW_ITEMS = 32
"""Items of a container that are looked at in search of a shortcut."""

Pickled = tuple[bytes, list[memoryview]]


@dataclass(frozen=True, slots=True)
class Codec:
    """How values are made ready to travel.

    Attributes
    ----------
    max_bytes
        What one value may take, its buffers included.
    unserializable
        What stands in the place of a part that cannot travel: ``"type"``, a marker with its type;
        ``"repr"``, one with its text as well, shortened and without secrets; ``"error"``, nothing:
        the whole value cannot travel then.
    why_no_code
        Why functions and classes cannot travel by value; empty when they can.
    """

    max_bytes: int = MAX_VALUE_BYTES
    unserializable: Policy = "type"
    why_no_code: str = ""

    def dumps(self, value: object) -> Pickled:
        """Pickle a value, all of which can travel.

        Returns
        -------
        body
            The pickle.
        buffers
            Large contiguous data (arrays) that the pickle refers to; not copied.

        Raises
        ------
        ValueTooLarge
            It takes more than it may. That is found out on the way, not when it is too late.
        Exception
            Whatever pickling raises for a value that cannot travel.
        """
        if is_plain(value):
            return self._dumps_plain(value), []
        return self._dumps(self._strict, value)

    def _dumps_plain(self, value: object) -> bytes:
        body = pickle.dumps(value, protocol=5)
        if len(body) > self.max_bytes:
            raise ValueTooLarge(self.max_bytes)
        return body

    def dumps_whole(self, value: object) -> bytes:
        """Pickle a value with everything in one piece. Raises what `dumps` raises."""
        if is_plain(value):
            return self._dumps_plain(value)
        file = _Limited(self.max_bytes)
        self._strict(file, protocol=5).dump(value)
        return file.getvalue()

    def dumps_call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Pickled:
        """Pickle a function with its arguments. Raises what `dumps` raises."""
        if _has_name(function) and is_plain(args) and is_plain(kwargs):
            body = pickle.dumps((function, args, kwargs), protocol=5)
            if len(body) <= self.max_bytes:
                return body, []
        return self.dumps((function, args, kwargs))

    def dumps_what_can_travel(self, value: object) -> Pickled:
        """Pickle a value, with markers in the place of what cannot travel.

        Raises
        ------
        ValueTooLarge
            As for `dumps`.
        Exception
            As for `dumps`, if that is the policy.
        """
        try:
            return self.dumps(value)
        except ValueTooLarge:
            raise
        except Exception:
            if self.unserializable == "error":
                raise
        try:
            return self._dumps(self._tolerant, value)
        except ValueTooLarge:
            raise
        except Exception:  # noqa: BLE001 - a part of it fails too late to be left out
            return self.dumps(marker(value, self.unserializable))

    def _strict(self, *args: Any, **kwargs: Any) -> _Pickler:
        return _Pickler(*args, why_no_code=self.why_no_code, **kwargs)

    def _tolerant(self, *args: Any, **kwargs: Any) -> _Pickler:
        return _TolerantPickler(
            *args, policy=self.unserializable, why_no_code=self.why_no_code, **kwargs
        )

    def _dumps(self, make_pickler: Callable[..., _Pickler], value: object) -> Pickled:
        file = _Limited(self.max_bytes)
        buffers: list[memoryview] = []

        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if view.nbytes < OUT_OF_BAND_BYTES or len(buffers) == MAX_BUFFERS:
                return True
            file.take(view.nbytes)
            buffers.append(view)
            return False

        make_pickler(file, protocol=5, buffer_callback=keep_in_band).dump(value)
        return file.getvalue(), buffers


class _Limited(io.BytesIO):
    """A file that refuses to grow beyond a limit."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes
        self._left_bytes = limit_bytes

    def take(self, count: int) -> None:
        """Count bytes.

        Raises
        ------
        ValueTooLarge
            There is no room for them.
        """
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise ValueTooLarge(self._limit_bytes)

    def write(self, data: Any, /) -> int:
        """Write if there is room."""
        self.take(memoryview(data).nbytes)
        return super().write(data)


def _code_with_its_file(code: types.CodeType) -> Any:
    """Take a code object apart, and leave it the name of its file.

    cloudpickle 3.1.3 replaces that. Without it no traceback shows the line of a notebook's code.
    """
    make, arguments, *rest = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    named = list(arguments)
    named[_FILENAME] = code.co_filename
    return make, tuple(named), *rest


_FILENAME = 10
"""Where the file's name stands among the arguments of ``types.CodeType``, since Python 3.11."""


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle is untyped
    """Pickles by value what a notebook defines, and by its encoder what has one."""

    dispatch_table: ClassVar[Mapping[type, Callable[[Any], Any]]] = ChainMap(
        {types.CodeType: _code_with_its_file}, *cloudpickle.Pickler.dispatch_table.maps
    )

    def __init__(self, *args: Any, why_no_code: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._why_no_code = why_no_code

    def reducer_override(self, obj: Any) -> Any:
        """Take an object apart, or leave that to pickle."""
        encoded = encoders.reducers.get(type(obj))
        if encoded is not None:
            return encoded(obj)
        reduced = super().reducer_override(obj)
        if self._why_no_code and _is_code(obj, reduced):
            msg = f"{_called(obj)} would travel by value: {self._why_no_code}"
            raise TypeError(msg)
        if isinstance(obj, type) and reduced is not NotImplemented and "__slots__" in vars(obj):
            _keep_slots(obj, reduced)
        return reduced


def _is_code(obj: object, reduced: object) -> bool:
    """Whether an object is code that travels by value, and so belongs to one version of Python."""
    if isinstance(obj, types.CodeType):
        return True
    return reduced is not NotImplemented and isinstance(obj, type | types.FunctionType)


def _called(code: Any) -> str:
    kind = "class" if isinstance(code, type) else "function"
    return f"{kind} {getattr(code, '__qualname__', '') or code.co_name}"


def _keep_slots(kind: type, reduced: Any) -> None:
    """Have a class made anew with its ``__slots__``.

    cloudpickle makes it without, and sets them afterwards, when they are an attribute like others:
    what is in the slots of an object comes back as its ``__dict__``, which it does not have here.
    """
    for argument in reduced[1]:
        if isinstance(argument, dict):  # what the class is made with
            argument.setdefault("__slots__", vars(kind)["__slots__"])
            return


class _TolerantPickler(_Pickler):
    """Puts a marker in the place of each part that cannot be pickled."""

    def __init__(self, *args: Any, policy: Policy, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._policy = policy

    def reducer_override(self, obj: Any) -> Any:
        """Take an object apart, or give its marker."""
        try:
            if self._why_no_code:
                super().reducer_override(type(obj))  # whose class cannot travel, cannot either
            reduced = super().reducer_override(obj)
        except Exception:  # noqa: BLE001 - an encoder that fails
            return marker(obj, self._policy).__reduce__()
        if reduced is not NotImplemented or isinstance(obj, type | types.FunctionType):
            return reduced  # pickle finds the latter by their names
        reduce = self.dispatch_table.get(type(obj))
        try:
            return obj.__reduce_ex__(5) if reduce is None else reduce(obj)
        except Exception:  # noqa: BLE001 - what pickling raises for what cannot travel
            return marker(obj, self._policy).__reduce__()


def loads(body: bytes | memoryview, buffers: Sequence[bytearray | memoryview] = ()) -> Any:
    """Restore a value from its pickle. Only for bytes of an authenticated peer."""
    return pickle.loads(body, buffers=buffers)


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
        An argument cannot travel, or is too large; it is named.
    """
    try:
        return codec.dumps((tuple(args), dict(kwargs)))
    except Exception as error:
        named = [(f"{kind} {i + 1}", value) for i, value in enumerate(args)]
        named += [(f"{kind} {name!r}", value) for name, value in kwargs.items()]
        culprits = [label for label, value in named if not _can_travel(codec, value)]
        which = ", ".join(culprits) or f"one {kind}"
        msg = f"{which} of {tool} cannot travel to {to}: {error}"
        raise (ValueError if isinstance(error, ValueTooLarge) else TypeError)(msg) from error


def _can_travel(codec: Codec, value: object) -> bool:
    with contextlib.suppress(Exception):
        codec.dumps(value)
        return True
    return False


def _has_name(function: Callable[..., Any]) -> bool:
    """Whether a function travels by its name, so that plain pickle will do."""
    if type(function) not in _NAMED:
        return False
    module = function.__module__
    if module == "__main__" or module not in sys.modules:
        return False
    named = getattr(sys.modules[module], function.__qualname__, None)
    return named is function and not cloudpickle.list_registry_pickle_by_value()


_NAMED = frozenset({types.FunctionType, types.BuiltinFunctionType})


def is_plain(value: object, depth: int = 3) -> bool:
    """Whether a value consists of plain small values only, which pickle does 5 times faster."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if depth == 0:
        return False
    items: Iterable[object]
    if kind is tuple or kind is list:
        items = value  # type: ignore[assignment]
    elif kind is dict:
        items = value.values()  # type: ignore[attr-defined]
        for key in value:  # type: ignore[attr-defined]
            if type(key) not in _ATOMS:
                return False
    else:
        return False
    if len(value) > _SHALLOW_ITEMS:  # type: ignore[arg-type]
        return False
    for item in items:  # noqa: SIM110 - a generator would double the time of a small call
        if not is_plain(item, depth - 1):
            return False
    return True
