"""Processes under guard for the tests of this folder, started and ended for them."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from snakepit_kernel.ids import RUN_ID_VARIABLE, new_run_id
from snakepit_kernel.processes.guarded_process import EndReport, GuardedProcess
from snakepit_kernel.processes.launch_spec import LaunchSpec

PRELUDE = """
import ctypes, os, signal, subprocess, sys, time
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


class Lines:
    """Lines that processes write into a pipe, read with a deadline."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._rest = b""

    def read(self, timeout: float = 10.0) -> str:
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.reading, select.POLLIN)
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0, f"no line within {timeout} s"
            poll.poll(left * 1000)
            received = os.read(self.reading, 4096) if poll.poll(0) else b""
            self._rest += received
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def pending(self) -> bool:
        poll = select.poll()
        poll.register(self.reading, select.POLLIN)
        return b"\n" in self._rest or bool(poll.poll(0))

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


class Guards:
    """Starts commands under guard. Each call runs in an event loop of its own."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.started: list[GuardedProcess] = []

    def start(self, command: list[str], *, grace: float = 2.0, **arguments: Any) -> GuardedProcess:
        run_id = new_run_id()
        env = {**arguments.pop("env", os.environ), RUN_ID_VARIABLE: run_id}
        arguments.setdefault("stdout", self.lines.writing)
        spec = LaunchSpec.of(command, run_id=run_id, grace=grace, env=env, **arguments)
        process = asyncio.run(GuardedProcess.start(spec))
        self.started.append(process)
        return process

    def python(self, code: str, **arguments: Any) -> GuardedProcess:
        """Run Python code; it has ``say`` and the usual modules."""
        return self.start([sys.executable, "-c", PRELUDE + textwrap.dedent(code)], **arguments)

    @staticmethod
    def end(process: GuardedProcess, grace: float = 0.0) -> EndReport:
        return asyncio.run(process.end(grace))

    @staticmethod
    def wait(process: GuardedProcess, timeout: float = 10.0) -> int | None:
        return asyncio.run(process.wait(timeout))


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


@pytest.fixture
def guards(lines: Lines) -> Iterator[Guards]:
    guards = Guards(lines)
    yield guards
    for process in guards.started:
        asyncio.run(process.end(0.0))


@pytest.fixture
def start_owner(lines: Lines) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Run code in a process of its own that owns a guarded command, ``process``.

    ``prefix`` is a command that runs it. The code may use ``start(child_code, **arguments)``;
    standard output of all is ``lines``.
    """
    owners: list[subprocess.Popen[bytes]] = []

    def start(
        code: str, *, prefix: Sequence[str] = (), **arguments: Any
    ) -> subprocess.Popen[bytes]:
        program = (
            PRELUDE
            + textwrap.dedent("""
            import asyncio
            from snakepit_kernel.ids import new_run_id
            from snakepit_kernel.processes.guarded_process import GuardedProcess
            from snakepit_kernel.processes.launch_spec import LaunchSpec
            PRELUDE = {prelude!r}
            def start(code, **arguments):
                run_id = new_run_id()
                env = {{**os.environ, "SNAKEPIT_RUN_ID": run_id}}
                arguments.setdefault("grace", 0.5)
                return asyncio.run(GuardedProcess.start(LaunchSpec.of(
                    [sys.executable, "-c", PRELUDE + code], run_id=run_id, env=env, **arguments)))
            """).format(prelude=PRELUDE)
            + textwrap.dedent(code)
        )
        command = [*prefix, sys.executable, "-c", program]
        owner = subprocess.Popen(command, stdout=lines.writing, **arguments)
        owners.append(owner)
        return owner

    yield start
    for owner in owners:
        owner.kill()
        owner.wait()
