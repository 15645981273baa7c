"""The public class `Pool`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import inspect
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..printable import counted
from ..protocol.codec import MAX_VALUE_BYTES, cannot_travel
from ..sessions.programs import Programs
from ..sessions.state import SessionInfo
from ..sessions.values import MAX_VARIABLE_BYTES
from ..store.store import Store
from ..tools.registry import AdapterError, describe
from ..tracebacks import hide_own_frames, hides_own_frames
from ..validation import bounded, check_count, check_seconds
from .caller import DEFAULT, Caller, Timeout
from .config import (
    DEFAULT_KERNEL,
    MAX_WORKERS,
    Affinity,
    PoolConfig,
    check_adapter,
    check_affinity,
)
from .engine import Engine
from .monitoring.timeline import LIMIT, Timeline
from .policies import Breaker, CrashBarrier, Heartbeat, Retry
from .resources.accelerators import Gpus
from .resources.limits import Limits
from .results import CallFuture
from .session import Session
from .status import PoolStats, PoolStatus
from .tools import SharedFunction, ToolDefinitions

if TYPE_CHECKING:
    from ..shells.of_session import ProcessList
    from .monitoring.dashboard import Dashboard

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@hides_own_frames
class Pool(Caller, concurrent.futures.Executor):
    """Worker kernels behind one queue.

    Each worker is a Jupyter kernel in a process of its own, under a guardian: when the pool ends,
    on whatever path, everything its workers ever started is gone. A pool is a
    :class:`concurrent.futures.Executor`, and also calls tools and runs cells.

    Parameters
    ----------
    workers
        Number of workers, 1 to 150. Default: the number of usable cores. ``"auto"``: as many as
        there are cores, and memory where workers have a limit, that the pools of other notebooks
        have left; one in any case.
    adapter
        The tools: ``"module:Class"``, ``"module"``, a class or a module. None for no tools.
    name
        Name of the pool, for people and errors.
    profile
        ``"process"``: a worker runs one call at a time, in its main thread. ``"thread"``: several,
        each in a thread; the adapter must declare ``thread_safe = True``.
    threads_per_worker
        Calls that a worker runs at the same time in the profile ``"thread"``, 1 to 63.
    affinity
        Which worker does a session's work, where the session says nothing else. ``"hint"``: the one
        that served it last, if that is free. ``"strict_queue"``: that one alone, its home; the work
        waits for it. ``"strict_fail_fast"``: the same, and `WorkerBusy` is raised where it would
        have to wait. When a strict session's home ends, its work raises `SessionLost`, until the
        session is opened again.
    max_queue
        Calls, streams and cells that threads wait for in the queue; one more raises
        `PoolSaturated`.
    max_futures
        The same for work that no thread waits for: futures (`submit`) and work of event loops
        (`acall`, `arun`, `astream`). None for any number.
    queue_timeout
        Seconds that one may wait before `QueueTimeout`; None for ever. Default: 10 for threads
        that wait (`call`, `run`), for ever for futures and event loops, as executors do. None of
        these limits `map`: its items are in memory already.
    timeout
        Seconds for the wait, the run and the reply together; None for no limit.
    grace
        Seconds that a worker may take to respond to an interrupt, and its children to exit.
    preload
        Modules that are imported before a worker's first call: once, in the template that the
        workers are forked from, where that is safe.
    autoreload
        Whether workers reload modules that were edited, before each call or cell, as
        ``%autoreload 2`` does; installed packages excepted.
    standby
        Additional workers that are started in advance, to replace those that die.
    env
        Environment variables in addition to those of this process. Numeric libraries (OpenMP,
        OpenBLAS, MKL, BLIS, numexpr, Accelerate) get one thread a worker unless
        ``OMP_NUM_THREADS``, for all but the last, or one of their own variables says otherwise,
        here or in this process.
    cwd
        Working directory of the workers. Default: that of this process, which they follow when it
        changes.
    kernel_name
        Kernelspec of the workers: any that is installed. One of Python does everything where
        snakepit-kernel is installed in its environment; any other one runs cells only:
        then ``adapter``, ``preload``, ``autoreload`` and the profile ``"thread"`` are refused
        (`CellsOnly`).
    requirements
        Packages of the workers, in an environment of their own that has nothing else of this
        process's: a list such as ``["pandas==2.2.*"]``, or the path of a requirements file. It is
        made by uv, or else by pip, when it is needed first, and kept for all pools of this user.
        None for the packages of this process.
    start_timeout
        Seconds that a worker may take to become ready.
    max_value_bytes
        Largest size of one value that is sent to a worker or back.
    unserializable
        Treatment of parts of a result that cannot be pickled (a lock, an open file): ``"type"``, an
        `Unserializable` with its type replaces it; ``"repr"``, one with its text as well,
        shortened and without secrets; ``"error"``, the call raises.
    store
        Where sessions are kept: a path, or ``sqlite:///PATH``. Default: ``sessions.sqlite`` in
        Jupyter's data directory.
    max_variable_bytes
        Largest size of the value of one session variable in the store.
    max_age, max_calls, max_memory_bytes
        Seconds that a worker may live, calls that it may serve, and bytes of unshared memory that
        it and its descendants may take, before it is replaced. Its successor is ready before it
        ends, and it finishes its calls: no call fails for that. A worker that is the home of a
        strict session is not replaced for its age or its calls.
    heartbeat
        When a worker that has stopped, without having ended, is replaced; see `Heartbeat`. This and
        the next three take such an object, a mapping with its parameters, a number for the first of
        them, True for its defaults, or None.
    crash_barrier
        What happens to calls whose worker dies; see `CrashBarrier`.
    retry
        Which calls are made again when they fail; see `Retry`. Default: none but those that the
        crash barrier repeats.
    breaker
        When work is refused at once because calls fail again and again; see `Breaker`. Default:
        never.
    gpus
        Accelerators (CUDA, ROCm) of the workers: each sees its own alone, from before any of your
        code runs there, and so does the worker that replaces it. ``"auto"``: one for each worker,
        if there are any; a number: that many for each, 0 to hide them all; a list of numbers or
        ids, as ``CUDA_VISIBLE_DEVICES`` takes them: those, one for each. Where there are fewer
        than workers, these share them in turn, with a warning. None leaves all as it is.

    limits
        What each worker may take: `Limits`, or a mapping with the names of its attributes.

    Raises
    ------
    TypeError, ValueError
        An option is wrong; the text names it.
    EnvironmentFailed
        The environment of its requirements could not be made; with what the installer said.
    StartFailed
        A worker could not start; with the cause and its last output. Nothing is left running.

    Examples
    --------
    >>> with Pool(workers=2) as pool:  # doctest: +SKIP
    ...     pool.submit(pow, 2, 10).result()
    1024
    """

    @hides_own_frames
    def __init__(
        self,
        workers: int | Literal["auto"] | None = None,
        *,
        adapter: object = None,
        name: str = "default",
        profile: Literal["process", "thread"] = "process",
        threads_per_worker: int = 10,
        affinity: Affinity = "hint",
        max_queue: int = 1000,
        max_futures: int | None = None,
        queue_timeout: Timeout = DEFAULT,
        timeout: float | None = None,
        grace: float = 2.0,
        preload: Sequence[str] = (),
        autoreload: bool = False,
        standby: int = 0,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        kernel_name: str = DEFAULT_KERNEL,
        requirements: Sequence[str] | str | os.PathLike[str] | None = None,
        start_timeout: float = 60.0,
        max_value_bytes: int = MAX_VALUE_BYTES,
        unserializable: Literal["type", "repr", "error"] = "type",
        store: str | os.PathLike[str] | Store | None = None,
        max_variable_bytes: int = MAX_VARIABLE_BYTES,
        max_age: float | None = None,
        max_calls: int | None = None,
        max_memory_bytes: int | None = None,
        heartbeat: Heartbeat | Mapping[str, Any] | float | bool | None = True,
        crash_barrier: CrashBarrier | Mapping[str, Any] | int | bool | None = True,
        retry: Retry | Mapping[str, Any] | int | bool | None = None,
        breaker: Breaker | Mapping[str, Any] | int | bool | None = None,
        gpus: Gpus = None,
        limits: Limits | Mapping[str, object] | None = None,
    ) -> None:
        config = PoolConfig.checked(locals())  # the parameters: nothing is assigned before
        self._opened_with = config
        self._definitions = ToolDefinitions(config.codec)
        self._engine = Engine(config)
        self._engine.open()
        # The engine has no reference to this object, so that it can be collected; then the engine
        # ends when its work is done. At the exit of the interpreter the engine ends by itself.
        weakref.finalize(self, _close_in_thread, self._engine).atexit = False
        _pools[next(_numbers)] = self

    # -- looking -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._engine.config.name

    @property
    def is_open(self) -> bool:
        """Whether the pool takes work."""
        return self._engine.housekeeping.is_open

    def status(self) -> PoolStatus:
        """Return the pool's present status, which displays itself as a table."""
        return self._engine.housekeeping.status()

    def stats(self) -> PoolStats:
        """Return the pool's counters."""
        return self._engine.housekeeping.stats()

    def dashboard(self) -> Dashboard:
        """Return a widget that shows the pool live in a notebook, until the pool is closed.

        It is updated once a second while it is on the screen. ``close()`` ends it.
        """
        from .monitoring.dashboard import Dashboard

        return Dashboard(self._engine)

    def prometheus(self) -> str:
        """Return the pool's metrics in the text format of Prometheus."""
        from .monitoring.prometheus import exposition

        return exposition([self.status()])

    def timeline(self, limit: int = LIMIT) -> Timeline:
        """Record each call that begins and ends inside a ``with`` block.

        ``calls`` lists when each waited, ran and ended, and where; it shows itself as bars, and
        ``save(path)`` writes a trace for Perfetto.

        Parameters
        ----------
        limit
            Number of calls to keep: the last ones.
        """
        return Timeline(self.name, check_count("limit", limit, 1))

    def slots(self) -> list[int]:
        """Return the numbers of the workers."""
        return self._engine.housekeeping.slots()

    def logs(self) -> dict[str, str]:
        """Return the last output of each worker's process, at most 4 KiB, by its name."""
        return self._engine.housekeeping.logs()

    def __repr__(self) -> str:
        config = self._engine.config
        state = "open" if self.is_open else "closed"
        workers = counted(len(self._engine.supervisor.slots), "worker")
        return f"<Pool {config.name!r}: {workers}, {state}>"

    def _repr_html_(self) -> str | None:
        return self.status()._repr_html_() if self.is_open else None

    @property
    def processes(self) -> ProcessList:
        """The background processes of this pool's sessions."""
        from ..shells.of_session import ProcessList

        return ProcessList(owner=self._engine.sessions)

    # -- sessions and tools --------------------------------------------------------------------

    def session(
        self,
        session_id: str,
        *,
        ttl: float | Literal["default"] | None = DEFAULT,
        affinity: Affinity | None = None,
        metadata: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Session:
        """Return the session of that id; make it if there is none.

        Its variables, programs and metadata outlive the pool, the kernel and the server. All
        sessions of the same id in the same store share them. A strict session that has lost its
        home begins again with another worker.

        Parameters
        ----------
        session_id
            1 to 64 characters of ``[A-Za-z0-9_.-]`` that start with a letter or a digit.
        ttl
            Seconds that it lives without being used; None for no limit. Default: unchanged; for a
            new one 30 days in a notebook, an hour elsewhere.
        affinity
            Which worker does its work, see `Pool`. Default: the pool's.
        metadata
            Notes for a session that is new.
        priority
            That of its work in the queue: higher goes first, whatever other sessions have had.

        Raises
        ------
        TypeError, ValueError
            An argument is wrong; it is named.
        QuotaExceeded
            There are 10,000 sessions already. One that exists can always be opened.
        StoreError
            The store cannot be read or written.
        """
        chosen = self._engine.config.affinity if affinity is None else check_affinity(affinity)
        state = self._engine.sessions.open(session_id, ttl, metadata)
        return Session(
            state, self, self._engine, self._definitions, affinity=chosen, priority=priority
        )

    def sessions(self) -> list[SessionInfo]:
        """Return all sessions of the pool's store, the one used last first."""
        return self._engine.sessions.all()

    @property
    def programs(self) -> Programs:
        """Objects by name, for all pools and sessions of the store; see `Programs.put`."""
        return self._engine.sessions.global_state.programs

    def tool(self, function: F) -> F:
        """Make a function of the notebook a tool of this pool; a decorator.

        The function is sent by value. Decorating a function of the same name again replaces it.

        Raises
        ------
        TypeError
            It cannot be a tool, or cannot be pickled; or the pool's kernel runs cells only
            (`CellsOnly`).
        """
        self._engine.config.kernel.require_lane("a tool")
        if not callable(function):
            msg = f"@pool.tool decorates functions, not {type(function).__name__} {function!r}"
            raise TypeError(msg)
        try:
            info = describe(function)
        except AdapterError as error:
            raise TypeError(str(error)) from error
        try:
            self._definitions.add(info, function)
        except Exception as error:
            codec = self._engine.config.codec
            raise cannot_travel(codec, f"tool {info.name!r}", [function], error) from error
        return function

    # -- an executor ---------------------------------------------------------------------------

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Run a function over iterables in the workers; yield its values in order.

        Parameters
        ----------
        fn
            Takes as many arguments as there are iterables.
        iterables
            They are consumed at once, unless ``buffersize`` is given.
        timeout
            Seconds from this call until the last value; then `TimeoutError`.
        chunksize
            Items that are sent together; more is faster for short functions.
        buffersize
            Chunks that are submitted and whose values have not been taken: the iterables are read
            no further ahead, and may have no end. None for all of them at once.

        Raises
        ------
        TypeError
            ``buffersize`` is no whole number.
        ValueError
            ``chunksize`` or ``buffersize`` is less than 1.
        CellsOnly
            The pool's kernel runs cells only.
        """
        if chunksize < 1:
            msg = f"chunksize must be at least 1, not {chunksize}"
            raise ValueError(msg)
        _check_buffersize(buffersize)
        self._engine.config.kernel.require_lane("map()")
        end = None if timeout is None else time.monotonic() + bounded(timeout)
        # The generator keeps the pool, which may have no other reference, until all is submitted.
        name = getattr(fn, "__qualname__", None) or type(fn).__name__
        shared = SharedFunction(self._engine.config.codec, partial(_map_all, fn), name)
        chunks = _chunks(iterables, chunksize)
        upcoming = (self._submit_shared(shared, tuple(chunk)) for chunk in chunks)
        return _ordered_values(deque(itertools.islice(upcoming, buffersize)), upcoming, end)

    # -- changing it ---------------------------------------------------------------------------

    def resize(self, workers: int) -> None:
        """Change the number of workers.

        Additional ones are started; this returns when they are ready. Workers with the least to
        lose are removed first, and finish their work before they end.

        Parameters
        ----------
        workers
            The new number, 1 to 150.

        Raises
        ------
        TypeError, ValueError
            It is not such a number.
        StartFailed
            A worker could not start; the pool has as many as before.
        PoolClosed
            The pool has ended.
        """
        self._engine.resize(check_count("workers", workers, 1, MAX_WORKERS))

    def reload(self, adapter: object = None) -> None:
        """Replace all workers, one after the other, while work goes on: no call fails for it.

        Each successor imports the tools again and is ready before its predecessor ends, which
        finishes its work first.

        Parameters
        ----------
        adapter
            Other tools, as for `Pool`. Default: the present ones, as they are on disk now.

        Raises
        ------
        TypeError
            It cannot be an adapter.
        StartFailed
            A successor could not start. The worker that it was for goes on, and so do those that
            had not been replaced yet; if one had been replaced, later successors use the new
            tools.
        PoolClosed
            The pool has ended.
        """
        self._engine.reload(None if adapter is None else check_adapter(adapter))

    def recycle(self, worker: int | None = None) -> None:
        """Replace a worker by a new one with an empty memory, while work goes on.

        Parameters
        ----------
        worker
            Number of the worker. Default: all, one after the other.

        Raises
        ------
        ValueError
            There is no such worker.
        StartFailed
            The successor could not start; the worker goes on.
        PoolClosed
            The pool has ended.
        """
        self._engine.recycle(worker)

    def restart(self) -> None:
        """End all workers and everything that they started, and start as many new ones.

        Running work is interrupted, queued work is lost, and the memory of the workers is empty
        afterwards, as is that of the shells and background processes of the pool's sessions. Tools,
        host tools, options and sessions stay, and this object goes on to work. A pool that was
        closed is opened again.

        Raises
        ------
        StartFailed
            A worker could not start. The pool is closed then.
        SurvivorsError
            A process of the old workers could not be ended. The pool is closed then.
        RuntimeError
            The callback of a future, or a host tool, calls it: the pool would wait for its caller.
        PoolClosed
            The pool belongs to another process, or another thread has closed it meanwhile.
        """
        self._engine.restart()

    def drain(self, timeout: float | None = None) -> bool:
        """Take no new work, and wait until all that was accepted is done; workers stay.

        Until `resume`, new work raises `PoolClosed`; calls that host tools make for running work
        are still accepted.

        Parameters
        ----------
        timeout
            Seconds to wait; None for as long as it takes.

        Returns
        -------
        bool
            Whether all is done.

        Raises
        ------
        RuntimeError
            The callback of a future, or a host tool, calls it: the pool would wait for its caller.
        """
        return self._engine.drain(check_seconds("timeout", timeout, allow_zero=True))

    def resume(self) -> None:
        """Take work again after `drain`.

        Raises
        ------
        PoolClosed
            The pool has ended.
        """
        self._engine.accounting.resume()

    # -- ending --------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the pool when its work is done.

        Parameters
        ----------
        wait
            Return when all work is done and every process is verified gone. Else that happens in
            the background.
        cancel_futures
            Cancel work that still waits in the queue.
        """
        self._engine.stop_accepting(cancel_queued=cancel_futures)
        if wait and not self._engine.is_awaited:  # a callback or a host tool would wait for itself
            self._engine.wait_until_quiet()
            self._engine.close()
        else:
            threading.Thread(target=_close_when_quiet, args=(self._engine,), daemon=True).start()

    def terminate(self) -> None:
        """End the pool now: running work is interrupted, queued work is lost, nothing is left."""
        self._engine.close()


_pools: weakref.WeakValueDictionary[int, Pool] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def open_pools() -> dict[str, Pool]:
    """Return the open pools of this process, by name; of several of one name the last one.

    A forked child has none: a pool belongs to the process that has opened it.
    """
    return {pool.name: pool for pool in list(_pools.values()) if pool.is_open}


def compare_options(pool: Pool, options: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """Return the options in which a pool differs from one that others would open.

    Parameters
    ----------
    pool
        A pool. Changes after it was opened, by `Pool.resize` or `Pool.reload`, do not count.
    options
        Options of `Pool`, by name. One that is missing has its default.

    Returns
    -------
    dict
        For each such option its value in the pool, and the other one.

    Raises
    ------
    TypeError, ValueError
        An option is wrong; the text names it.
    """
    parameters = inspect.signature(Pool).parameters.items()
    defaults = {name: parameter.default for name, parameter in parameters}
    return pool._opened_with.differences(PoolConfig.checked({**defaults, **options}))  # noqa: SLF001


def has_adapter(pool: Pool, adapter: object) -> bool:
    """Whether the workers of a pool have exactly this adapter, and no other one of that name."""
    return pool._engine.config.adapter is adapter  # noqa: SLF001


def _chunks(iterables: Sequence[Iterable[Any]], size: int) -> Iterator[Sequence[Sequence[Any]]]:
    """Cut iterables into chunks of columns, which are pickled faster than rows."""
    if len(iterables) == 1:
        items = iter(iterables[0])
        while piece := list(itertools.islice(items, size)):
            yield (piece,)
    else:
        rows = zip(*iterables, strict=False)
        while piece := list(itertools.islice(rows, size)):
            yield list(zip(*piece, strict=True))


def _map_all(fn: Callable[..., T], *columns: Sequence[Any]) -> list[T]:
    return list(map(fn, *columns))


def _check_buffersize(buffersize: object) -> None:
    """Raise the errors of the standard library's executors, in the same words."""
    if buffersize is None:
        return
    if not isinstance(buffersize, int):
        msg = f"buffersize must be an integer or None, not {type(buffersize).__name__}"
        raise TypeError(msg)
    if buffersize < 1:
        msg = f"buffersize must be None or > 0, not {buffersize}"
        raise ValueError(msg)


def _ordered_values(
    futures: deque[CallFuture[list[T]]],
    upcoming: Iterator[CallFuture[list[T]]],
    end: float | None,
) -> Iterator[T]:
    """Yield the values of futures in their order; cancel the rest when the consumer stops.

    For each future that is consumed one more is submitted. No yielded value is kept.
    """
    try:
        while futures:
            futures.extend(itertools.islice(upcoming, 1))
            remaining = None if end is None else max(0.0, end - time.monotonic())
            values = futures[0].result(remaining)
            futures.popleft()
            values.reverse()
            while values:
                yield values.pop()
    except BaseException as error:
        hide_own_frames(error)
        raise
    finally:
        for future in futures:
            future.cancel()


def _close_when_quiet(engine: Engine) -> None:
    engine.wait_until_quiet()
    engine.close()


def _close_when_unused(engine: Engine) -> None:
    engine.stop_accepting(cancel_queued=False)
    _close_when_quiet(engine)


def _close_in_thread(engine: Engine) -> None:
    """End an engine whose pool was collected, when its futures are done, as executors do.

    The garbage collector may run in any thread at any moment, even in the engine's own thread, or
    with its lock held; so the engine is closed in a separate thread.
    """
    with contextlib.suppress(
        RuntimeError
    ):  # at the exit of the interpreter the engine ends by itself
        threading.Thread(target=_close_when_unused, args=(engine,), daemon=True).start()
