"""Configuration of a pool: every option, checked before anything starts."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from ..errors import suggest
from ..ids import check_name
from ..lane.control_page import MAX_LANES
from ..paths import working_directory
from ..protocol.codec import Codec
from ..protocol.unserializable import Policy
from ..store.store import Store, check_store
from ..tools.registry import name_of
from ..validation import FOREVER, check_count, check_flag, check_seconds
from .policies import Breaker, CrashBarrier, Heartbeat, Retry, check_policy
from .resources.accelerators import Allotment, Gpus, allot
from .resources.kernelspec import WorkerKernel, find_kernel
from .resources.limits import Limits, check_limits, find_group
from .resources.machine_budget import usable_cores
from .scheduling.scheduler import Purpose

Affinity = Literal["hint", "strict_queue", "strict_fail_fast"]
Profile = Literal["process", "thread"]

MAX_WORKERS = 150
MAX_THREADS = MAX_LANES - 1

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """The checked options of a pool; see `Pool` for their meaning."""

    workers: int
    is_auto_sized: bool
    adapter: object
    name: str
    profile: Profile
    threads_per_worker: int
    affinity: Affinity
    max_queue: int
    max_futures: int | None
    queue_timeout: float | None
    timeout: float | None
    grace: float
    preload: tuple[str, ...]
    autoreload: bool
    standby: int
    env: Mapping[str, str]
    cwd: Path
    follows_cwd: bool
    kernel: WorkerKernel
    start_timeout: float
    codec: Codec
    store: str | os.PathLike[str] | Store | None
    max_variable_bytes: int
    max_age: float | None
    max_calls: int | None
    max_memory_bytes: int | None
    heartbeat: Heartbeat | None
    retry: Retry | None
    breaker: Breaker | None
    crash_barrier: CrashBarrier | None
    limits: Limits = field(default_factory=Limits)
    group: Path | None = None
    accelerators: Allotment = field(default_factory=Allotment)
    futures_queue_timeout: float | None = field(default=None)

    @classmethod
    def checked(
        cls,
        *,
        workers: int | Literal["auto"] | None,
        adapter: object,
        name: str,
        profile: str,
        threads_per_worker: int,
        affinity: str,
        max_queue: int,
        max_futures: int | None,
        queue_timeout: float | Literal["default"] | None,
        timeout: float | None,
        grace: float,
        preload: Sequence[str],
        autoreload: bool,
        standby: int,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        kernel_name: str,
        start_timeout: float,
        max_value_bytes: int,
        unserializable: str,
        store: str | os.PathLike[str] | Store | None,
        max_variable_bytes: int,
        max_age: float | None,
        max_calls: int | None,
        max_memory_bytes: int | None,
        heartbeat: object,
        retry: object,
        breaker: object,
        crash_barrier: object,
        gpus: Gpus,
        limits: Limits | Mapping[str, object] | None,
    ) -> PoolConfig:
        """Check options as the user gave them.

        Raises
        ------
        TypeError, ValueError, NotADirectoryError
            An option is wrong; the text names it and says what would be right.
        """
        count = (
            min(usable_cores(), MAX_WORKERS)
            if workers is None or workers == "auto"
            else check_count("workers", workers, 1, MAX_WORKERS)
        )
        if unserializable not in get_args(Policy):
            msg = (
                f"unserializable {unserializable!r} is not known"
                f"{suggest(unserializable, get_args(Policy))}"
            )
            raise ValueError(msg)
        if profile not in get_args(Profile):
            msg = f"profile {profile!r} is not known{suggest(profile, get_args(Profile))}"
            raise ValueError(msg)
        if isinstance(preload, str):
            msg = f"preload must be a list of module names, such as [{preload!r}]"
            raise TypeError(msg)
        folder = Path(working_directory() if cwd is None else cwd).expanduser().absolute()
        if not folder.is_dir():
            msg = f"cwd {str(folder)!r} is not a directory"
            raise NotADirectoryError(msg)
        chosen = queue_timeout
        checked_limits = check_limits(limits)
        environment = _environment(env)
        kernel = find_kernel(kernel_name, {**os.environ, **environment})
        if adapter is not None:
            kernel.require_lane("an adapter")
        if profile == "thread":
            kernel.require_lane("the profile 'thread'")
        if preload:
            kernel.require_lane("preload")
        if autoreload:
            kernel.require_lane("autoreload")
        if gpus is not None and standby:
            msg = "standby cannot be combined with gpus: a worker kept ready has no device yet"
            raise ValueError(msg)
        return cls(
            workers=count,
            is_auto_sized=workers == "auto",
            adapter=check_adapter(adapter),
            name=check_name("pool", name),
            profile="thread" if profile == "thread" else "process",
            threads_per_worker=check_count(
                "threads_per_worker", threads_per_worker, 1, MAX_THREADS
            ),
            affinity=check_affinity(affinity),
            max_queue=check_count("max_queue", max_queue, 0),
            max_futures=(
                None if max_futures is None else check_count("max_futures", max_futures, 0)
            ),
            queue_timeout=(
                DEFAULT_QUEUE_TIMEOUT
                if chosen == "default"
                else check_seconds("queue_timeout", chosen, allow_zero=True)
            ),
            futures_queue_timeout=(
                None
                if chosen == "default"
                else check_seconds("queue_timeout", chosen, allow_zero=True)
            ),
            timeout=check_seconds("timeout", timeout),
            grace=_grace(grace),
            preload=tuple(preload),
            autoreload=check_flag("autoreload", autoreload),
            standby=check_count("standby", standby, 0, MAX_WORKERS),
            env=environment,
            cwd=folder,
            follows_cwd=cwd is None,
            kernel=kernel,
            start_timeout=check_seconds("start_timeout", start_timeout) or math.inf,
            codec=Codec(
                check_count("max_value_bytes", max_value_bytes, 1),
                cast("Policy", unserializable),
                kernel.cannot_send_code_reason,
                on_receipt="update_shared" if profile == "thread" else "update",
            ),
            store=check_store(store),
            max_variable_bytes=check_count("max_variable_bytes", max_variable_bytes, 1),
            max_age=check_seconds("max_age", max_age),
            max_calls=None if max_calls is None else check_count("max_calls", max_calls, 1),
            max_memory_bytes=(
                None
                if max_memory_bytes is None
                else check_count("max_memory_bytes", max_memory_bytes, 1)
            ),
            heartbeat=check_policy("heartbeat", Heartbeat, heartbeat),
            retry=check_policy("retry", Retry, retry),
            breaker=check_policy("breaker", Breaker, breaker),
            crash_barrier=check_policy("crash_barrier", CrashBarrier, crash_barrier),
            limits=checked_limits,
            group=find_group(checked_limits),
            accelerators=allot(gpus, count, {**os.environ, **environment}),
        )

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
        environment.pop("JPY_SESSION_NAME", None)  # the notebook's own
        return environment


def _grace(value: float | None) -> float:
    seconds = check_seconds("grace", value, allow_zero=True)
    return FOREVER if seconds is None and value is not None else seconds or 0.0


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


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    checked = dict(env or {})
    for key, value in checked.items():
        if not isinstance(key, str) or not isinstance(value, str):
            msg = f"env must map strings to strings, not {key!r} to {value!r}"
            raise TypeError(msg)
    return checked
