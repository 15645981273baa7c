"""A command that is waited for, under a guardian: nothing of it is left, however the wait ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from ..ids import new_run_id
from ..processes.concurrency import LoopThread
from ..processes.launch_spec import LaunchSpec
from ..processes.run import GuardedRun
from ..processes.run_registry import Registry
from ..processes.waiting import run_shielded

TICK = 0.5
"""Seconds between two calls of the function that shows how long it takes."""


def run_guarded(
    command: Sequence[str],
    *,
    label: str,
    cwd: Path,
    env: Mapping[str, str],
    output: IO[bytes],
    on_tick: Callable[[], object],
    holds: Sequence[int],
) -> int:
    """Run a command; return its exit status when all that it has started is gone.

    Ctrl-C, and the end of this process by whatever signal, end it with all that it has started.

    Parameters
    ----------
    command
        Program and arguments.
    label
        Name of its run.
    cwd, env
        Its working directory and environment.
    output
        File that its output is written to.
    on_tick
        Called twice a second, in the calling thread.
    holds
        File descriptors that it inherits: locks that it holds until it has ended.

    Raises
    ------
    StartFailed
        It could not be started.
    """
    spec = LaunchSpec.of(
        command,
        run_id=new_run_id(),
        grace=0.0,
        env={**env},
        cwd=str(cwd),
        is_program=True,
        pass_fds=[*holds],
        stdout=output,
        stderr=output,
    )
    thread = LoopThread("snakepit-command")
    try:
        thread.start()
        running = thread.ask(_run(spec, label))
        while True:
            try:
                return running.result(TICK)
            except TimeoutError:
                if running.done():  # the error is its own
                    raise
                on_tick()
    finally:
        thread.close()  # this cancels it, and waits for its end


async def _run(spec: LaunchSpec, label: str) -> int:
    run = await GuardedRun.start(spec, registry=Registry(), label=label)
    try:
        status = await run.process.wait()
    finally:
        await run_shielded(run.end(0.0))
    return -int(signal.SIGKILL) if status is None else status
