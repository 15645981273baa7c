"""Configuration of a pool: every option, checked before anything starts."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from ..errors import suggest
from ..ids import check_name
from ..lane.control_page import MAX_LANES
from ..paths import NOTEBOOK_VARIABLE, working_directory
from ..protocol.codec import Codec
from ..protocol.unserializable import Policy
from ..store.store import Store, check_store
from ..tools.registry import name_of
from ..validation import FOREVER, check_count, check_flag, check_seconds
from .policies import Breaker, CrashBarrier, Heartbeat, Retry, check_policy
from .policies import P as K
from .resources.accelerators import Allotment, Gpus, allot
from .resources.kernelspec import WorkerKernel, find_kernel, in_environment
from .resources.limits import Limits, check_limits, find_group
from .resources.machine_budget import usable_cores
from .scheduling.scheduler import Purpose

if TYPE_CHECKING:
    from ..environments.cache import Environment
    from ..environments.requirements import Requirements

T = TypeVar("T")

Check = Callable[[str, Any], T]
"""Takes an option's name and value, and returns the value to use, or raises an error."""

Affinity = Literal["hint", "strict_queue", "strict_fail_fast"]
Profile = Literal["process", "thread"]

MAX_WORKERS = 150
MAX_THREADS = MAX_LANES - 1

DEFAULT_KERNEL = "snakepit"
"""Kernelspec of the workers if no other one is named."""

DEFAULT_QUEUE_TIMEOUT = 10.0
"""Default limit, in seconds, of the time that a waiting caller spends in the queue."""

_OWN_THREAD_CAPS = ("VECLIB_MAXIMUM_THREADS",)
"""Variables of libraries that ignore ``OMP_NUM_THREADS``."""

_THREAD_CAPS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    *_OWN_THREAD_CAPS,
)


# -- checks of options -------------------------------------------------------------------------


def _workers(name: str, value: Any) -> int:
    if value is None or value == "auto":
        return min(usable_cores(), MAX_WORKERS)
    return check_count(name, value, 1, MAX_WORKERS)


def _count(least: int, most: int | None = None) -> Check[int]:
    return lambda name, value: check_count(name, value, least, most)


def _count_or_none(least: int) -> Check[int | None]:
    return lambda name, value: None if value is None else check_count(name, value, least)


def _choice(choices: tuple[str, ...]) -> Check[Any]:
    def check(name: str, value: Any) -> Any:
        if value in choices:
            return value
        msg = f"{name} {value!r} is not known{suggest(value, choices)}"
        raise ValueError(msg)

    return check


def _policy(kind: type[K]) -> Check[K | None]:
    return lambda name, value: check_policy(name, kind, value)


def _queue_timeout(name: str, value: Any) -> float | None:
    return DEFAULT_QUEUE_TIMEOUT if value == "default" else _patience(name, value)


def _patience(name: str, value: Any) -> float | None:
    return check_seconds(name, value, allow_zero=True)


def _grace(name: str, value: Any) -> float:
    seconds = _patience(name, value)
    return FOREVER if seconds is None and value is not None else seconds or 0.0


def _start_timeout(name: str, value: Any) -> float:
    return check_seconds(name, value) or math.inf


def _preload(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        msg = f"{name} must be a list of module names, such as [{value!r}]"
        raise TypeError(msg)
    return tuple(value)


def _environment(name: str, value: Any) -> dict[str, str]:
    checked = dict(value or {})
    for key, text in checked.items():
        if not isinstance(key, str) or not isinstance(text, str):
            msg = f"{name} must map strings to strings, not {key!r} to {text!r}"
            raise TypeError(msg)
    return checked


def _folder(name: str, value: Any) -> Path:
    folder = Path(working_directory() if value is None else value).expanduser().absolute()
    if not folder.is_dir():
        msg = f"{name} {str(folder)!r} is not a directory"
        raise NotADirectoryError(msg)
    return folder


def _requirements(name: str, value: Any) -> Requirements | None:
    if value is None:
        return None
    from ..environments.requirements import check_requirements

    return check_requirements(name, value)


def check_adapter(value: object) -> object:
    """Return a value that can be an adapter; raise TypeError for any other."""
    if value is None or isinstance(value, str | type | types.ModuleType):
        return value
    msg = (
        "adapter must be 'module:Class', 'module', a class, a module or None, "
        f"not {type(value).__name__} {value!r}"
    )
    raise TypeError(msg)


def check_affinity(value: object) -> Affinity:
    """Return one of the three modes; raise ValueError, which names them, for anything else."""
    if value in get_args(Affinity):
        return cast("Affinity", value)
    modes = ", ".join(map(repr, get_args(Affinity)))
    near = suggest(value, get_args(Affinity)) if isinstance(value, str) else ""
    meant = f"{near} affinity" if near.endswith("?") else "; it"
    msg = f"affinity {value!r} is not known{meant} is one of {modes}"
    raise ValueError(msg)


def _option(check: Check[T]) -> T:
    """Return the field of an option; `PoolConfig.checked` applies its check."""
    made: T = field(metadata={"check": check})
    return made


# -- the table ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """The options of a pool, each with its check; see `Pool` for their meaning and defaults."""

    workers: int = _option(_workers)
    adapter: object = _option(lambda _, value: check_adapter(value))
    name: str = _option(lambda _, value: check_name("pool", value))
    profile: Profile = _option(_choice(get_args(Profile)))
    threads_per_worker: int = _option(_count(1, MAX_THREADS))
    affinity: Affinity = _option(lambda _, value: check_affinity(value))
    max_queue: int = _option(_count(0))
    max_futures: int | None = _option(_count_or_none(0))
    queue_timeout: float | None = _option(_queue_timeout)
    timeout: float | None = _option(check_seconds)
    grace: float = _option(_grace)
    preload: tuple[str, ...] = _option(_preload)
    autoreload: bool = _option(check_flag)
    standby: int = _option(_count(0, MAX_WORKERS))
    env: Mapping[str, str] = _option(_environment)
    cwd: Path = _option(_folder)
    kernel_name: str = _option(lambda _, value: value)  # `find_kernel` checks it
    requirements: Requirements | None = _option(_requirements)
    start_timeout: float = _option(_start_timeout)
    max_value_bytes: int = _option(_count(1))
    unserializable: Policy = _option(_choice(get_args(Policy)))
    store: str | os.PathLike[str] | Store | None = _option(lambda _, value: check_store(value))
    max_variable_bytes: int = _option(_count(1))
    max_age: float | None = _option(check_seconds)
    max_calls: int | None = _option(_count_or_none(1))
    max_memory_bytes: int | None = _option(_count_or_none(1))
    heartbeat: Heartbeat | None = _option(_policy(Heartbeat))
    crash_barrier: CrashBarrier | None = _option(_policy(CrashBarrier))
    retry: Retry | None = _option(_policy(Retry))
    breaker: Breaker | None = _option(_policy(Breaker))
    gpus: Gpus = _option(lambda _, value: value)  # `allot` checks it
    limits: Limits = _option(lambda _, value: check_limits(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig(PoolOptions):
    """The checked options of a pool, and what follows from them on this machine."""

    is_auto_sized: bool
    follows_cwd: bool
    futures_queue_timeout: float | None
    kernel: WorkerKernel
    codec: Codec
    group: Path | None
    accelerators: Allotment

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> PoolConfig:
        """Check options, by name, as the user gave them.

        Raises
        ------
        TypeError, ValueError, NotADirectoryError
            An option is wrong; the text names it and says what would be right.
        """
        values = {
            option.name: option.metadata["check"](option.name, given[option.name])
            for option in fields(PoolOptions)
        }
        options = PoolOptions(**values)
        if options.requirements is not None and options.kernel_name != DEFAULT_KERNEL:
            msg = (
                f"requirements cannot be combined with kernel_name {options.kernel_name!r}: the "
                "workers of an environment run the kernel of this package"
            )
            raise ValueError(msg)
        environ = {**os.environ, **options.env}
        kernel = find_kernel(options.kernel_name, environ)
        for feature, is_wanted in (
            ("an adapter", options.adapter is not None),
            ("the profile 'thread'", options.profile == "thread"),
            ("preload", options.preload),
            ("autoreload", options.autoreload),
        ):
            if is_wanted:
                kernel.require_lane(feature)
        if options.gpus is not None and options.standby:
            msg = "standby cannot be combined with gpus: a worker kept ready has no device yet"
            raise ValueError(msg)
        return cls(
            **values,
            is_auto_sized=given["workers"] == "auto",
            follows_cwd=given["cwd"] is None,
            futures_queue_timeout=(
                None if given["queue_timeout"] == "default" else options.queue_timeout
            ),
            kernel=kernel,
            codec=Codec(
                options.max_value_bytes,
                options.unserializable,
                kernel.cannot_send_code_reason,
                on_receipt="update_shared" if options.profile == "thread" else "update",
            ),
            group=find_group(options.limits),
            accelerators=allot(options.gpus, options.workers, environ),
        )

    def differences(self, other: PoolConfig) -> dict[str, tuple[object, object]]:
        """Return the options that differ, but the name, with the value in each of the two.

        An adapter is compared by its name: a class of the notebook is another one each time that
        its cell has run.
        """
        shown = self._comparable(), other._comparable()
        return {
            name: (mine, shown[1][name])
            for name, mine in shown[0].items()
            if name != "name" and mine != shown[1][name]
        }

    def _comparable(self) -> dict[str, object]:
        values = {option.name: getattr(self, option.name) for option in fields(PoolOptions)}
        values["adapter"] = self.adapter and self.adapter_name
        if self.is_auto_sized:
            values["workers"] = "auto"
        if self.follows_cwd:
            values["cwd"] = None
        return values

    def in_environment(self, environment: Environment) -> PoolConfig:
        """Return the same options for workers that run in an environment."""
        return replace(self, kernel=in_environment(self.kernel, environment))

    @property
    def lanes(self) -> list[frozenset[Purpose]]:
        """The purposes of each lane of a worker; the lane of its main thread comes first."""
        if not self.kernel.has_lane:
            return [frozenset({"cell"})]
        if self.profile == "process":
            return [frozenset({"call", "cell"})]
        for_calls: frozenset[Purpose] = frozenset({"call"})
        return [frozenset({"cell"}), *[for_calls] * self.threads_per_worker]

    @property
    def bytes_each(self) -> int:
        """Memory limit of a worker in bytes; 0 for no limit."""
        return self.limits.memory_bytes or self.max_memory_bytes or 0

    @property
    def adapter_name(self) -> str:
        """Name of the adapter as users see it."""
        return "none" if self.adapter is None else name_of(self.adapter)

    def worker_environment(self, slot: int) -> dict[str, str]:
        """Return all environment variables of the worker in a slot.

        Numeric libraries get one thread a worker unless the user set another number: several
        workers with one thread per core each would oversubscribe the cores. If the user set
        ``OMP_NUM_THREADS``, it decides for all libraries that fall back on it.
        """
        given = {**os.environ, **self.env}
        caps = _OWN_THREAD_CAPS if "OMP_NUM_THREADS" in given else _THREAD_CAPS
        environment = {
            **dict.fromkeys(caps, "1"),
            **given,
            **self.accelerators.environment(slot),
        }
        environment.pop(NOTEBOOK_VARIABLE, None)  # the notebook's own
        return environment
