"""Periodic health checks of workers. The coroutines run in the pool's loop thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

import psutil

from ...loggers import get_logger
from ...printable import printable
from ...processes import logs
from ...processes.concurrency import in_thread
from ...processes.identity import all_children, living_descendants
from ..config import PoolConfig
from ..policies import Heartbeat
from .background import BackgroundTasks
from .replacement import RollingReplacement
from .standby import StandbyWorkers
from .supervisor import WorkerSupervisor
from .worker import Worker

logger = get_logger(__name__)

RECONCILE_INTERVAL = 1.0
"""Seconds between two reconciliations of the slots with their workers."""


class WorkerMonitor:
    """Checks a pool's workers at intervals, and requests replacement of unhealthy ones.

    Parameters
    ----------
    config
        The pool's options.
    supervisor
        Has the workers, of which it terminates those that do not respond.
    replacement
        Replaces those that use too much memory, among others.
    standby
        The standby workers.
    tasks
        Run the checks, until the pool ends.
    """

    def __init__(
        self,
        config: PoolConfig,
        supervisor: WorkerSupervisor,
        replacement: RollingReplacement,
        standby: StandbyWorkers,
        tasks: BackgroundTasks,
    ) -> None:
        self._config = config
        self._supervisor = supervisor
        self._replacement = replacement
        self._standby = standby
        self._tasks = tasks
        self._has_warned = False
        self._without_main_thread: WeakSet[Worker] = WeakSet()

    def begin(self) -> None:
        """Start the checks, which end with the pool."""
        self._tasks.run(self._reconcile())
        self._tasks.run(self._replacement.replace_due())
        if self._config.heartbeat is not None:
            self._tasks.run(self._check_liveness(self._config.heartbeat))

    async def _reconcile(self) -> None:
        while True:
            # Deaths are noticed at once; this retries what was postponed.
            await asyncio.sleep(RECONCILE_INTERVAL)
            self._supervisor.reconcile()
            self._replacement.retry()
            for worker in self._supervisor.living():
                logs.bound_file(
                    worker.output.log_path
                )  # our kernel bounds its own log; other kernels do not
            if (
                self._config.kernel.is_python
            ):  # in other programs an ended main thread may be normal
                self._end_those_without_main_thread()
            if self._config.max_memory_bytes is not None:
                await self._check_memory(self._config.max_memory_bytes)

    def _end_those_without_main_thread(self) -> None:
        """Replace workers whose main thread has ended.

        No other check finds them: the process lives, and another thread sends its heartbeats.
        """
        self._standby.end_without_main_thread()
        before = self._without_main_thread
        # Seen only once, the process may just be exiting: its threads end one by one.
        self._without_main_thread = WeakSet(
            worker
            for worker in self._supervisor.living()
            if worker.process.has_lost_its_main_thread
        )
        for worker in list(self._without_main_thread & before):
            worker.process.end_reason = "lost its main thread (it called pthread_exit)"
            logger.warning("worker %s %s", worker.name, worker.process.end_reason)
            self._supervisor.terminate(worker)

    # -- memory --------------------------------------------------------------------------------

    async def _check_memory(self, limit: int) -> None:
        """Request replacement of workers that, with their descendants, use too much memory."""
        workers = {
            guarded.guardian.pid: worker
            for worker in self._supervisor.workers.values()
            if worker.state.is_in_service
            and (guarded := worker.process.guarded)
            and guarded.guardian
        }
        for pid, memory in (await in_thread(tree_memory, workers, limit)).items():
            if memory.total_bytes <= limit:
                continue
            if workers[pid].calls:
                self._replacement.request_replacement(workers[pid], _describe_excess(memory, limit))
            elif not self._has_warned:  # a successor would take as much
                self._has_warned = True
                excess = _describe_excess(memory, limit)
                logger.warning("%s takes %s before its first call", workers[pid].name, excess)

    # -- liveness ------------------------------------------------------------------------------

    async def _check_liveness(self, policy: Heartbeat) -> None:
        """Terminate workers that hang or are stopped; they are replaced."""
        probes: WeakKeyDictionary[Worker, LivenessProbe] = WeakKeyDictionary()
        while True:
            await asyncio.sleep(policy.interval)
            now = time.monotonic()
            for worker in self._supervisor.living():
                probe = probes.get(worker)
                if probe is None:
                    probe = probes[worker] = LivenessProbe(policy, now)
                if not probe.heartbeat(now, worker.pulse) and self._looks_dead(worker, probe, now):
                    await self._terminate(worker, probe.silence(now), probe.misses)

    def _looks_dead(self, worker: Worker, probe: LivenessProbe, now: float) -> bool:
        try:
            process = psutil.Process(worker.process.pid)
            times, state = process.cpu_times(), process.status()
        except psutil.Error:  # it has ended, which its watcher handles
            return False
        return probe.is_dead(
            now,
            cpu=times.user + times.system,
            is_stopped=state == psutil.STATUS_STOPPED,
            is_busy=(
                not worker.state.is_in_service
                or bool(worker.current)
                or worker.pulse == 0  # a foreign kernel, which has no heartbeat
                or state == psutil.STATUS_TRACING_STOP  # a debugger traces it
            ),
        )

    async def _terminate(self, worker: Worker, silence: float, misses: int) -> None:
        stacks = await in_thread(worker.stacks)
        worker.process.end_reason = (
            f"gave no sign of life for {silence:.3g} s ({misses} heartbeats missed)"
        )
        where = stacks and f":\n{printable(stacks, lines=True)}"
        logger.warning("worker %s %s%s", worker.name, worker.process.end_reason, where)
        self._supervisor.terminate(worker)


def _describe_excess(memory: TreeMemory, limit: int) -> str:
    mebibytes = memory.total_bytes / 2**20
    of = "its process" if memory.processes == 1 else f"its {memory.processes} processes"
    return (
        f"{mebibytes:.0f} MiB of memory of {of} (max_memory_bytes {limit:,}, "
        f"{limit / 2**20:.0f} MiB)"
    )


@dataclass(frozen=True, slots=True)
class TreeMemory:
    """The memory of a process tree.

    Attributes
    ----------
    total_bytes
        Memory that no other process shares (USS).
    processes
        Number of processes in the tree.
    """

    total_bytes: int
    processes: int


def tree_memory(roots: Iterable[int], more_than: int = 0) -> dict[int, TreeMemory]:
    """Measure the process trees below some processes.

    Parameters
    ----------
    roots
        Pids of the guardians; these are not counted themselves.
    more_than
        Bytes. Trees whose resident memory, shared pages included, is no more than this are left
        out: resident memory is quick to read, unshared memory is slow.

    Returns
    -------
    dict
        By the root's pid.
    """
    children = all_children()
    found = {}
    for root in roots:
        pids = [status.pid for status in living_descendants(root, children)]
        if sum(map(_resident, pids)) > more_than:
            found[root] = TreeMemory(sum(map(_own, pids)), len(pids))
    return found


def _resident(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        resident: int = process.memory_info().rss
    except psutil.Error:
        return 0
    return resident


def _own(pid: int) -> int:
    try:
        memory = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return 0
    total: int = memory.uss
    return total


class LivenessProbe:
    """Tracks the signs of life of one worker. Pure: no clock, no I/O.

    Parameters
    ----------
    policy
        How long a worker may be silent.
    now
        `time.monotonic` when it became ready.

    Attributes
    ----------
    misses
        Beats missed one after the other.
    """

    def __init__(self, policy: Heartbeat, now: float) -> None:
        self.misses = 0
        self._policy = policy
        self._last_sign = now
        self._pulse = 0
        self._cpu: float | None = None

    def silence(self, now: float) -> float:
        """Return the seconds since the last sign of life."""
        return now - self._last_sign

    def heartbeat(self, now: float, pulse: int) -> bool:
        """Record the worker's heartbeat counter; return whether it was alive within the timeout."""
        if pulse != self._pulse:
            self._pulse = pulse
            self._record_sign(now)
        return self.silence(now) <= self._policy.timeout

    def is_dead(self, now: float, *, cpu: float, is_stopped: bool, is_busy: bool) -> bool:
        """Record the state of a process without a heartbeat; return whether to treat it as dead.

        Parameters
        ----------
        now
            `time.monotonic`.
        cpu
            Seconds of CPU time that it has used.
        is_stopped
            Whether a signal has stopped it.
        is_busy
            Whether it runs a call, which may keep Python from running for any length of time.
        """
        works = is_busy or (self._cpu is not None and cpu != self._cpu)
        self._cpu = cpu
        if works and not is_stopped:
            self._record_sign(now)
        elif self.silence(now) > self._policy.timeout:
            self.misses += 1
        return self.misses >= self._policy.misses

    def _record_sign(self, now: float) -> None:
        self._last_sign = now
        self.misses = 0
