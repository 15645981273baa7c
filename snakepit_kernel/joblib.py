"""The backend ``"snakepit"`` of joblib: ``Parallel`` and scikit-learn run on the workers of a pool.

Importing this module registers it::

    import snakepit_kernel.joblib

    with joblib.parallel_config(backend="snakepit", n_jobs=4):
        GridSearchCV(...).fit(X, y)
"""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import joblib
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from .errors import ToolError
from .pool.config import MAX_WORKERS
from .pool.pool import Pool, open_pools
from .tools.context import is_worker
from .validation import check_seconds

NAME = "snakepit"

IDLE_WORKER_TIMEOUT = 300.0
"""Default seconds after which workers that no call of joblib has used end, as those of loky do."""

SHORT, GROWTH = 0.005, 8
"""Seconds of a batch that count as nothing, and how many times as large the next one is then."""

PRELOADED = ("joblib", "numpy", "scipy", "pandas", "sklearn")
"""Packages that the workers import ahead, once for all, if this process has imported them."""

HINTS = frozenset(
    {"context", "max_nbytes", "temp_folder", "mmap_mode", "prefer", "require", "verbose"}
)
"""Options of `Parallel` about memory that loky maps, and hints that have been followed already."""

ENDED = (
    "the call of joblib that this task belongs to has ended; exhaust a generator that Parallel has "
    "returned before you use that Parallel again"
)

__all__ = ["SnakepitBackend", "default_to", "register"]


class SnakepitBackend(AutoBatchingMixin, ParallelBackendBase):
    """A backend of joblib that runs its batches on the workers of a pool.

    Parameters
    ----------
    nesting_level, inner_max_num_threads
        Set by joblib. The second is the number of threads that numeric libraries use in each
        worker. Default: the cores divided by ``n_jobs``.
    pool
        A `Pool`, or the name of an open one. It stays open, and ``n_jobs`` is at most the number of
        its workers. Default: a pool of ``n_jobs`` workers that all calls of joblib in this process
        share. It stays open between them.
    idle_worker_timeout
        Seconds after which the shared pool ends when no call has used it; None for never.
    options
        Other options of `Pool`, for the shared pool.

    Raises
    ------
    TypeError, ValueError
        An option is wrong; or no pool of that name is open.
    """

    _effective_batch_size: int
    _smoothed_batch_duration: float

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        pool: Pool | str | None = None,
        idle_worker_timeout: float | None = IDLE_WORKER_TIMEOUT,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        if pool is not None and options:
            names = ", ".join(sorted(options))
            msg = f"the pool is open already: {names} can be chosen only where no pool is given"
            raise TypeError(msg)
        self._given = None if pool is None else _open_pool(pool)
        self._options = options
        self._idle_timeout = check_seconds("idle_worker_timeout", idle_worker_timeout)
        self._lease: _Lease | None = None
        self._futures: set[concurrent.futures.Future[Any]] = set()
        self.parallel: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        # In a worker it is only the nested backend of a batch that was made with it.
        return SequentialBackend, (self.nesting_level,)

    # -- the number of workers -----------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of workers that a call with this ``n_jobs`` uses."""
        if n_jobs == 0:
            msg = "n_jobs == 0 in Parallel has no meaning"
            raise ValueError(msg)
        if n_jobs is None:
            return 1
        if is_worker():
            warnings.warn(
                "this is a worker of a pool already: the backend 'snakepit' runs the tasks one "
                "after the other here; give the pool more workers instead",
                stacklevel=3,
            )
            return 1
        most = MAX_WORKERS if self._given is None else len(self._given.slots())
        if n_jobs < 0:
            cores = joblib.cpu_count() if self._given is None else most
            return min(max(cores + 1 + n_jobs, 1), most)
        if n_jobs > MAX_WORKERS:
            msg = f"n_jobs must be at most {MAX_WORKERS} with the backend {NAME!r}, not {n_jobs}"
            raise ValueError(msg)
        return min(n_jobs, most)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        **options: Any,
    ) -> int:
        """Make a pool ready; return the number of workers.

        Parameters
        ----------
        n_jobs, parallel
            Of the call of joblib.
        initializer, initargs
            A function that runs once in each worker, before its first task of this call, and its
            arguments.
        options
            Hints of `Parallel`, of which only this backend's own would be unknown.

        Raises
        ------
        TypeError
            An option is unknown.
        """
        if unknown := sorted(set(options) - HINTS):
            msg = (
                f"the backend {NAME!r} has no option {', '.join(unknown)} here; options of its "
                "pool are given to joblib.parallel_config"
            )
            raise TypeError(msg)
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        if self._given is not None:
            self._lease = _Lease(self._given, None)
        else:
            self._lease = _shared.lease(n_jobs, self._worker_environment(n_jobs), self._options)
        self._initializer = initializer, tuple(initargs), uuid.uuid4().hex
        return n_jobs

    def _worker_environment(self, n_jobs: int) -> dict[str, str]:
        return {
            **{name: str(value) for name, value in self._prepare_worker_env(n_jobs).items()},
            # What joblib takes for the number of cores inside a task: the worker's share.
            "LOKY_MAX_CPU_COUNT": str(max(1, joblib.cpu_count() // n_jobs)),
            **self._options.get("env", {}),
        }

    # -- tasks ---------------------------------------------------------------------------------

    def compute_batch_size(self) -> int:
        """Return the number of tasks to send together: for very short ones it grows fast."""
        seconds: float = self._smoothed_batch_duration
        size: int
        if 0 < seconds < SHORT:
            size = self._effective_batch_size = self._effective_batch_size * GROWTH
            self._smoothed_batch_duration = self._DEFAULT_SMOOTHED_BATCH_DURATION
        else:
            size = super().compute_batch_size()
        return size

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None
    ) -> concurrent.futures.Future[Any]:
        """Run a batch on a worker; return its future."""
        initializer, arguments, key = self._initializer
        try:
            _set_name(func)
            if initializer is not None:
                func = _Initialized(key, initializer, arguments, func)
            if self._lease is None:
                raise RuntimeError(ENDED)
            future = self._lease.pool.submit(func)
        except Exception as error:  # noqa: BLE001 - joblib takes the errors of tasks from futures
            future = concurrent.futures.Future()  # type: ignore[assignment]
            future.set_exception(error)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: concurrent.futures.Future[Any]) -> Any:
        """Return the values of a batch that has ended, or raise its error."""
        try:
            return out.result(0)
        except ToolError as error:
            if error.type_name == "KeyboardInterrupt":  # a task has raised it
                raise KeyboardInterrupt(*error.args[1:]) from error
            raise

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: ARG002
        """Cancel the batches of this call: queued ones never run, running ones are interrupted."""
        for future in list(self._futures):
            future.cancel()

    def terminate(self) -> None:
        """End a call of joblib. The workers stay for the next one."""
        self.reset_batch_stats()
        lease, self._lease = self._lease, None
        if lease is not None and lease.key is not None:
            _shared.give_back(lease, self._idle_timeout)


class _Initialized:
    """A batch before which an initializer runs, once in each worker.

    Parameters
    ----------
    key
        Of the call of joblib that has the initializer.
    """

    _done: ClassVar[set[str]] = set()

    def __init__(
        self,
        key: str,
        initializer: Callable[..., object],
        arguments: Sequence[Any],
        batch: Callable[[], Any],
    ) -> None:
        self.key = key
        self.initializer = initializer
        self.arguments = arguments
        self.batch = batch

    def __call__(self) -> Any:
        if self.key not in self._done:
            self.initializer(*self.arguments)
            self._done.add(self.key)
        return self.batch()


class _Lease(NamedTuple):
    """The use of a pool by one call of joblib; without a key the pool is the user's own."""

    pool: Pool
    key: Hashable | None


class _Entry:
    """A pool that calls share."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.users = 0
        self.timer: threading.Timer | None = None


class _SharedPools:
    """The pools of this process that calls of joblib share: one for each environment of workers.

    Only one of them stays open while it is not in use.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry] = {}

    def lease(self, workers: int, env: Mapping[str, str], options: Mapping[str, Any]) -> _Lease:
        """Return a pool with at least so many workers; with as many, if nobody else uses it."""
        key = (
            frozenset(env.items()),
            *sorted((name, repr(each)) for name, each in options.items()),
        )
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.pool.is_open:
                self._end_unused()
                entry = _Entry(_open(workers, env, options))
                self._entries[key] = entry
            else:
                _resize(entry.pool, workers, may_shrink=entry.users == 0)
            if entry.timer is not None:
                entry.timer.cancel()
                entry.timer = None
            entry.users += 1
        return _Lease(entry.pool, key)

    def give_back(self, lease: _Lease, idle_timeout: float | None) -> None:
        """Record that a call has ended; the pool ends later if no other one uses it."""
        with self._lock:
            entry = self._entries.get(lease.key)
            if entry is None or entry.pool is not lease.pool:
                return
            entry.users -= 1
            if entry.users == 0 and idle_timeout is not None:
                entry.timer = threading.Timer(idle_timeout, self._end_idle, (lease.key, entry))
                entry.timer.daemon = True
                entry.timer.start()

    def _end_idle(self, key: Hashable, entry: _Entry) -> None:
        with self._lock:
            if entry.users or entry.timer is not threading.current_thread():
                return
            if self._entries.get(key) is entry:
                del self._entries[key]
        entry.pool.shutdown(wait=False)

    def _end_unused(self) -> None:
        """End the pools that no call uses; the caller holds the lock."""
        for key, entry in list(self._entries.items()):
            if entry.users == 0:
                del self._entries[key]
                if entry.timer is not None:
                    entry.timer.cancel()
                entry.pool.shutdown(wait=False)

    def close(self) -> None:
        """End all of them; return when that is verified."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            if entry.timer is not None:
                entry.timer.cancel()
            entry.pool.terminate()


_shared = _SharedPools()

close = _shared.close


def _forget() -> None:
    """In a forked child: the pools belong to the parent."""
    _shared.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_forget)


def _open(workers: int, env: Mapping[str, str], options: Mapping[str, Any]) -> Pool:
    chosen = {"name": "joblib", "preload": _modules_to_preload(), **options}
    return Pool(workers, **{**chosen, "env": dict(env)})


def _resize(pool: Pool, workers: int, *, may_shrink: bool) -> None:
    present = len(pool.slots())
    if workers > present or (may_shrink and workers < present):
        pool.resize(workers)


def _modules_to_preload() -> list[str]:
    """Return this module, and what is imported here of the packages of `PRELOADED`."""
    return [__name__] + [
        name
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] in PRELOADED
        and name.count(".") <= 1
        and "._" not in name
        and hasattr(module, "__path__")
    ]


def _open_pool(pool: Pool | str) -> Pool:
    if isinstance(pool, Pool):
        return pool
    pools = open_pools()
    if pool in pools:
        return pools[pool]
    there_are = f"open are: {', '.join(sorted(pools))}" if pools else "no pool is open"
    msg = f"no pool {pool!r} is open here; {there_are}"
    raise ValueError(msg)


def _set_name(batch: Any) -> None:
    """Give a batch the name of its function, for the pool's status and timeline."""
    items = getattr(batch, "items", None)
    if items:
        function = items[0][0]
        function = getattr(function, "function", function)  # scikit-learn wraps those of its own
        name = getattr(function, "__qualname__", None) or type(function).__name__
        batch.__qualname__ = name


def register() -> None:
    """Register the backend; importing this module does it."""
    joblib.register_parallel_backend(NAME, SnakepitBackend)


def default_to(pool: Pool | str, n_jobs: int = -1) -> joblib.parallel_config:
    """Let joblib, and scikit-learn with it, use a pool wherever no other backend is chosen.

    Parameters
    ----------
    pool
        A pool, or the name of an open one.
    n_jobs
        The default of ``n_jobs``: all workers.

    Returns
    -------
    joblib.parallel_config
        Its ``unregister()`` undoes it.

    Raises
    ------
    ValueError
        No pool of that name is open.
    """
    return joblib.parallel_config(backend=NAME, n_jobs=n_jobs, pool=_open_pool(pool))


register()
