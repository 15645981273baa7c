"""References to values that stay in a worker."""
# ruff: noqa: SLF001 - they are a part of the pool, and use its parts

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from ..errors import ReferenceLost
from ..protocol.encoders import encoders
from ..tracebacks import hides_own_frames
from ..worker import references as remote
from .execution.pipeline import FutureItem
from .requests import FunctionRequest
from .scheduling.affinity import Home

if TYPE_CHECKING:
    from .engine import Engine
    from .workers.worker import PooledLane


class Owner(Protocol):
    """The pool or session that a reference belongs to: a `Caller`."""

    _engine: Engine

    def _apply_to(
        self,
        home: Home[PooledLane],
        name: str,
        function: Callable[..., Any],
        *args: Any,
        keeps: bool = False,
    ) -> Any: ...


OWN = ("_caller", "_home", "_methods", "_number", "_pid", "_kind", "_finalizer", "__weakref__")


@hides_own_frames
class RemoteRef:
    """Stands for a value that stays in its worker: a model on a GPU, a connection to a database.

    Methods, attributes, items, iteration, ``len``, ``with`` and calls act on the value there; what
    they return travels as the values of calls do. As an argument of a call of its pool it is the
    value itself, and the call is made in that worker. The value is freed when this object is.

    `Caller.keep` and ``call(…, keep=True)`` make one.

    Raises
    ------
    ReferenceLost
        Any use raises it after that worker has ended.
    """

    __slots__ = OWN

    _caller: Owner
    _home: Home[PooledLane]
    _kind: str
    _methods: dict[str, remote.Attribute]
    _number: int
    _pid: int

    def __init__(self, caller: Owner, kept: remote.Kept) -> None:
        engine = caller._engine
        home = engine.dispatcher.pin(kept.pid, kept.worker, kept.kind)
        finalizer = weakref.finalize(self, _free_soon, engine, home, kept.number)
        finalizer.atexit = False
        for name, value in (
            ("_caller", caller),
            ("_home", home),
            ("_kind", kept.kind),
            ("_methods", {}),
            ("_number", kept.number),
            ("_pid", kept.pid),
            ("_finalizer", finalizer),
        ):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> NoReturn:
        # The pool pickles references by a reducer of its own, see below.
        msg = (
            f"{self!r} stays in its process, except as an argument of calls of its pool; fetch() "
            "brings the value itself"
        )
        raise TypeError(msg)

    # -- the value itself ----------------------------------------------------------------------

    def fetch(self) -> Any:
        """Return the value itself: a copy of it."""
        return self._ask("fetch", remote.fetch)

    def free(self) -> None:
        """Free the value now; any later use of this object is an error."""
        self._finalizer()

    def __repr__(self) -> str:
        state = "" if self._finalizer.alive else ", freed"
        return f"<RemoteRef to {self._kind} in worker {self._home.worker}{state}>"

    # -- what it does --------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name in OWN or (name.startswith("__") and name.endswith("__")):  # of protocols
            msg = f"a RemoteRef has no attribute {name!r}"
            raise AttributeError(msg)
        method = self._methods.get(name)
        if method is None:
            found = self._ask(name, remote.read, name)
            if not isinstance(found, remote.Attribute):
                return found
            method = self._methods[name] = found
        return RemoteMethod(self, name, is_async=method.is_async)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask(name, remote.write, name, value)

    def __delattr__(self, name: str) -> None:
        self._ask(name, remote.erase, name)

    def __dir__(self) -> Iterable[str]:
        return sorted({*self._ask("dir", remote.names), "fetch", "free"})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the value there; return what it returns."""
        return self._ask("call", remote.call, "", args, kwargs)

    def __len__(self) -> int:
        length: int = self._ask("len", remote.operate, "len")
        return length

    def __bool__(self) -> bool:
        is_true: bool = self._ask("bool", remote.operate, "truth")
        return is_true

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", remote.operate, "getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", remote.operate, "setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._ask("delitem", remote.operate, "delitem", key)

    def __contains__(self, item: Any) -> bool:
        is_in: bool = self._ask("contains", remote.operate, "contains", item)
        return is_in

    def __iter__(self) -> Iterator[Any]:
        return _items(self._keep("iter", remote.operate, "iter"))

    def __enter__(self) -> Any:
        kept = self._ask("enter", remote.enter)
        return self if kept is None else RemoteRef(self._caller, kept)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None and not self._caller._engine.config.codec.can_travel(error):
            error = RuntimeError(f"{type(error).__name__}: {error}")
        swallows: bool = self._ask("exit", remote.leave, error)
        return swallows

    # -- details -------------------------------------------------------------------------------

    def _ask(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        self._check()
        return self._caller._apply_to(
            self._home, f"{self._kind}.{name}", function, self._number, *args
        )

    def _keep(self, name: str, function: Callable[..., Any], *args: Any) -> RemoteRef:
        self._check()
        kept = self._caller._apply_to(
            self._home, f"{self._kind}.{name}", function, self._number, *args, keeps=True
        )
        return RemoteRef(self._caller, kept)

    def _check(self) -> None:
        if not self._finalizer.alive:
            msg = f"this RemoteRef to {self._kind} was freed"
            raise ReferenceError(msg)
        if self._home.is_lost:
            raise ReferenceLost(self._kind, self._home.worker)


@hides_own_frames
class RemoteMethod:
    """A method of a value that stays in its worker.

    Parameters
    ----------
    reference
        The value.
    name
        Name of the method.
    is_async
        Whether it is a coroutine function; it is awaited there.
    """

    __slots__ = ("_is_async", "_name", "_reference")

    def __init__(self, reference: RemoteRef, name: str, *, is_async: bool) -> None:
        self._reference = reference
        self._name = name
        self._is_async = is_async

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it there; return what it returns."""
        function = remote.acall if self._is_async else remote.call
        return self._reference._ask(self._name, function, self._name, args, kwargs)

    def keep(self, *args: Any, **kwargs: Any) -> RemoteRef:
        """Call it there; return a reference to what it returns, which stays."""
        function = remote.acall if self._is_async else remote.call
        return self._reference._keep(self._name, function, self._name, args, kwargs)

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._reference!r}>"


def home_of(references: Iterable[RemoteRef], engine: Engine) -> Home[PooledLane]:
    """Return the home of calls that have references among their arguments.

    Raises
    ------
    ValueError
        They are of different workers, or of another pool.
    ReferenceLost
        Their worker has ended.
    """
    homes: dict[str, Home[PooledLane]] = {}
    for reference in references:
        reference._check()
        other = reference._caller._engine
        if other is not engine:
            msg = (
                f"{reference!r} belongs to pool {other.config.name!r}, and cannot be used in pool "
                f"{engine.config.name!r}; fetch() brings its value"
            )
            raise ValueError(msg)
        homes[reference._home.worker] = reference._home
    if len(homes) > 1:
        msg = (
            f"the values of these references are in several workers: {', '.join(sorted(homes))}; "
            "fetch() all but those of one of them"
        )
        raise ValueError(msg)
    return next(iter(homes.values()))


def _items(iterator: RemoteRef) -> Iterator[Any]:
    has_ended = False
    while not has_ended:
        values, has_ended = iterator._ask("next", remote.advance)
        yield from values


def _free_soon(engine: Engine, home: Home[PooledLane], number: int) -> None:
    """Free a value in the pool's own thread; the garbage collector may call this anywhere."""
    engine.soon(_free, engine, home, number)


def _free(engine: Engine, home: Home[PooledLane], number: int) -> None:
    bound = engine.dispatcher.unpin(home)
    if bound is None:
        return
    body, buffers = engine.config.codec.dumps_call(remote.release, (number,), {})
    item = FutureItem(
        "release",
        FunctionRequest(body, buffers),
        session=None,
        timeout=None,
        queue_timeout=None,
        bound=None,
        home=bound,
    )
    engine.futures.submit(item)


def _reduce(reference: RemoteRef) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return remote.resolve, (reference._pid, reference._number)


encoders.bind(RemoteRef, _reduce)
