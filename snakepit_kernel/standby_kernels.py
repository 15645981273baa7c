"""Standby kernels: started ahead, they wait for an assignment.

They belong to this process, and end with it. Assigning one takes as long as a message; the next is
started in the background.
"""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .errors import StartFailed
from .ids import RUN_ID_OPTION, new_run_id
from .locks import Lock
from .loggers import get_logger
from .processes.concurrency import LoopThread, other_tasks
from .processes.launch_spec import LaunchSpec
from .processes.run import GuardedRun
from .processes.run_registry import Registry
from .processes.template import CannotFork, TemplateKind, discard, import_variables, template_for

logger = get_logger(__name__)

LABEL = "kept ready"

REFILL_DELAY = 0.5
"""Seconds between a start and that of the next standby kernel: the first cells have priority."""


MAX_STANDBY_KEYS = 4
"""Maximum number of keys with standby kernels; beyond it the least recently used one's end."""


class StandbyKey(NamedTuple):
    """Key of interchangeable standby kernels.

    Attributes
    ----------
    kind
        Kind of their template.
    command
        Their command, without connection file and run id.
    variables
        Environment variables that may matter to imports.
    grace
        Seconds between SIGTERM and SIGKILL.
    """

    kind: TemplateKind
    command: tuple[str, ...]
    variables: frozenset[tuple[str, str]]
    grace: float


def standby_key(
    kind: TemplateKind, command: Sequence[str], env: Mapping[str, str], grace: float
) -> StandbyKey:
    """Return the key of the standby kernels that can run a command."""
    words = [word for word in command if not word.startswith(RUN_ID_OPTION)]
    if "-f" in words:
        at = words.index("-f")
        del words[at : at + 2]
    return StandbyKey(kind, tuple(words), frozenset(import_variables(env).items()), grace)


class StandbyKernels:
    """The standby kernels of this process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[StandbyKey, list[GuardedRun]] = {}
        self._starting: dict[StandbyKey, int] = {}
        self._starts: set[asyncio.Task[Any]] = set()
        self._loop_thread: LoopThread | None = None
        self._ending = Lock()

    def take(self, key: StandbyKey, env: Mapping[str, str], cwd: str | None) -> GuardedRun | None:
        """Take a standby kernel with a key, ready for an assignment, or None.

        Whether its template is up to date is not known yet: `is_up_to_date` asks.
        """
        if not self._waiting.get(key):
            return None
        try:
            template = template_for(key.kind, env=env, cwd=cwd)
        except CannotFork:
            template = None
        with self._lock:
            waiting = self._waiting.pop(key, [])
            fit = [run for run in waiting if run.process.template is template and _is_usable(run)]
            self._waiting[key] = fit[1:]
        for run in waiting:
            if run not in fit:
                self._end_soon(run)
        return fit[0] if fit else None

    async def is_up_to_date(self, run: GuardedRun) -> bool:
        """Whether the template of a kernel that was taken would fork it now.

        If not, the template and its other standby kernels are discarded.
        """
        template = run.process.template
        if template is not None and not await template.reason_not_to_fork():
            return True
        if template is not None:
            discard(template)
        with self._lock:
            outdated = [
                (key, each)
                for key, waiting in self._waiting.items()
                for each in waiting
                if each.process.template is template
            ]
            for key, each in outdated:
                self._waiting[key].remove(each)
        for _, each in outdated:
            self._end_soon(each)
        return False

    def _end_soon(self, run: GuardedRun) -> None:
        """End a kernel that was not assigned, in the background."""
        loop_thread = self._background_loop()
        loop_thread.soon(lambda: loop_thread.spawn(run.end(0.0)))

    def refill(
        self,
        key: StandbyKey,
        count: int,
        env: Mapping[str, str],
        cwd: str | None,
        registry: Registry,
    ) -> None:
        """Start missing standby kernels of a key in the background."""
        with self._lock:
            self._waiting[key] = self._waiting.pop(key, [])  # last in order: most recently used
            surplus = [
                run
                for old in list(self._waiting)[: -MAX_STANDBY_KEYS or None]
                for run in self._waiting.pop(old)
            ]
            missing = count - len(self._waiting[key]) - self._starting.get(key, 0)
            self._starting[key] = self._starting.get(key, 0) + max(0, missing)
        for run in surplus:
            self._end_soon(run)
        if missing <= 0:
            return
        loop_thread = self._background_loop()
        loop_thread.soon(self._begin, loop_thread, key, missing, dict(env), cwd, registry)

    def _begin(self, loop_thread: LoopThread, *arguments: Any) -> None:
        task = loop_thread.spawn(self._start(*arguments))
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)

    async def _start(
        self, key: StandbyKey, count: int, env: dict[str, str], cwd: str | None, registry: Registry
    ) -> None:
        try:
            await asyncio.sleep(REFILL_DELAY)
            for _ in range(count):
                run_id = new_run_id()
                spec = LaunchSpec.of(
                    [*key.command, RUN_ID_OPTION + run_id],
                    run_id=run_id,
                    grace=key.grace,
                    env=env,
                    cwd=cwd,
                    standby=True,
                )
                run = await GuardedRun.start(spec, registry=registry, label=LABEL, kind=key.kind)
                with self._lock:
                    self._waiting.setdefault(key, []).append(run)
        except (StartFailed, OSError) as error:  # without it, a kernel is started when needed
            logger.info("no kernel could be started ahead: %s", error)
        finally:
            with self._lock:
                left = self._starting.pop(key, 0) - count
                if left > 0:
                    self._starting[key] = left

    def _background_loop(self) -> LoopThread:
        with self._lock:
            if self._loop_thread is None:
                self._one_at_a_time = asyncio.Lock()
                self._loop_thread = LoopThread("snakepit-standby")
                self._loop_thread.start()
            return self._loop_thread

    def close(self) -> None:
        """End all standby kernels; return when that is verified.

        It may be called again after a Ctrl-C.
        """
        with self._ending:
            if (loop_thread := self._loop_thread) is None:
                return
            if loop_thread.is_open:
                loop_thread.ask(self._end_all()).result()
            loop_thread.close()
            with self._lock:
                self._loop_thread = None

    async def _end_all(self) -> None:
        async with (
            self._one_at_a_time
        ):  # after a Ctrl-C there may be two, and both wait for the end
            for task in self._starts:
                task.cancel()
            await asyncio.gather(*other_tasks(self._end_all), return_exceptions=True)
            with self._lock:
                waiting = [run for runs in self._waiting.values() for run in runs]
                self._waiting.clear()
                # A start that was cancelled before it began has not corrected its count.
                self._starting.clear()
            await asyncio.gather(*(run.end(0.0) for run in waiting))


def _is_usable(run: GuardedRun) -> bool:
    process = run.process
    return process.poll() is None and not process.is_gone and not process.is_stopped


_standby_kernels = StandbyKernels()

take = _standby_kernels.take
is_up_to_date = _standby_kernels.is_up_to_date
refill = _standby_kernels.refill
close = _standby_kernels.close


def _forget() -> None:
    """In a forked child: forget the parent's standby kernels."""
    _standby_kernels.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_forget)
atexit.register(close)
