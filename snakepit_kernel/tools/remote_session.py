"""Access to a session from a worker: its owner serves it over the lane."""

from __future__ import annotations

import pickle
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import BatchRejected, ValueTooLarge
from ..protocol.codec import Codec, is_plain
from ..sessions.programs import Metadata, Programs
from ..sessions.values import encode
from ..sessions.variables import Find, Key, Variables
from ..sessions.watch import Watch
from ..tracebacks import hide_own_frames

if TYPE_CHECKING:
    from .remote_shell import RemoteProcesses, RemoteShell

CACHE_SECONDS = 0.1
"""Seconds for which a call caches a value that it has read."""

_CACHE_BYTES = 64 * 1024

Ask = Callable[..., Any]
AskAsync = Callable[..., Awaitable[Any]]


class RemoteSession:
    """The parts of the session that a call or cell belongs to.

    Parameters
    ----------
    ask
        Calls the owner, with a part, a method of it, and its arguments.
    ask_async
        Does the same without blocking the event loop.
    is_cached
        Whether values that were read are cached for a moment: for calls, which end.
    """

    def __init__(self, ask: Ask, ask_async: AskAsync, *, is_cached: bool) -> None:
        self._ask = ask
        self._ask_async = ask_async
        self._watches: list[Watch] = []
        self._find_variable_method: Find = partial(partial, ask, "variables")
        kind = CachedVariables if is_cached else Variables
        self.variables: Variables = kind(self._find_variable_method, self._watch)
        self.programs = Programs(partial(partial, ask, "programs"))
        self.metadata = Metadata(partial(partial, ask, "metadata"))

    @property
    def shell(self) -> RemoteShell:
        """The shell."""
        from .remote_shell import RemoteShell

        return RemoteShell(partial(self._ask, "shell"), partial(self._ask_async, "shell"))

    @property
    def processes(self) -> RemoteProcesses:
        """The background processes."""
        from .remote_shell import RemoteProcesses

        return RemoteProcesses(partial(self._ask, "processes"))

    def _watch(self, pattern: str) -> Watch:
        watch = Watch(_Changes(self._find_variable_method), pattern, None)
        self._watches.append(watch)
        return watch

    def invalidate(self) -> None:
        """Drop cached values."""
        if isinstance(self.variables, CachedVariables):
            self.variables.invalidate()

    def close(self) -> None:
        """Close the watches."""
        while self._watches:
            self._watches.pop().close()


class _Changes:
    """Source of a watch's changes, read from the owner."""

    def __init__(self, find: Find) -> None:
        self.revision: Callable[[], int] = find("revision")
        self.changes: Callable[..., Any] = find("changes")


class CachedVariables(Variables):
    """Variables of a call, with a short-lived cache of the values read.

    A value is never older than the call, nor than 0.1 s; and a new copy each time.
    """

    def __init__(self, find: Find, watch: Callable[[str], Watch]) -> None:
        self._cache: dict[Key, tuple[float, bytes | None, Any]] = {}
        super().__init__(partial(self._find_invalidating, find), watch)

    def __getitem__(self, name: Key) -> Any:
        until, body, value = self._cache.get(name, _NOT_CACHED)
        if time.monotonic() < until:
            return value if body is None else pickle.loads(body)  # noqa: S301 - what this process has pickled
        try:
            value = self._value(name)
        except BaseException as error:
            hide_own_frames(error)
            raise
        self._keep(name, value)
        return value

    def invalidate(self) -> None:
        """Drop cached values."""
        self._cache.clear()

    def _keep(self, name: Key, value: Any) -> None:
        until = time.monotonic() + CACHE_SECONDS
        if type(value) in _ATOMS:
            self._cache[name] = until, None, value
        elif is_plain(value):
            body = pickle.dumps(value, protocol=5)
            if len(body) <= _CACHE_BYTES:
                self._cache[name] = until, body, None

    def _find_invalidating(self, find: Find, method: str) -> Callable[..., Any]:
        """Return a method of the owner's that drops cached values, which it may outdate."""
        found = find(method)
        if method == "value":
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return found(*args, **kwargs)
            finally:
                self._cache.clear()

        return call


def error_as_in_notebook(
    error: Exception, part: str, method: str, args: Sequence[Any]
) -> Exception:
    """Return the error that the notebook would get for a value that cannot be pickled.

    Parameters
    ----------
    error
        Returned if the cause is something else.
    part, method, args
        The method that was called, see `RemoteSession`.
    """
    is_batch = method in {"set_many", "register_many"}
    if is_batch:
        values = {name: _value_in(spec, method) for name, spec in args[0].items()}
    elif method in _VALUE_INDEX:
        values = {args[0]: args[_VALUE_INDEX[method]]}
    else:
        values = {}
    for name, value in values.items():
        try:
            encode(_KINDS[part], name, value, Codec(), "max_value_bytes of the pool")
        except (TypeError, ValueTooLarge) as problem:
            return BatchRejected({str(name): problem}) if is_batch else problem
    return error


def _value_in(spec: Any, method: str) -> Any:
    if method == "set_many":
        return spec
    return spec.get("value") if isinstance(spec, Mapping) else spec


_VALUE_INDEX = {"assign": 1, "put": 1, "register": 2}
_KINDS = {"variables": "variable", "programs": "program", "metadata": "metadata"}

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_NOT_CACHED: tuple[float, bytes | None, Any] = (0.0, None, None)
