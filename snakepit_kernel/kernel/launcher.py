"""Launcher: replaces the provisioner when a client executes the kernel's command itself.

VS Code's local kernels do, and users who copy the command of the kernelspec. The process that the
client started then does not become the kernel: it becomes the owner of a guardian, which starts the
kernel. It forwards signals, and ends as the kernel ends; when the client kills it, the guardian
notices.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Sequence

from ..errors import StartFailed
from ..ids import RUN_ID_OPTION, new_run_id
from ..printable import printable
from ..processes.identity import ProcessIdentity, is_hidden
from ..processes.launch_spec import LaunchSpec
from ..processes.run import GuardedRun
from ..processes.run_registry import Registry
from ..processes.safe_path import with_safe_path, without_empty_entries
from ..processes.waiting import ended

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL, as the provisioner's default."""

LABEL = "Python 3 (Snakepit), without provisioner"

PARENT_VARIABLE = "JPY_PARENT_PID"
"""Environment variable in which Jupyter clients name the process whose death ends the kernel."""

FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run_guarded() -> int:
    """Run this very command again, under a guardian; return its exit status when all is gone."""
    # As in a kernel, an interrupt before the first cell is ignored.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        status = asyncio.run(_Launcher().run(with_safe_path([sys.executable, *sys.orig_argv[1:]])))
    except StartFailed as error:
        print(error, file=sys.stderr)  # noqa: T201 - where the client reads it
        return 1
    if status < 0:
        _end_by_signal(-status)
    return status


def _end_by_signal(signum: int) -> None:
    """End this process by the signal that ended the kernel, so that the client sees it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the kernel has written its own core dump
    if signum != signal.SIGKILL:
        signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


class _Launcher:
    """The owner of one run: it forwards signals, and waits."""

    def __init__(self) -> None:
        self._ending = asyncio.Event()
        self._signal = 0
        self._started: GuardedRun | None = None

    async def run(self, command: Sequence[str]) -> int:
        loop = asyncio.get_running_loop()
        for signum in ENDING_SIGNALS:
            loop.add_signal_handler(signum, self._end, signum)
        client = _client()
        run_id = new_run_id()
        spec = LaunchSpec.of(
            [*command, RUN_ID_OPTION + run_id],
            run_id=run_id,
            grace=GRACE,
            env=without_empty_entries(os.environ),
            pass_fds=_inherited(),
            stdin=sys.stdin,
        )
        run = await GuardedRun.start(spec, registry=Registry(), label=LABEL)
        for signum in FORWARDED_SIGNALS:
            loop.add_signal_handler(signum, run.process.send_signal, signum)
        waits = [
            loop.create_task(run.process.wait()),
            loop.create_task(self._ending.wait()),
            *([loop.create_task(ended(client))] if client is not None else []),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        report = await run.end(GRACE)
        for line in report.survivors:
            print(f"does not die: {printable(line)}", file=sys.stderr)  # noqa: T201
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        if self._signal:
            return -self._signal
        status = run.process.poll()
        return 1 if status is None else status

    def _end(self, signum: int) -> None:
        self._signal = signum
        self._ending.set()


def _client() -> ProcessIdentity | None:
    """Return the process whose death ends the kernel, if the client has named one."""
    named = os.environ.get(PARENT_VARIABLE, "")
    # 1 and 0 stand for nobody, as in ipykernel.
    if not named.isdecimal() or int(named) <= 1:
        return None
    client = ProcessIdentity.of(int(named))
    # It died before this check, or /proc hides its start time; otherwise the variable is stale.
    if client is None and (os.getppid() == 1 or is_hidden(int(named))):
        return ProcessIdentity(int(named), 0)
    return client


def _inherited() -> list[int]:
    """Return the file descriptors beyond the standard ones that the client passed on."""
    return [
        number
        for number in map(int, os.listdir("/proc/self/fd"))  # noqa: PTH208
        if number > 2 and _is_inheritable(number)
    ]


def _is_inheritable(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:  # the descriptor of the listing itself
        return False
